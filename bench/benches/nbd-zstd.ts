/**
 * nbd-zstd: a whole image, compressed with zstd, copied to nowhere over NBD, with four connections.
 */

import { compressedRead } from '../support/compressed-read.ts';

export const bench = compressedRead('nbd', 'zstd', { atLeast: 1, aim: 1.5 });
