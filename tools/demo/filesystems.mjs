/**
 * Just enough of FAT (12, 16 and 32 bits) to list and read the files of a partition, and enough of
 * ext to name one: for machines where the demonstration can't ask the kernel or other programs.
 */

const SECTOR_BYTES = 512;
const DIRECTORY_ENTRY_BYTES = 32;
const Attribute = { VOLUME_ID: 0x08, DIRECTORY: 0x10, LONG_NAME: 0x0f };
/** Directories below directories that are followed. */
const MAX_DEPTH = 8;

/**
 * What a partition holds.
 *
 * @param {(offset: number, length: number) => Buffer} read bytes of the partition
 * @returns {{ type: 'fat' | 'ext' | 'unknown', label: string }}
 */
export function identify(read) {
  const boot = read(0, SECTOR_BYTES);
  const isFat16 = boot.toString('latin1', 54, 57) === 'FAT';
  if (isFat16 || boot.toString('latin1', 82, 85) === 'FAT') {
    const at = isFat16 ? 43 : 71;
    return { type: 'fat', label: boot.toString('latin1', at, at + 11).trim() };
  }
  const superblock = read(1024, 1024);
  if (superblock.readUInt16LE(56) === 0xef53) {
    return { type: 'ext', label: superblock.toString('utf8', 120, 136).replace(/\0.*$/s, '') };
  }
  return { type: 'unknown', label: '' };
}

/** A FAT filesystem. */
export class FatFilesystem {
  #read;
  #bits;
  #fat;
  #dataStart;
  #clusterBytes;
  #clusterCount;
  #root;

  constructor(read) {
    this.#read = read;
    const boot = read(0, SECTOR_BYTES);
    const sectorBytes = boot.readUInt16LE(11);
    const reserved = boot.readUInt16LE(14);
    const rootEntries = boot.readUInt16LE(17);
    const sectors = boot.readUInt16LE(19) || boot.readUInt32LE(32);
    const fatSectors = boot.readUInt16LE(22) || boot.readUInt32LE(36);
    const rootStart = (reserved + boot[16] * fatSectors) * sectorBytes;
    this.#clusterBytes = boot[13] * sectorBytes;
    this.#dataStart = rootStart + rootEntries * DIRECTORY_ENTRY_BYTES;
    this.#clusterCount = Math.floor((sectors * sectorBytes - this.#dataStart) / this.#clusterBytes);
    if (!(this.#clusterBytes > 0 && this.#clusterCount > 0 && fatSectors <= 0x8000)) {
      throw new Error('this is no FAT filesystem');
    }
    this.#bits = this.#clusterCount < 4085 ? 12 : this.#clusterCount < 65525 ? 16 : 32;
    this.#fat = read(reserved * sectorBytes, fatSectors * sectorBytes);
    this.#root =
      rootEntries > 0
        ? read(rootStart, rootEntries * DIRECTORY_ENTRY_BYTES)
        : this.#chain(boot.readUInt32LE(44));
  }

  /** All files and directories, a directory before what is in it. */
  *files(directory = this.#root, prefix = '', depth = 0) {
    for (const entry of this.#entries(directory)) {
      const path = prefix + entry.name;
      if (!entry.isDirectory) {
        yield { path, size: entry.size, content: () => this.#content(entry) };
      } else {
        yield { path: `${path}/`, size: 0 };
        if (depth < MAX_DEPTH) {
          yield* this.files(this.#chain(entry.cluster), `${path}/`, depth + 1);
        }
      }
    }
  }

  #content({ cluster, size }) {
    return cluster === 0 ? Buffer.alloc(0) : this.#chain(cluster).subarray(0, size);
  }

  *#entries(directory) {
    let longName = '';
    for (let at = 0; at + DIRECTORY_ENTRY_BYTES <= directory.length; at += DIRECTORY_ENTRY_BYTES) {
      const entry = directory.subarray(at, at + DIRECTORY_ENTRY_BYTES);
      if (entry[0] === 0) return;
      const attributes = entry[11];
      if (entry[0] === 0xe5) {
        longName = '';
      } else if (attributes === Attribute.LONG_NAME) {
        longName = longNamePart(entry) + longName;
      } else if ((attributes & Attribute.VOLUME_ID) === 0) {
        const name = longName.replace(/[\0\uffff].*$/s, '') || shortName(entry);
        longName = '';
        if (name === '.' || name === '..') continue;
        const cluster = entry.readUInt16LE(20) * 0x10000 + entry.readUInt16LE(26);
        const isDirectory = (attributes & Attribute.DIRECTORY) !== 0;
        yield { name, cluster, size: entry.readUInt32LE(28), isDirectory };
      }
    }
  }

  /** The bytes of all clusters of a chain. */
  #chain(first) {
    const parts = [];
    const isData = (cluster) => cluster >= 2 && cluster < this.#clusterCount + 2;
    for (let cluster = first; isData(cluster); cluster = this.#next(cluster)) {
      // A chain that is longer than the filesystem runs in a circle.
      if (parts.length > this.#clusterCount) throw new Error('a chain of clusters has no end');
      const offset = this.#dataStart + (cluster - 2) * this.#clusterBytes;
      parts.push(this.#read(offset, this.#clusterBytes));
    }
    return Buffer.concat(parts);
  }

  #next(cluster) {
    if (this.#bits === 32) return this.#fat.readUInt32LE(cluster * 4) & 0x0fffffff;
    if (this.#bits === 16) return this.#fat.readUInt16LE(cluster * 2);
    const pair = this.#fat.readUInt16LE(cluster + (cluster >> 1));
    return cluster % 2 === 0 ? pair & 0xfff : pair >> 4;
  }
}

function longNamePart(entry) {
  return [
    [1, 11],
    [14, 26],
    [28, 32],
  ]
    .map(([start, end]) => entry.toString('utf16le', start, end))
    .join('');
}

function shortName(entry) {
  const name = entry.toString('latin1', 0, 8).trimEnd();
  const extension = entry.toString('latin1', 8, 11).trimEnd();
  // Two bits say that the parts are in small letters.
  const [nameIsSmall, extensionIsSmall] = [(entry[12] & 0x08) !== 0, (entry[12] & 0x10) !== 0];
  const shown = nameIsSmall ? name.toLowerCase() : name;
  const shownExtension = extensionIsSmall ? extension.toLowerCase() : extension;
  return shownExtension === '' ? shown : `${shown}.${shownExtension}`;
}
