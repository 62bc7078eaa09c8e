/** Random damage to the metadata of an image, the same for the same seed. */

import { randomNumbers } from '../bad-input/mutations.ts';
import type { CheckSubject, Region } from './check-subjects.ts';
import type { Damaged } from './corrupt.ts';

/** Values that tables hold and checks trip over. */
const TELLING_VALUES = [
  ...[0n, 1n, 2n, 0x200n, 0x1000n, 0xffff_ffff_ffff_ffffn, 1n << 63n, 1n << 62n, 3n << 62n],
  ...[0x00ff_ffff_ffff_fe00n, (1n << 63n) - 512n, (1n << 53n) - 512n, 1n << 53n, 1n << 55n],
];
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** Damages a copy of an image's metadata in one to four places, of any kind as likely as another. */
export function damageMetadata({ bytes: sound, regions, clusterSize }: CheckSubject, seed: number) {
  const random = randomNumbers(seed);
  // The first numbers of neighbouring seeds resemble each other.
  for (let skip = 0; skip < 8; skip++) random();
  const pick = <T>(from: readonly T[]): T => from[random() % from.length]!;
  const kinds = [...new Set(regions.map(({ kind }) => kind))];
  const tables = kinds.filter((kind) => !/header|bitmap (extension|directory)/.test(kind));
  let bytes = Buffer.from(sound);
  const pickWord = (): { kind: string; at: number } => {
    // What the header says keeps most images from being checked at all.
    const kind = random() % 4 === 0 ? pick(kinds) : pick(tables);
    const region: Region = pick(regions.filter((candidate) => candidate.kind === kind));
    const words = Math.max(1, region.length >> 3);
    let at = region.offset;
    // Words that hold something are the more telling ones.
    for (let attempt = 0; attempt < 6; attempt++) {
      at = region.offset + 8 * (random() % words);
      if (bytes.readBigUInt64BE(at) !== 0n) break;
    }
    return { kind, at };
  };
  const anyCluster = (): bigint =>
    BigInt((random() % (Math.ceil(bytes.length / clusterSize) + 3)) * clusterSize);
  const changes: string[] = [];
  const count = 1 + (random() % 4);
  for (let change = 0; change < count; change++) {
    const { kind, at } = pickWord();
    const before = bytes.readBigUInt64BE(at);
    switch (random() % 10) {
      case 0:
        bytes.writeBigUInt64BE(pick(TELLING_VALUES), at);
        break;
      case 1:
        bytes.writeBigUInt64BE(bytes.readBigUInt64BE(pickWord().at), at);
        break;
      case 2:
        bytes[at + (random() % 8)] = random();
        break;
      case 3:
        bytes.writeBigUInt64BE(anyCluster(), at);
        break;
      case 4:
        bytes.writeBigUInt64BE(anyCluster() | COPIED, at);
        break;
      case 5:
        // A compressed cluster that begins anywhere and has a few sectors.
        bytes.writeBigUInt64BE((anyCluster() + BigInt(random() % clusterSize)) | COMPRESSED, at);
        break;
      case 6:
        bytes.writeBigUInt64BE(BigInt.asUintN(64, before + BigInt(clusterSize)), at);
        break;
      default: {
        const bit = random() % 64;
        bytes[at + (bit >> 3)]! ^= 1 << (bit & 7);
      }
    }
    changes.push(`${kind}: 0x${bytes.readBigUInt64BE(at).toString(16)} at ${at}`);
  }
  if (random() % 12 === 0) {
    const end = pickWord().at + (random() % 1024);
    const length = Math.max(clusterSize, Math.min(bytes.length, end));
    bytes = bytes.subarray(0, length);
    changes.push(`cut at ${length}`);
  }
  return { bytes, changes } satisfies Damaged;
}
