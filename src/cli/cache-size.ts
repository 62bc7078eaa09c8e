/** The option `--cache-size`. */

import { MAX_CLUSTER_CACHE_BYTES } from '../limits.ts';
import { defaultCacheBytes } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import type { OptionDefinition, ParsedArguments } from './command.ts';
import { parseSize } from './size.ts';

/** How commands that serve images declare it. */
export const CACHE_SIZE_OPTION = {
  kind: 'value',
  placeholder: 'SIZE',
  description: 'memory for decompressed clusters (default: a 64th of all, 8M to 32M)',
} as const satisfies OptionDefinition;

/**
 * Bytes for the cluster cache, 0 for none.
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function cacheSize(args: ParsedArguments): number {
  const text = args.value('cache-size');
  if (text === undefined) return defaultCacheBytes();
  return parseSize(text, 'the cache size', MAX_CLUSTER_CACHE_BYTES + 1);
}
