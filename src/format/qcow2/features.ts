/** The feature bits of a version 3 header (specification: "Header", bytes 72 to 95). */

/** Features that a reader must know. */
export const IncompatibleFeature = {
  /** Refcounts may be stale; they are repaired before the image is written. */
  DIRTY: 1n << 0n,
  /** Some structure is damaged; the image is never written. */
  CORRUPT: 1n << 1n,
  /** Guest data is in another file. */
  EXTERNAL_DATA_FILE: 1n << 2n,
  /** The compression type is not zlib. */
  COMPRESSION_TYPE: 1n << 3n,
  /** L2 entries have 16 bytes and describe subclusters. */
  EXTENDED_L2: 1n << 4n,
} as const;

/** Features that any reader may ignore. */
export const CompatibleFeature = {
  /** Refcounts need not be up to date while the dirty bit is set. */
  LAZY_REFCOUNTS: 1n << 0n,
} as const;

/** Features that a writer who does not know them must clear. */
export const AutoclearFeature = {
  /** The bitmaps extension is consistent with the image. */
  BITMAPS: 1n << 0n,
  /** The external data file can be read as a raw image. */
  RAW_EXTERNAL_DATA: 1n << 1n,
} as const;

/**
 * Incompatible bit of an image that is still being made here. It means nothing to anyone, and so
 * nobody takes what a killed process leaves behind for a whole image. Gone once it is finished.
 */
export const UNFINISHED_FEATURE = 1n << 63n;

/** All incompatible bits that are understood here. */
export const KNOWN_INCOMPATIBLE = Object.values(IncompatibleFeature).reduce((a, b) => a | b);

/** Which of the three fields a row of the feature name table speaks of. */
export const FEATURE_TYPES = ['incompatible', 'compatible', 'autoclear'] as const;

/** A row of the feature name table. */
export interface FeatureName {
  type: (typeof FEATURE_TYPES)[number];
  /** Bit number, 0 to 63. */
  bit: number;
  name: string;
}

/** Describes the set bits of `features` by the names that the image itself gives them. */
export function describeFeatures(
  features: bigint,
  type: FeatureName['type'],
  names: readonly FeatureName[],
): string {
  const described: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if (((features >> BigInt(bit)) & 1n) === 0n) continue;
    const row = names.find((name) => name.type === type && name.bit === bit);
    described.push(row === undefined ? `bit ${bit}` : `'${row.name}' (bit ${bit})`);
  }
  return described.join(', ');
}
