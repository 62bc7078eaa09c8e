/** ISO 9660 (ECMA-119): the primary volume descriptor, in one of the sectors from 16 on. */

import { optionalSize, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const SECTOR_BYTES = 2048;
const FIRST_DESCRIPTOR = 16;
/** Descriptors that are looked at; a disc has three or four. */
const MAX_DESCRIPTORS = 32;
const PRIMARY = 1;
const TERMINATOR = 255;

/** Recognises ISO 9660; its UUID is the date of its last change, or of its making. */
export function recognizeIso9660(reader: Reader): Filesystem | undefined {
  for (let index = 0; index < MAX_DESCRIPTORS; index++) {
    const descriptor = reader.at((FIRST_DESCRIPTOR + index) * SECTOR_BYTES, SECTOR_BYTES);
    if (descriptor?.has(1, 'CD001') !== true) return undefined;
    const type = descriptor.u8(0);
    if (type === TERMINATOR) return undefined;
    if (type === PRIMARY) return describe(descriptor);
  }
  return undefined;
}

function describe(descriptor: Structure): Filesystem {
  return {
    type: 'iso9660',
    usage: 'filesystem',
    version: '',
    label: descriptor.text(40, 32),
    uuid: formatDate(descriptor, 830) || formatDate(descriptor, 813),
    ...optionalSize(sizeOf(descriptor.u32(80), descriptor.u16(128))),
  };
}

/** Sixteen digits, from the year to hundredths of a second; '' if there is no date. */
function formatDate(descriptor: Structure, offset: number): string {
  const digits = descriptor.latin1(offset, 16);
  if (!/^\d{16}$/.test(digits) || /^0*$/.test(digits)) return '';
  return digits.replace(/^(.{4})(..)(..)(..)(..)(..)(..)$/, '$1-$2-$3-$4-$5-$6-$7');
}
