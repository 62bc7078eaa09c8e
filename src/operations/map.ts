/** Where the disk's bytes are, run by run, with the words of `qemu-img map` (QEMU 7.2). */

import type { Image } from '../chain/open.ts';
import type { Extent } from '../device/block-device.ts';
import { padToSector } from './sector-padded.ts';
import { shownNames } from './file-names.ts';

/** A run of the disk. */
export interface MapEntry {
  /** Bytes. */
  start: number;
  /** Bytes. */
  length: number;
  /** Layer that answers: 0 is the image itself, 1 its backing file, … */
  depth: number;
  /** Whether some layer of the chain has an entry for the run. */
  present: boolean;
  /** Whether the run is known to read as zeroes. */
  zero: boolean;
  /** Whether bytes are stored for it. */
  data: boolean;
  /** Where it starts in `file`; compressed runs and runs without space have none. */
  offset?: number | undefined;
  /** Name of the host file. */
  file?: string | undefined;
}

/** Which part of the disk is mapped. */
export interface MapOptions {
  /** Bytes (default 0). Past the end there is nothing. */
  startOffset?: number | undefined;
  /** Bytes (default: to the end). */
  maxLength?: number | undefined;
}

/**
 * The runs of the disk in order, those that can be told as one merged. There is always one, if
 * only of no bytes.
 *
 * @throws {Qcow2Error} whatever the image's metadata is damaged by, when the walk comes to it
 */
export function* mapImage(image: Image, options: MapOptions = {}): Generator<MapEntry> {
  const device = padToSector(image);
  const names = shownNames(image);
  const { startOffset = 0, maxLength = Infinity } = options;
  const length = Math.max(0, Math.min(device.size - startOffset, maxLength));
  let current: MapEntry | undefined;
  if (length > 0) {
    for (const extent of device.extents(startOffset, length)) {
      const next = entryOf(extent, names);
      if (current !== undefined && continuesEntry(current, next)) {
        current.length += next.length;
      } else {
        if (current !== undefined) yield current;
        current = next;
      }
    }
  }
  yield current ?? emptyEntry(startOffset);
}

function emptyEntry(start: number): MapEntry {
  return { start, length: 0, depth: 0, present: false, zero: false, data: false };
}

function entryOf(extent: Extent, names: ReadonlyMap<string, string>): MapEntry {
  const { offset, length, kind, zero, present, depth, hostOffset, hostFile } = extent;
  // What lies past the end of a backing file is told of the layer above it, as absent.
  const isPastBacking = kind === 'hole' && present;
  return {
    start: offset,
    length,
    depth: isPastBacking ? depth - 1 : depth,
    present: present && !isPastBacking,
    zero,
    data: kind === 'data' || kind === 'compressed',
    offset: hostOffset,
    file:
      hostFile === undefined || hostOffset === undefined
        ? undefined
        : (names.get(hostFile) ?? hostFile),
  };
}

function continuesEntry(entry: MapEntry, next: MapEntry): boolean {
  return (
    entry.zero === next.zero &&
    entry.data === next.data &&
    entry.depth === next.depth &&
    entry.present === next.present &&
    entry.file === next.file &&
    (entry.offset === undefined
      ? next.offset === undefined
      : next.offset === entry.offset + entry.length)
  );
}
