/**
 * fuse-zlib: a whole image, compressed with zlib, read in order through FUSE, with a cold FUSE cache.
 */

import { compressedRead } from '../support/compressed-read.ts';

export const bench = compressedRead('fuse', 'zlib', { atLeast: 1.5, aim: 2.5 });
