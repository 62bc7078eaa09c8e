/**
 * map: the allocation map of a 1 TiB image, as JSON.
 */

import type { Bench } from '../support/bench.ts';
import { compareOnHugeImage } from '../support/whole-image.ts';

export const bench: Bench = {
  name: 'map',
  summary: 'map --output=json of a 1 TiB fully allocated image',
  tools: ['qemu-img'],
  prepare: (context) => compareOnHugeImage(context, 'map'),
};
