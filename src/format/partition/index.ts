/** Reads the partition table of a device, whichever scheme it is written in. */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { entriesMatch, gptPartitions, parseGptHeader } from './gpt.ts';
import type { Gpt } from './gpt.ts';
import {
  isUsed,
  MBR_SECTOR_BYTES,
  MBR_TYPE_GPT_PROTECTIVE,
  mbrPartitions,
  parseMbr,
} from './mbr.ts';
import type { Mbr } from './mbr.ts';
import { WarningList } from './types.ts';
import type { Partition, PartitionTable } from './types.ts';

export type { Partition, PartitionTable } from './types.ts';

/**
 * The partitions of a device.
 *
 * Garbage is not an error: the scheme is then `none`, and warnings say what looked like a table
 * and was not one. A GPT is believed where the MBR of the disk announces it or is missing; where
 * the first copy is damaged, the second is used, with a warning.
 */
export function readPartitionTable(device: BlockDevice): PartitionTable {
  const reader = new Reader(device);
  const sector = reader.read(0, MBR_SECTOR_BYTES);
  if (sector === undefined) return reader.result({ scheme: 'none' });

  const mbr = parseMbr(sector);
  const used = mbr?.entries.filter(isUsed) ?? [];
  const others = used.filter(({ type }) => type !== MBR_TYPE_GPT_PROTECTIVE);
  const isProtective = others.length < used.length;
  const gpt = readGpt(reader, { isAnnounced: isProtective });

  if (gpt !== undefined && (isProtective || used.length === 0)) {
    if (!isProtective) reader.warnings.add('the protective MBR of the GPT is missing');
    if (others.length > 0) {
      reader.warnings.add(`the MBR beside the GPT has ${others.length} entries; they are ignored`);
    }
    return gptTable(reader, gpt);
  }
  if (gpt !== undefined) {
    reader.warnings.add('the disk has a GPT too, which its MBR does not announce; it is ignored');
  } else if (isProtective && others.length === 0) {
    reader.warnings.add('the MBR announces a GPT, but neither copy of it can be used');
    return reader.result({ scheme: 'none' });
  }
  return mbr === undefined ? reader.result({ scheme: 'none' }) : mbrTable(reader, mbr);
}

/** A GPT that was found, and the sector size that it counts in. */
interface FoundGpt extends Gpt {
  sectorSize: number;
}

function mbrTable(reader: Reader, mbr: Mbr): PartitionTable {
  const source = {
    deviceSize: reader.device.size,
    readSector: (number: number) => reader.read(number * MBR_SECTOR_BYTES, MBR_SECTOR_BYTES),
  };
  const partitions = mbrPartitions(mbr, source, reader.warnings);
  return reader.result({ scheme: 'mbr', diskId: mbr.diskId, partitions });
}

function gptTable(reader: Reader, gpt: FoundGpt): PartitionTable {
  const { sectorSize } = gpt;
  const disk = { deviceSize: reader.device.size, sectorSize };
  const partitions = gptPartitions(gpt, disk, reader.warnings);
  return reader.result({ scheme: 'gpt', sectorSize, diskId: gpt.header.diskGuid, partitions });
}

/**
 * The GPT of the disk: the first copy, held against the second; the second alone where the MBR
 * says that there should be a GPT and the first cannot be used. Without that announcement a copy
 * at the end means nothing: it is what remains of a table that was replaced by something else.
 */
function readGpt(reader: Reader, { isAnnounced }: { isAnnounced: boolean }): FoundGpt | undefined {
  const problems: string[] = [];
  for (const sectorSize of [512, 4096]) {
    const primary = readCopy(reader, sectorSize, 1);
    if ('gpt' in primary) {
      checkBackup(reader, { ...primary.gpt, sectorSize });
      return { ...primary.gpt, sectorSize };
    }
    if (primary.problem !== 'is missing') problems.push(primary.problem);
  }
  const problem = problems[0] ?? 'is missing';
  if (isAnnounced) {
    for (const sectorSize of [512, 4096]) {
      const lastLba = Math.floor(reader.device.size / sectorSize) - 1;
      const backup = readCopy(reader, sectorSize, lastLba);
      if ('gpt' in backup) {
        reader.warnings.add(`the first GPT ${problem}; its copy at the end of the disk is used`);
        return { ...backup.gpt, sectorSize };
      }
    }
  }
  if (problems.length > 0) reader.warnings.add(`the GPT ${problem}`);
  return undefined;
}

/** Warns if the second copy, wherever the first says it is, is damaged or says something else. */
function checkBackup(reader: Reader, { header, sectorSize }: FoundGpt): void {
  const backup = readCopy(reader, sectorSize, header.alternateLba);
  if ('problem' in backup) {
    reader.warnings.add(`the copy of the GPT at the end of the disk ${backup.problem}`);
    return;
  }
  const other = backup.gpt.header;
  const agrees =
    other.diskGuid === header.diskGuid &&
    other.entryCount === header.entryCount &&
    other.entryBytes === header.entryBytes &&
    other.entriesCrc === header.entriesCrc;
  if (!agrees) reader.warnings.add('the two copies of the GPT disagree; the first is used');
}

function readCopy(
  reader: Reader,
  sectorSize: number,
  lba: number,
): { gpt: Gpt } | { problem: string } {
  const sector = lba < 1 ? undefined : reader.read(lba * sectorSize, sectorSize);
  if (sector === undefined) return { problem: 'is missing' };
  const result = parseGptHeader(sector, lba);
  if ('problem' in result) return result;
  const { header } = result;
  const length = header.entryCount * header.entryBytes;
  const entries = reader.read(header.entriesLba * sectorSize, length);
  if (entries === undefined) return { problem: 'has its entries outside the disk' };
  if (!entriesMatch(header, entries)) return { problem: 'has entries with a wrong checksum' };
  return { gpt: { header, entries } };
}

/** The device, and the warnings of reading its table. */
class Reader {
  readonly device: BlockDevice;
  readonly warnings = new WarningList();

  constructor(device: BlockDevice) {
    this.device = device;
  }

  /** Bytes of the device; undefined past its end, and with a warning where it cannot be read. */
  read(offset: number, length: number): Uint8Array | undefined {
    if (offset + length > this.device.size) return undefined;
    const bytes = new Uint8Array(length);
    try {
      this.device.read(bytes, offset);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      this.warnings.add(`cannot read the disk at offset ${offset}: ${error.message}`);
      return undefined;
    }
    return bytes;
  }

  result(found: {
    scheme: PartitionTable['scheme'];
    sectorSize?: number;
    diskId?: string;
    partitions?: Partition[];
  }): PartitionTable {
    const { scheme, sectorSize = 512, diskId = '', partitions = [] } = found;
    return { scheme, sectorSize, diskId, partitions, warnings: this.warnings.toArray() };
  }
}
