/**
 * nbd-zlib: a whole image, compressed with zlib, copied to nowhere over NBD, with four connections.
 */

import { compressedRead } from '../support/compressed-read.ts';

export const bench = compressedRead('nbd', 'zlib', { atLeast: 1.5, aim: 2.5 });
