/**
 * fuse-zstd: a whole image, compressed with zstd, read in order through FUSE, with a cold FUSE cache.
 */

import { compressedRead } from '../support/compressed-read.ts';

export const bench = compressedRead('fuse', 'zstd', { atLeast: 1.5, aim: 2.5 });
