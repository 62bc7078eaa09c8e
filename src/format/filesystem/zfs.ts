/**
 * A member of a ZFS pool ("ZFS On-Disk Specification", chapter 1): labels of 256 KiB, two at the
 * start and two at the end, each with a list of names and values and a ring of uberblocks.
 */

import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const KiB = 1024;
const LABEL_BYTES = 256 * KiB;
const PAIRS_OFFSET = 16 * KiB;
const PAIRS_BYTES = 112 * KiB;
const UBERBLOCKS_OFFSET = 128 * KiB;
const UBERBLOCKS_BYTES = 128 * KiB;
const UBERBLOCK_STEP = KiB;
const UBERBLOCK_MAGIC = 0x00ba_b10c;
/** Uberblocks that make a pool: fewer are what is left of one that was partly overwritten. */
const MIN_UBERBLOCKS = 4;

const ENCODING_XDR = 1;
const TYPE_UINT64 = 8;
const TYPE_STRING = 9;
/** Pairs of the outermost list that are looked at; a label has about a dozen. */
const MAX_PAIRS = 256;

/** Recognises a member of a pool; label and UUID are the name and the number of the pool. */
export function recognizeZfs(reader: Reader): Filesystem | undefined {
  const ends = Math.floor(reader.size / LABEL_BYTES) * LABEL_BYTES;
  const labels = [0, LABEL_BYTES, ends - 2 * LABEL_BYTES, ends - LABEL_BYTES];
  let uberblocks = 0;
  let place: number | undefined;
  for (const label of new Set(labels.filter((offset) => offset >= 0))) {
    // Most devices are told apart here, by 12 bytes in place of 128 KiB.
    if (!isXdrList(reader.at(label + PAIRS_OFFSET, 12))) continue;
    const count = countUberblocks(reader.at(label + UBERBLOCKS_OFFSET, UBERBLOCKS_BYTES));
    if (count > 0) place ??= label;
    uberblocks += count;
    if (uberblocks >= MIN_UBERBLOCKS) break;
  }
  if (place === undefined || uberblocks < MIN_UBERBLOCKS) return undefined;
  const { name, guid } = readPairs(reader.at(place + PAIRS_OFFSET, PAIRS_BYTES));
  return { type: 'zfs_member', usage: 'member', version: '', label: name, uuid: guid };
}

/** Whether a list begins as those of labels do: in XDR, of version 0. */
function isXdrList(head: Structure | undefined): boolean {
  return head?.u8(0) === ENCODING_XDR && head.u32be(4) === 0;
}

function countUberblocks(ring: Structure | undefined): number {
  if (ring === undefined) return 0;
  let count = 0;
  for (let offset = 0; offset < UBERBLOCKS_BYTES; offset += UBERBLOCK_STEP) {
    if (ring.u64(offset) === UBERBLOCK_MAGIC || ring.u64be(offset) === UBERBLOCK_MAGIC) count++;
  }
  return count;
}

/**
 * Name and number of the pool, out of a list in XDR: a version and flags, then for each pair its
 * size, its size in memory, the name (its length, and bytes up to a multiple of four), the type, the
 * number of values, and the value.
 */
function readPairs(list: Structure | undefined): { name: string; guid: string } {
  const found = { name: '', guid: '' };
  if (list === undefined) return found;
  let pair = 12;
  for (let count = 0; count < MAX_PAIRS && pair + 24 <= PAIRS_BYTES; count++) {
    const pairBytes = list.u32be(pair);
    const nameBytes = list.u32be(pair + 8);
    const type = pair + 12 + Math.ceil(nameBytes / 4) * 4;
    const value = type + 8;
    if (pairBytes < 24 || value + 8 > Math.min(pair + pairBytes, PAIRS_BYTES)) break;
    const name = list.text(pair + 12, nameBytes);
    if (name === 'name' && list.u32be(type) === TYPE_STRING) {
      const bytes = list.u32be(value);
      if (value + 4 + bytes <= PAIRS_BYTES) found.name = list.text(value + 4, bytes);
    }
    if (name === 'pool_guid' && list.u32be(type) === TYPE_UINT64) {
      found.guid = list.u64exact(value, { bigEndian: true }).toString();
    }
    pair += pairBytes;
  }
  return found;
}
