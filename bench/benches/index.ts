/**
 * All benches, in the order in which they are run and reported.
 */

import type { Bench } from '../support/bench.ts';
import { bench as check } from './check.ts';
import { bench as convert } from './convert.ts';
import { bench as fuseRand } from './fuse-rand.ts';
import { bench as fuseSeq } from './fuse-seq.ts';
import { bench as fuseWrite } from './fuse-write.ts';
import { bench as fuseZlib } from './fuse-zlib.ts';
import { bench as fuseZstd } from './fuse-zstd.ts';
import { bench as info } from './info.ts';
import { bench as libWrite } from './lib-write.ts';
import { bench as map } from './map.ts';
import { bench as memory } from './memory.ts';
import { bench as mount } from './mount.ts';
import { bench as nbdRand } from './nbd-rand.ts';
import { bench as nbdSeq } from './nbd-seq.ts';
import { bench as nbdWrite } from './nbd-write.ts';
import { bench as nbdZlib } from './nbd-zlib.ts';
import { bench as nbdZstd } from './nbd-zstd.ts';

export const BENCHES: readonly Bench[] = [
  fuseSeq,
  fuseRand,
  fuseWrite,
  fuseZlib,
  fuseZstd,
  nbdSeq,
  nbdRand,
  nbdWrite,
  nbdZlib,
  nbdZstd,
  mount,
  info,
  map,
  check,
  convert,
  memory,
  libWrite,
];
