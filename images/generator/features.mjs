/** The images of `features/`: what the format can hold, undamaged. */

import { backingCases } from './features-backing.mjs';
import { headerCases } from './features-header.mjs';
import { layoutCases } from './features-layout.mjs';
import { partitionCases } from './features-partition.mjs';
import { snapshotCases } from './features-snapshot.mjs';

/** Every case of the group. */
export const featureCases = [
  ...layoutCases,
  ...backingCases,
  ...headerCases,
  ...snapshotCases,
  ...partitionCases,
];
