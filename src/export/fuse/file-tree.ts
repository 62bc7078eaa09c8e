/**
 * The files and directories that a mount shows.
 *
 * The inode number of a node says where in the tree it is (`inode-numbers.ts`), so that several trees
 * of one image agree, whichever of them is asked first; nothing is ever renamed, added, removed or
 * resized, so the kernel may cache every name for good, and every answer where nothing is written. What
 * costs time, like opening a snapshot or writing out a map, happens at the first question that needs it.
 */

import type { BlockDevice, Extent } from '../../device/block-device.ts';
import { Errno } from './errno.ts';
import { InodeNumbers } from './inode-numbers.ts';
import { FileType, FUSE_ROOT_ID, Whence } from './protocol.ts';
import type { Attributes, DirectoryEntry } from './protocol.ts';
import type { DiskView, WritableDisk } from './writable-disk.ts';

/** What a file's bytes come from. */
export interface FileSource {
  /** The device that holds the bytes; opened at the first call if need be. May throw. */
  device(): BlockDevice;
  /** Whether `device()` costs little by now. */
  readonly isOpen: boolean;
  /**
   * Where the bytes are made anew as the image changes: what they are now, for one opener to keep
   * while `device()` goes on to what they are later. May throw.
   */
  snapshot?(): BlockDevice;
  /** What such a text is never longer than, where that is shown as its size; bytes. */
  readonly mostBytes?: number | undefined;
}

/** A part of a source: all of it, or a partition. */
export interface FileRange {
  /** First byte, in the device's offsets. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** What a directory is filled with when it is first looked into. */
export type TreeEntry =
  | {
      kind: 'file';
      name: string;
      source: FileSource;
      /** Default: the whole device. */
      range?: FileRange;
      /** Bytes that it takes on the host, as far as known; default: all of its size. */
      storedBytes?: () => number;
      /** Whether it accepts writes (default false). */
      writable?: boolean;
    }
  | { kind: 'directory'; name: string; entries: () => Iterable<TreeEntry> };

/** What all nodes of a tree have in common. */
export interface TreeOptions {
  uid: number;
  gid: number;
  /**
   * Permission bits of files, those for writing only where they accept writes; directories get
   * search permission where they are readable.
   */
  fileMode: number;
  /** Modification time of everything, in milliseconds since 1970: that of the image. */
  readonly modifiedMs: number;
  /** Size that the filesystem as a whole is said to have: that of the disk. */
  bytes: number;
  /** The disk that accepts writes, where one does; files whose source is this device show it. */
  disk?: WritableDisk | undefined;
  /** Whether files change although nothing is written, so that the kernel must not cache them. */
  hasLiveTexts?: boolean;
}

/** A source that is open from the start. */
export function openSource(device: BlockDevice): FileSource {
  return { device: () => device, isOpen: true };
}

/** What a {@link FileNode} is made of. */
interface FileParts {
  inode: number;
  /** Permission bits. */
  mode: number;
  entry: TreeEntry & { kind: 'file' };
  /** The disk that it shows a part of, where that may change. */
  disk: WritableDisk | undefined;
}

/** A file of the tree. */
export class FileNode implements DiskView {
  readonly kind = 'file';
  readonly inode: number;
  readonly name: Uint8Array;
  readonly mode: number;
  /** First byte, in the offsets of what it shows. */
  readonly offset: number;
  /** The disk that it shows a part of, where that may change. */
  readonly disk: WritableDisk | undefined;
  /** Whether it accepts writes; then there is a {@link disk}. */
  readonly isWritable: boolean;
  isCached = false;
  readonly #source: FileSource;
  readonly #storedBytes: (() => number) | undefined;
  #size: number | undefined;

  constructor({ inode, mode, entry, disk }: FileParts) {
    this.inode = inode;
    this.name = Buffer.from(entry.name);
    this.disk = disk;
    this.isWritable = entry.writable === true && disk !== undefined;
    this.mode = FileType.REGULAR | (this.isWritable ? mode : mode & ANYONE_READS);
    this.offset = entry.range?.offset ?? 0;
    this.#source = entry.source;
    this.#size = entry.range?.length;
    this.#storedBytes = entry.storedBytes;
  }

  /** Whether the bytes are made anew as the image changes; see {@link snapshot}. */
  get isVolatile(): boolean {
    return this.#source.snapshot !== undefined;
  }

  /** Of a volatile file what it holds now; undefined for others. */
  snapshot(): BlockDevice | undefined {
    return this.#source.snapshot?.();
  }

  /** Whether the size can be told without work. */
  get isCheap(): boolean {
    return this.#size !== undefined || this.#source.isOpen;
  }

  /** Bytes. Opens the source if it has to. */
  get size(): number {
    if (this.isVolatile) return this.#source.mostBytes ?? this.#source.device().size;
    return (this.#size ??= this.#source.device().size);
  }

  /**
   * Space for `st_blocks`, in units of 512 bytes. Programs take a file with fewer blocks than bytes
   * for sparse and one without any for empty, so there is at least one page.
   */
  get blocks(): number {
    const all = Math.ceil(this.size / 512);
    if (this.#storedBytes === undefined) return all;
    return Math.min(all, Math.max(8, Math.ceil(this.#storedBytes() / 512)));
  }

  /** Fills `target` from `offset`; the range lies within the file. */
  read(target: Uint8Array, offset: number): void {
    this.#source.device().read(target, this.offset + offset);
  }

  /**
   * Where the next data or hole at or after `offset` starts, as lseek(2) has it; -1 for ENXIO.
   * The end of the file counts as a hole.
   */
  seek(offset: number, whence: number): number {
    const { size } = this;
    if (!(offset < size)) return -1;
    const wantsHole = whence === Whence.SEEK_HOLE;
    if (this.#source.mostBytes !== undefined) return wantsHole ? size : offset;
    const extents: Iterable<Extent> = this.#source
      .device()
      .extents(this.offset + offset, size - offset);
    for (const extent of extents) {
      if (extent.zero === wantsHole) return Math.max(extent.offset - this.offset, offset);
    }
    return wantsHole ? size : -1;
  }
}

/** A directory of the tree. */
export class DirectoryNode {
  readonly kind = 'directory';
  readonly inode: number;
  readonly name: Uint8Array;
  readonly mode: number;
  readonly parent: DirectoryNode;
  readonly #fill: () => Iterable<TreeNode>;
  #children: readonly TreeNode[] | undefined;
  #byName: Map<string, TreeNode> | undefined;

  constructor(
    inode: number,
    mode: number,
    place: { name: string; parent: DirectoryNode | undefined; fill: () => Iterable<TreeNode> },
  ) {
    this.inode = inode;
    this.mode = FileType.DIRECTORY | mode;
    this.name = Buffer.from(place.name);
    this.parent = place.parent ?? this;
    this.#fill = place.fill;
  }

  /** What is in it, in the order of the listing. */
  get children(): readonly TreeNode[] {
    return (this.#children ??= [...this.#fill()]);
  }

  /** The child of that name; `.` and `..` are not children. */
  child(name: string): TreeNode | undefined {
    this.#byName ??= new Map(
      this.children.map((node) => [Buffer.from(node.name).toString('utf8'), node]),
    );
    return this.#byName.get(name);
  }
}

/** A file or directory of the tree. */
export type TreeNode = FileNode | DirectoryNode;

const ANYONE_READS = 0o444;
const DOT = Buffer.from('.');
const DOT_DOT = Buffer.from('..');

/** All nodes of a mount, by inode number. */
export class FileTree {
  readonly options: TreeOptions;
  readonly root: DirectoryNode;
  readonly #nodes = new Map<number, TreeNode>();
  readonly #numbers = new InodeNumbers();

  /** @param entries what the root directory holds */
  constructor(options: TreeOptions, entries: () => Iterable<TreeEntry>) {
    this.options = options;
    const root: TreeEntry = { kind: 'directory', name: '', entries };
    this.root = this.#newDirectory(root, FUSE_ROOT_ID, undefined);
    this.#nodes.set(FUSE_ROOT_ID, this.root);
  }

  /** Size that the filesystem as a whole is said to have. */
  get bytes(): number {
    return this.options.bytes;
  }

  /** The disk that accepts writes, where one does. */
  get disk(): WritableDisk | undefined {
    return this.options.disk;
  }

  /** Whether files change although nothing is written. */
  get hasLiveTexts(): boolean {
    return this.options.hasLiveTexts === true;
  }

  /** How many nodes there are, as far as that can be told without opening anything. */
  get nodeCount(): number {
    return 1 + this.root.children.length;
  }

  /**
   * The node of an inode number; undefined if there is none. Looks into the directories that it is in
   * if nobody has, so it may throw.
   */
  node(inode: number): TreeNode | undefined {
    return this.#nodes.get(inode) ?? this.#find(inode);
  }

  #find(inode: number): TreeNode | undefined {
    let node: TreeNode | undefined = this.root;
    for (const index of this.#numbers.indexes(inode)) {
      if (node?.kind !== 'directory') return undefined;
      node = node.children[index];
    }
    return node?.inode === inode ? node : undefined;
  }

  /** The node at a path from the root, as in `/partitions/1-boot.raw`. */
  resolve(path: string): TreeNode | undefined {
    let node: TreeNode | undefined = this.root;
    for (const name of path.split('/')) {
      if (name === '') continue;
      if (node?.kind !== 'directory') return undefined;
      node = node.child(name);
    }
    return node;
  }

  /** What stat(2) says of a node. Opens its source if it has to, so it may throw. */
  attributes(node: TreeNode): Attributes {
    const { uid, gid, modifiedMs } = this.options;
    const isFile = node.kind === 'file';
    return {
      inode: node.inode,
      size: isFile ? node.size : 0,
      blocks: isFile ? node.blocks : 0,
      mode: node.mode,
      linkCount: isFile ? 1 : 2,
      uid,
      gid,
      modifiedMs,
    };
  }

  /**
   * The entry of a directory's listing at a position: 0 is `.`, 1 is `..`, then the children.
   * Undefined after the last.
   */
  listed(directory: DirectoryNode, position: number): ListedNode | undefined {
    if (position === 0) return { node: directory, name: DOT, isChild: false };
    if (position === 1) return { node: directory.parent, name: DOT_DOT, isChild: false };
    const node = directory.children[position - 2];
    return node && { node, name: node.name, isChild: true };
  }

  #newDirectory(
    entry: TreeEntry & { kind: 'directory' },
    inode: number,
    parent: DirectoryNode | undefined,
  ): DirectoryNode {
    const readMode = this.options.fileMode & ANYONE_READS;
    const mode = readMode | (readMode >>> 2);
    const directory: DirectoryNode = new DirectoryNode(inode, mode, {
      name: entry.name,
      parent,
      fill: () => this.#fill(directory, entry.entries()),
    });
    return directory;
  }

  *#fill(directory: DirectoryNode, entries: Iterable<TreeEntry>): Generator<TreeNode> {
    // All at once: if reading the entries fails half-way, there is none.
    for (const [index, entry] of [...entries].entries()) {
      const inode = this.#numbers.child(directory.inode, index);
      const node =
        entry.kind === 'directory'
          ? this.#newDirectory(entry, inode, directory)
          : this.#newFile(entry, inode);
      this.#nodes.set(inode, node);
      yield node;
    }
  }

  #newFile(entry: TreeEntry & { kind: 'file' }, inode: number): FileNode {
    const { disk, fileMode } = this.options;
    // Other devices are not opened just to compare them.
    const showsDisk = disk !== undefined && entry.source.isOpen;
    return new FileNode({
      inode,
      mode: fileMode,
      entry,
      disk: showsDisk && entry.source.device() === disk.device ? disk : undefined,
    });
  }
}

/** An entry of a listing. */
export interface ListedNode extends Pick<DirectoryEntry, 'name'> {
  node: TreeNode;
  /** False for `.` and `..`. */
  isChild: boolean;
}

/** The error number for using a node as what it is not; 0 if it is a file. */
export function fileErrno(node: TreeNode | undefined): number {
  if (node === undefined) return Errno.ENOENT;
  return node.kind === 'file' ? 0 : Errno.EISDIR;
}
