/** Maps as text, laid out as `qemu-img map` does, in pieces: a large disk has millions of runs. */

import { Qcow2Error } from '../errors.ts';
import type { MapEntry } from './map.ts';

/** Characters of a piece, at least, but for the last. */
const PIECE_CHARACTERS = 64 * 1024;

/** A map as a JSON array with an entry a line. */
export function* formatMapJson(entries: Iterable<MapEntry>): Generator<string> {
  let piece = '[';
  let isFirst = true;
  for (const entry of entries) {
    piece += isFirst ? jsonEntry(entry) : `,\n${jsonEntry(entry)}`;
    isFirst = false;
    if (piece.length >= PIECE_CHARACTERS) {
      yield piece;
      piece = '';
    }
  }
  yield `${piece}]\n`;
}

function jsonEntry({ start, length, depth, present, zero, data, offset }: MapEntry): string {
  const hostOffset = offset === undefined ? '' : `, "offset": ${offset}`;
  return (
    `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, ` +
    `"zero": ${zero}, "data": ${data}${hostOffset}}`
  );
}

/**
 * The runs that are stored as they are, as a table for people.
 * @throws {Qcow2Error} `UNSUPPORTED` at a run that is not in a host file as it is, after the
 * rows before it
 */
export function* formatMapTable(entries: Iterable<MapEntry>): Generator<string> {
  let piece = row('Offset', 'Length', 'Mapped to', 'File');
  for (const { start, length, zero, data, offset, file = '' } of entries) {
    if (data && offset === undefined) {
      yield piece;
      throw new Qcow2Error('UNSUPPORTED', 'some of its clusters are compressed', {
        hint: 'say --output=json to see the map',
      });
    }
    if (!data || zero || offset === undefined) continue;
    piece += row(hexadecimal(start), hexadecimal(length), hexadecimal(offset), file);
    if (piece.length >= PIECE_CHARACTERS) {
      yield piece;
      piece = '';
    }
  }
  yield piece;
}

function row(start: string, length: string, offset: string, file: string): string {
  return `${start.padEnd(16)}${length.padEnd(16)}${offset.padEnd(16)}${file}\n`;
}

/** As C's `%#x`: zero has no prefix. */
function hexadecimal(number: number): string {
  return number === 0 ? '0' : `0x${number.toString(16)}`;
}
