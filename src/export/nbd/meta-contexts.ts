/**
 * Metadata contexts: what `NBD_CMD_BLOCK_STATUS` can tell of an export, by name.
 *
 * Specification: `doc/proto.md`, "Metadata querying"; QEMU's contexts: `docs/interop/nbd.txt` of QEMU.
 */

import type { ExportBitmap } from './exports.ts';

/** What a context tells. */
export type ContextKind = 'base:allocation' | 'qemu:allocation-depth' | 'bitmap';

/** A context of an export. */
export interface MetaContext {
  /** The number that replies know it by; never 0. */
  id: number;
  name: string;
  kind: ContextKind;
  /** For the kind `bitmap`. */
  bitmap?: ExportBitmap;
}

const BITMAP_PREFIX = 'qemu:dirty-bitmap:';

/** All contexts of an export. */
export function metaContextsOf(bitmaps: readonly ExportBitmap[]): MetaContext[] {
  return [
    { id: 1, name: 'base:allocation', kind: 'base:allocation' },
    { id: 2, name: 'qemu:allocation-depth', kind: 'qemu:allocation-depth' },
    ...bitmaps.map((bitmap, index) => ({
      id: 3 + index,
      name: `${BITMAP_PREFIX}${bitmap.name}`,
      kind: 'bitmap' as const,
      bitmap,
    })),
  ];
}

/**
 * The contexts that a client chooses.
 * @param queries whole names; others choose nothing
 */
export function chooseContexts(
  available: readonly MetaContext[],
  queries: readonly string[],
): MetaContext[] {
  const wanted = new Set(queries);
  return available.filter(({ name }) => wanted.has(name));
}

/**
 * The contexts that a client wants to be told of.
 * @param queries whole names, or what a namespace calls a prefix (`base:`, `qemu:`,
 * `qemu:dirty-bitmap:`); none at all asks for all contexts
 */
export function listContexts(
  available: readonly MetaContext[],
  queries: readonly string[],
): MetaContext[] {
  if (queries.length === 0) return [...available];
  const wanted = new Set(queries);
  return available.filter(({ name, kind }) => {
    const namespace = name.slice(0, name.indexOf(':') + 1);
    const isBelow = wanted.has(namespace) || (kind === 'bitmap' && wanted.has(BITMAP_PREFIX));
    return isBelow || wanted.has(name);
  });
}
