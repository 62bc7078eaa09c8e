/**
 * The demonstration image: a small disk with a GPT, a FAT and an ext4 partition with files in
 * them, two internal snapshots, and an overlay on top.
 */

import {
  copyFileSync,
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pngOf } from './png.mjs';
import { Qcow2Bytes } from './qcow2-bytes.mjs';
import { deriveExpectation, EPOCH, IMAGES, qemuIo, run, writeSidecar } from './tools.mjs';

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
const BOOT = { start: 1 * MiB, length: 8 * MiB };
const ROOT = { start: 9 * MiB, length: 54 * MiB };

const PARTITIONS = `label: gpt
label-id: 7D3A5C0E-1B52-4E0F-9A41-0C1F2E3D4B5A
first-lba: 34
start=2048, size=16384, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=3E5A7F10-0001-4C2B-8D6E-51C0FFEE0001, name="BOOT"
start=18432, size=110592, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=3E5A7F10-0002-4C2B-8D6E-51C0FFEE0002, name="root"
`;

const OS_RELEASE = (version) => `NAME="Juniper"
ID=juniper
VERSION_ID="${version}"
PRETTY_NAME="Juniper ${version} (demonstration)"
HOME_URL="https://juniper.example/"
`;

const BOOT_FILES = {
  'loader/loader.conf': 'default juniper.conf\ntimeout 3\nconsole-mode keep\n',
  'loader/entries/juniper.conf':
    'title   Juniper\nlinux   /vmlinuz-6.1\noptions root=LABEL=root ro quiet\n',
  'README.TXT': 'The boot partition. The kernel is a placeholder: this disk boots nothing.\r\n',
};

const ROOT_FILES = {
  'README.md': `# A demonstration disk

This filesystem is inside a qcow2 image. If you read this through a mount, the whole way worked:
the image's tables, the partition table, and the filesystem's driver on top.

- \`etc/hostname\` differs between the two snapshots, the disk as it is, and the overlay.
- \`var/lib/sparse.img\` is 16 MiB of which 12 KiB are stored.
- \`home/ada/pictures/gradient.png\` is a picture that any viewer shows.
`,
  'etc/os-release': OS_RELEASE('1.0'),
  'etc/hostname': 'installer\n',
  'etc/fstab': 'LABEL=root / ext4 errors=remount-ro 0 1\nLABEL=BOOT /boot vfat umask=0077 0 2\n',
  'etc/motd': 'Freshly installed. Nothing is configured yet.\n',
  'etc/network/interfaces': 'auto lo\niface lo inet loopback\n',
  'home/ada/notes/todo.txt': '- write the second program\n- find the first bug\n',
  'home/ada/notes/2024/january/week-1.txt': 'Read the specification. All of it.\n',
  'usr/bin/hello': '#!/bin/sh\necho "hello from inside the image"\n',
  'usr/share/doc/hello/copyright': 'Public domain.\n',
  'var/log/install.log': Array.from(
    { length: 400 },
    (_, line) => `2024-01-01T00:${String(line % 60).padStart(2, '0')} unpacked package ${line}\n`,
  ).join(''),
};

/** Bytes that look like a program: they do not compress, and are the same each time. */
function noise(lengthBytes, seed) {
  const bytes = Buffer.alloc(lengthBytes);
  let state = seed;
  for (let at = 0; at < lengthBytes; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes.writeUInt32LE((state ^ (state >>> 15)) >>> 0, at);
  }
  return bytes;
}

function writeTree(root, files) {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
}

function writeSparseFile(path) {
  mkdirSync(dirname(path), { recursive: true });
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 16 * MiB);
  for (const offset of [0, 5 * MiB, 16 * MiB - 4096]) {
    writeSync(
      fd,
      Buffer.alloc(4096, `at ${offset}: these 4096 bytes are stored\n`),
      0,
      4096,
      offset,
    );
  }
  closeSync(fd);
}

/** A raw disk that is changed step by step; keeps its partitions as files of their own. */
class Disk {
  constructor(directory) {
    this.directory = directory;
    this.raw = join(directory, 'disk.raw');
    this.boot = join(directory, 'boot.fat');
    this.root = join(directory, 'root.ext4');
  }

  create() {
    writeFileSync(this.raw, '');
    run('truncate', ['-s', String(DISK_BYTES), this.raw]);
    run('sfdisk', ['--quiet', this.raw], { input: PARTITIONS });
    this.#createBoot();
    this.#createRoot();
    this.assemble();
  }

  #createBoot() {
    run('truncate', ['-s', String(BOOT.length), this.boot]);
    run('mkfs.vfat', ['--invariant', '-i', 'B007B007', '-n', 'BOOT', this.boot]);
    const tree = join(this.directory, 'boot');
    writeTree(tree, { ...BOOT_FILES, 'vmlinuz-6.1': noise(300_000, 6) });
    run('mmd', ['-i', this.boot, '::loader', '::loader/entries']);
    for (const name of [...Object.keys(BOOT_FILES), 'vmlinuz-6.1']) {
      utimesSync(join(tree, name), EPOCH, EPOCH);
      run('mcopy', ['-m', '-i', this.boot, join(tree, name), `::${name}`]);
    }
  }

  #createRoot() {
    const tree = join(this.directory, 'root');
    writeTree(tree, {
      ...ROOT_FILES,
      'home/ada/pictures/gradient.png': pngOf(160, 100),
      'usr/lib/libjuniper.so.1': noise(900_000, 1),
    });
    writeSparseFile(join(tree, 'var/lib/sparse.img'));
    symlinkSync('libjuniper.so.1', join(tree, 'usr/lib/libjuniper.so'));
    run('chmod', ['755', join(tree, 'usr/bin/hello')]);
    run('find', [tree, '-exec', 'touch', '-h', '-d', `@${EPOCH}`, '{}', '+']);
    run('truncate', ['-s', String(ROOT.length), this.root]);
    run('mke2fs', [
      ...['-q', '-t', 'ext4', '-L', 'root', '-U', '5e1f0d6a-77aa-4c5e-9d0f-2b8e3a6c9d01'],
      ...['-E', 'hash_seed=9c0e1d2f-3344-4556-8778-99aabbccddee,root_owner=0:0,lazy_itable_init=0'],
      ...[
        '-O',
        '^has_journal,^orphan_file,^metadata_csum_seed',
        '-b',
        '4096',
        '-d',
        tree,
        this.root,
      ],
    ]);
    // mke2fs takes the time of the last status change from the host's files, which has no setter.
    const names = run('find', ['.', '-printf', '/%P\n'], { cwd: tree }).trim().split('\n').sort();
    this.#debugfs(names.map((name) => `set_inode_field ${name} ctime @${EPOCH}`));
  }

  /** Replaces files of the ext4 partition. */
  changeRoot(files) {
    const commands = [];
    for (const [index, [name, content]] of Object.entries(files).entries()) {
      const source = join(this.directory, `change-${index}`);
      writeFileSync(source, content);
      utimesSync(source, EPOCH, EPOCH);
      if (name in ROOT_FILES || this.changed?.has(name)) commands.push(`rm /${name}`);
      commands.push(`write ${source} /${name}`);
      for (const field of ['atime', 'ctime', 'mtime', 'crtime']) {
        commands.push(`set_inode_field /${name} ${field} @${EPOCH}`);
      }
    }
    this.changed = new Set([...(this.changed ?? []), ...Object.keys(files)]);
    this.#debugfs(commands);
    this.assemble();
  }

  #debugfs(commands) {
    const script = join(this.directory, 'debugfs.commands');
    writeFileSync(script, commands.join('\n'));
    run('debugfs', ['-w', '-f', script, this.root]);
  }

  assemble() {
    const copy = (file, start) =>
      run('dd', [
        ...[`if=${file}`, `of=${this.raw}`, 'bs=1M', `seek=${start / MiB}`],
        ...['conv=notrunc,sparse', 'status=none'],
      ]);
    // `sparse` skips zeroes, so what was there before has to go first.
    run('fallocate', [
      '-p',
      '-o',
      String(BOOT.start),
      '-l',
      String(BOOT.length + ROOT.length),
      this.raw,
    ]);
    copy(this.boot, BOOT.start);
    copy(this.root, ROOT.start);
  }
}

/** Writes what differs between two raw files into `image`. */
function writeDifference(image, before, after, directory) {
  const [a, b] = [readFileSync(before), readFileSync(after)];
  const step = 4096;
  const commands = [];
  for (let at = 0; at < b.length; at += step) {
    if (a.compare(b, at, at + step, at, at + step) === 0) continue;
    const piece = join(directory, `piece-${at}`);
    writeFileSync(piece, b.subarray(at, at + step));
    commands.push(`write -s ${piece} ${at} ${step}`);
  }
  qemuIo(image, commands);
}

/** Makes `images/demo.qcow2` and `images/demo-overlay.qcow2`. */
export function generateDemo() {
  const directory = mkdtempSync(join(tmpdir(), 'qcow2-demo-'));
  try {
    const disk = new Disk(directory);
    const previous = join(directory, 'previous.raw');
    const image = join(directory, 'demo.qcow2');
    const advance = (target, files) => {
      run('cp', ['--sparse=always', disk.raw, previous]);
      disk.changeRoot(files);
      writeDifference(target, previous, disk.raw, directory);
    };

    disk.create();
    run('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', disk.raw, image]);
    run('qemu-img', ['snapshot', '-c', 'installed', image]);
    advance(image, {
      'etc/hostname': 'juniper\n',
      'etc/motd': 'Welcome to Juniper.\n',
      'etc/network/interfaces': 'auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n',
    });
    run('qemu-img', ['snapshot', '-c', 'configured', image]);
    advance(image, {
      'etc/os-release': OS_RELEASE('1.1'),
      'home/ada/notes/todo.txt': '- find the second bug\n',
      'var/log/update.log': 'updated to 1.1\n',
    });
    Qcow2Bytes.patch(image, (bytes) => bytes.dateSnapshots(EPOCH));
    copyFileSync(image, join(IMAGES, 'demo.qcow2'));

    const overlay = join(directory, 'demo-overlay.qcow2');
    const options = ['-f', 'qcow2', '-F', 'qcow2', '-b', 'demo.qcow2', 'demo-overlay.qcow2'];
    run('qemu-img', ['create', '-q', ...options], { cwd: directory });
    advance(overlay, {
      'etc/hostname': 'overlay\n',
      'home/ada/notes/only-in-the-overlay.txt': 'The base image does not have this file.\n',
    });
    copyFileSync(overlay, join(IMAGES, 'demo-overlay.qcow2'));
  } finally {
    rmSync(directory, { recursive: true });
  }
  writeDemoSidecars();
}

function writeDemoSidecars() {
  const layout = ['gpt', 'fat', 'ext4', 'snapshots', 'zlib'];
  writeSidecar(IMAGES, 'demo', {
    description:
      'A 64 MiB disk with a GPT, a FAT partition (BOOT) and an ext4 partition (root) with files; ' +
      'snapshots "installed" and "configured" of earlier states; partly compressed',
    features: layout,
    files: ['demo.qcow2'],
    command: 'node images/generate.mjs demo',
    expect: deriveExpectation(IMAGES, 'demo.qcow2'),
  });
  writeSidecar(IMAGES, 'demo-overlay', {
    description: 'An overlay on demo.qcow2 that changes etc/hostname and adds a file',
    features: ['backing-file', ...layout.slice(0, 3)],
    files: ['demo-overlay.qcow2', 'demo.qcow2'],
    command: 'node images/generate.mjs demo',
    expect: deriveExpectation(IMAGES, 'demo-overlay.qcow2'),
  });
}
