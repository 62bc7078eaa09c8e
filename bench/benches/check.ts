/**
 * check: every reference and every refcount of a 1 TiB image.
 */

import type { Bench } from '../support/bench.ts';
import { compareOnHugeImage } from '../support/whole-image.ts';

export const bench: Bench = {
  name: 'check',
  summary: 'check --output=json of a 1 TiB fully allocated image',
  tools: ['qemu-img'],
  prepare: (context) => compareOnHugeImage(context, 'check'),
};
