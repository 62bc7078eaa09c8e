/** What a partition table says, whichever scheme it is written in. */

/** One partition of a {@link PartitionTable}. */
export interface Partition {
  /** The number that Linux gives it: logical partitions of an MBR count from 5. */
  number: number;
  /** First byte on the device. */
  offset: number;
  /** Bytes; at least one sector, and never past the end of the device. */
  length: number;
  /** MBR: the type byte as two hexadecimal digits (`83`). GPT: the type GUID in upper case. */
  type: string;
  /** The type in words; `unknown` if it has none here. */
  typeName: string;
  /** The label of a GPT partition; an MBR has none (''). */
  name: string;
  /**
   * Unique GUID in upper case (GPT), or the disk's identifier and the number (MBR, `3a589d82-01`),
   * as in PARTUUID on Linux.
   */
  uuid: string;
  /** The active flag (MBR) or the legacy BIOS bootable attribute (GPT). */
  bootable: boolean;
  /** Whether it is an extended MBR partition: a container whose content are logical ones. */
  isContainer: boolean;
}

/** The partitions of a device, and what was wrong with their table. */
export interface PartitionTable {
  /** `none` where the device holds no table, a filesystem for example. */
  scheme: 'gpt' | 'mbr' | 'none';
  /** Bytes of a sector in which the table counts: 512, or 4096 for some GPTs. */
  sectorSize: number;
  /** Disk GUID in upper case (GPT), `0x` and eight digits (MBR), '' where there is no table. */
  diskId: string;
  /** In the order of their numbers. */
  partitions: Partition[];
  /** One line for each thing that is wrong or was left out. */
  warnings: string[];
}

/** Warnings kept of one table: garbage must not make thousands of lines. */
const MAX_WARNINGS = 16;

/** Collects warnings, and counts those beyond the first sixteen. */
export class WarningList {
  readonly #lines: string[] = [];
  #dropped = 0;

  /** Adds one line. */
  add(line: string): void {
    if (this.#lines.length < MAX_WARNINGS) this.#lines.push(line);
    else this.#dropped++;
  }

  /** The lines, with a last one that counts those left out. */
  toArray(): string[] {
    if (this.#dropped === 0) return [...this.#lines];
    return [...this.#lines, `and ${this.#dropped} more`];
  }
}

/** Where a partition lies, before it is held against the device. */
export interface PartitionRange {
  /** As warnings name it: `partition 3`. */
  label: string;
  /** First byte. */
  offset: number;
  /** Bytes. */
  length: number;
}

/**
 * Bytes of a partition that are on the device: fewer than it claims, with a warning, if it reaches
 * past the end; 0, with a warning, if it starts there.
 */
export function clampToDevice(
  { label, offset, length }: PartitionRange,
  deviceSize: number,
  warnings: WarningList,
): number {
  if (offset >= deviceSize) {
    warnings.add(`${label} starts past the end of the disk and was left out`);
    return 0;
  }
  if (offset + length > deviceSize) {
    warnings.add(`${label} reaches past the end of the disk and was cut off there`);
    return deviceSize - offset;
  }
  return length;
}
