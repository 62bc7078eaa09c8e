/** Archives for the kernel's initial filesystem: cpio in its "newc" form. */

/** A file, directory, symbolic link or device in an archive. */
export interface CpioEntry {
  /** Path without a leading `/`. */
  name: string;
  /** Type and permissions, as in stat(2). */
  mode: number;
  /** What is in the file, or where the link points. */
  data?: Uint8Array;
  /** Of a device. */
  device?: readonly [major: number, minor: number];
}

/** Puts entries into an archive, owned by root, in the order given. */
export function packCpio(entries: readonly CpioEntry[]): Buffer {
  const trailer: CpioEntry = { name: 'TRAILER!!!', mode: 0 };
  return Buffer.concat(
    [...entries, trailer].flatMap((entry, index) => packEntry(entry, index + 1)),
  );
}

function packEntry({ name, mode, data = new Uint8Array(0), device }: CpioEntry, inode: number) {
  const [major, minor] = device ?? [0, 0];
  // Inode, mode, owner, group, links, time, size, device of the file, device it is, name, checksum.
  const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length + 1, 0];
  const numbers = fields.map((field) => field.toString(16).padStart(8, '0'));
  const header = Buffer.from(`070701${numbers.join('')}${name}\0`);
  return [header, padding(header.length), data, padding(data.length)];
}

/** What is missing to a multiple of four bytes. */
function padding(length: number): Buffer {
  return Buffer.alloc((4 - (length % 4)) % 4);
}
