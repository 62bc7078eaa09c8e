/**
 * `npm run demo`: shows what this project does, on an image of this repository. Mounts it, lists
 * the tree, shows files from inside its filesystems, serves it over NBD and reads it back.
 */

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { createInterface } from 'node:readline';
import { readExtFile, showInside } from './demo/inside.mjs';
import { NbdClient } from './demo/nbd-client.mjs';
import { hasProgram } from './install-peers.mjs';
import { prepare, ROOT } from './prepare.mjs';

const CLI = join(ROOT, 'dist/cli.cjs');
const IMAGE = 'images/demo.qcow2';
const OVERLAY = 'images/demo-overlay.qcow2';
const READ_BYTES = 1024 * 1024;

process.chdir(ROOT);
prepare({ types: false });
const library = await import(join(ROOT, 'dist/index.js'));

const scratch = mkdtempSync(join(tmpdir(), 'qcow2-demo-'));
/** What is to be undone, last first; also after Ctrl-C and errors. */
const endings = [() => rmSync(scratch, { recursive: true, force: true })];
const atEnd = (action) => endings.push(action);
const undoAll = () => {
  while (endings.length > 0) endings.pop()();
};
process.on('exit', undoAll);
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));

const say = (text) => console.log(text);
const title = (text) => say(`\n== ${text}`);

/** Runs our command, showing how it would be typed. */
function qcow2(...args) {
  say(`$ qcow2 ${args.join(' ')}`);
  const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  say((stdout + stderr).trimEnd());
  return status === 0;
}

function showPartitionTable() {
  const disk = library.openDevice(IMAGE);
  try {
    const { scheme, partitions } = library.readPartitionTable(disk);
    say(`scheme: ${scheme}`);
    for (const { number, offset, length, typeName, name } of partitions) {
      say(`  ${number}  ${name.padEnd(8)} offset ${offset}, ${length} bytes, ${typeName}`);
    }
    return partitions;
  } finally {
    disk.close();
  }
}

/** Mounts an image below the scratch directory; undefined, with the reason shown, if it can't. */
function mount(image, name) {
  const directory = join(scratch, name);
  if (!existsSync('/dev/fuse') && process.platform === 'linux') {
    say('This machine has no /dev/fuse, so nothing can be mounted (a container needs');
    say('--device /dev/fuse --cap-add SYS_ADMIN). The library and NBD do the rest.');
    return undefined;
  }
  if (!qcow2('mount', image, directory)) {
    say('Mounting did not work here (see above). The library and NBD do the rest.');
    return undefined;
  }
  atEnd(() => qcow2('unmount', directory));
  return directory;
}

function showTree(root) {
  const visit = (directory) => {
    for (const entry of readdirSync(directory, { withFileTypes: true })) {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) visit(path);
      else
        say(
          `  ${relative(root, path).padEnd(44)} ${String(statSync(path).size).padStart(9)} bytes`,
        );
    }
  };
  visit(root);
}

/** The file of a partition in a mounted tree, or in one of its snapshots. */
function partitionFile(mounted, number) {
  const directory = join(mounted, 'partitions');
  if (!existsSync(directory)) return undefined;
  const name = readdirSync(directory).find((file) => file.startsWith(`${number}-`));
  return name === undefined ? undefined : join(directory, name);
}

/** Reads from a file, or from the library where there is no mount. */
function readerOf(file, number) {
  const source = file === undefined ? library.openDevice(IMAGE, { partition: number }) : undefined;
  const fd = file === undefined ? undefined : openSync(file);
  return {
    read: (offset, length) => {
      const bytes = Buffer.alloc(length);
      if (source !== undefined) source.read(bytes, offset);
      else readSync(fd, bytes, 0, length, offset);
      return bytes;
    },
    close: () => (source !== undefined ? source.close() : closeSync(fd)),
  };
}

function showInsides(partitions, mounted) {
  for (const { number, name } of partitions) {
    const file = mounted && partitionFile(mounted, number);
    say(
      `partition ${number} (${name})${file ? `: ${relative(mounted, file)}` : ', by the library'}`,
    );
    const { read, close } = readerOf(file, number);
    showInside({ file, read, scratch: join(scratch, `inside-${number}`), atEnd, say });
    close();
  }
}

/** The same file in each snapshot, now, and in an overlay on the image. */
function showHistory(mounted, overlay) {
  const snapshots = join(mounted, 'snapshots');
  const states = existsSync(snapshots)
    ? readdirSync(snapshots).map((name) => [`snapshot ${name}`, join(snapshots, name)])
    : [];
  states.push(['now', mounted]);
  if (overlay !== undefined) states.push(['overlay', overlay]);
  for (const [name, directory] of states) {
    const file = partitionFile(directory, 2);
    const text = file && readExtFile(file, 'etc/hostname');
    if (text !== undefined) say(`  ${name.padEnd(24)} ${text}`);
  }
}

/** The checksum of a whole disk, read in pieces. */
async function checksum(size, read) {
  const hash = createHash('sha256');
  for (let offset = 0; offset < size; offset += READ_BYTES) {
    hash.update(await read(offset, Math.min(READ_BYTES, size - offset)));
  }
  return hash.digest('hex');
}

function checksumByLibrary() {
  const disk = library.openDevice(IMAGE);
  const read = (offset, length) => {
    const bytes = Buffer.alloc(length);
    disk.read(bytes, offset);
    return bytes;
  };
  return checksum(disk.size, read).finally(() => disk.close());
}

/** Starts a server and resolves once clients can connect. */
async function startServer(socket) {
  const args = ['serve', '--socket', socket, IMAGE];
  say(`$ qcow2 ${args.join(' ')}`);
  const server = spawn(process.execPath, [CLI, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  atEnd(() => server.kill());
  const lines = createInterface({ input: server.stdout });
  await new Promise((resolve, reject) => {
    lines.on('line', (line) => {
      say(line);
      if (existsSync(socket)) resolve();
    });
    server.on('exit', (code) => reject(new Error(`qcow2 serve ended with exit code ${code}`)));
  });
  return server;
}

async function showNbd() {
  const socket = join(scratch, 'demo.sock');
  const server = await startServer(socket);
  const client = new NbdClient(socket);
  await client.open('');
  const overNbd = await checksum(client.size, (offset, length) => client.read(offset, length));
  client.close();
  say(`read ${client.size} bytes over NBD, SHA-256 ${overNbd}`);
  const direct = await checksumByLibrary();
  if (direct !== overNbd) throw new Error(`the library reads other bytes: ${direct}`);
  say('the same bytes as the library reads');
  if (hasProgram('nbdinfo')) {
    const uri = `nbd+unix:///?socket=${socket}`;
    say(`$ nbdinfo --size '${uri}'`);
    say(spawnSync('nbdinfo', ['--size', uri], { encoding: 'utf8' }).stdout.trim());
  }
  server.removeAllListeners('exit');
  const ended = new Promise((resolve) => server.once('exit', resolve));
  server.kill();
  await ended;
}

try {
  title('The image');
  if (!qcow2('info', IMAGE)) throw new Error('qcow2 info failed');
  title('Its partitions, by the library');
  const partitions = showPartitionTable();
  title('The mount');
  const mounted = mount(IMAGE, 'disk');
  if (mounted !== undefined) showTree(mounted);
  title('Inside its filesystems');
  showInsides(partitions, mounted);
  if (mounted !== undefined && hasProgram('debugfs')) {
    title('etc/hostname through time');
    showHistory(mounted, mount(OVERLAY, 'overlay'));
  }
  title('Over NBD');
  await showNbd();
  title('Clearing up');
  undoAll();
  say('\nDone.');
} catch (error) {
  console.error(`demo: ${error.message}`);
  process.exitCode = 1;
}
