/**
 * Shows the files inside a partition: through the kernel's driver where we may mount, else through
 * the programs of e2fsprogs or mtools, else, for FAT, by reading it ourselves.
 */

import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { hasProgram } from '../install-peers.mjs';
import { FatFilesystem, identify } from './filesystems.mjs';

/** Files that are shown, if a filesystem has them. */
const SHOWN = ['README.md', 'README.TXT', 'etc/os-release', 'loader/loader.conf'];
const MAX_LISTED = 40;

const PATH = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`;
const DRIVERS = { fat: 'vfat', ext: 'ext4' };

/**
 * Shows what is inside a partition.
 *
 * @param {{ file?: string, read: (offset: number, length: number) => Buffer, scratch: string,
 *   atEnd: (action: () => void) => void, say: (text: string) => void }} partition
 *   `file`: its file in a mount; `read`: its bytes; `scratch`: a directory for a mount point
 */
export function showInside({ file, read, scratch, atEnd, say }) {
  const { type, label } = identify(read);
  if (type === 'unknown') {
    say(`  first bytes: ${read(0, 32).toString('hex')}`);
    return;
  }
  say(`  filesystem: ${type}, label ${label}`);
  const directory = file && mountReadOnly({ file, driver: DRIVERS[type], scratch, atEnd });
  if (directory) showDirectory(directory, say);
  else if (type === 'fat') showFat(read, say);
  else if (file && hasProgram('debugfs')) showWithDebugfs(file, say);
  else say('  (to list its files: run as root, or with debugfs of e2fsprogs)');
}

/** Mounts a partition's file through a loop device; undefined where that is not possible. */
function mountReadOnly({ file, driver, scratch, atEnd }) {
  if (process.getuid?.() !== 0) return undefined;
  mkdirSync(scratch, { recursive: true });
  const { status } = run('mount', ['-t', driver, '-o', 'ro,loop', file, scratch]);
  if (status !== 0) return undefined;
  atEnd(() => run('umount', [scratch]));
  return scratch;
}

function showDirectory(root, say) {
  say('  mounted through a loop device and the kernel’s driver:');
  const lines = [];
  const visit = (directory) => {
    for (const entry of readdirSync(join(root, directory), { withFileTypes: true })) {
      const path = join(directory, entry.name);
      if (entry.isSymbolicLink()) lines.push(`${path} -> ${readlinkSync(join(root, path))}`);
      else if (!entry.isDirectory()) lines.push(line(path, statSync(join(root, path)).size));
      else if (entry.name !== 'lost+found') visit(path);
    }
  };
  visit('');
  listed(lines, say);
  for (const name of SHOWN) {
    try {
      showFile(name, readFileSync(join(root, name), 'utf8'), say);
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
  }
}

function showFat(read, say) {
  say('  read by the demonstration itself:');
  const files = [...new FatFilesystem(read).files()].filter(({ content }) => content);
  listed(
    files.map(({ path, size }) => line(path, size)),
    say,
  );
  for (const { path, content } of files) {
    if (SHOWN.includes(path)) showFile(path, content().toString('utf8'), say);
  }
}

function showWithDebugfs(file, say) {
  say('  read by debugfs:');
  const ask = (request) => run('debugfs', ['-R', request, file]).stdout;
  const lines = [];
  const visit = (directory) => {
    for (const row of ask(`ls -p "/${directory}"`).split('\n')) {
      // /inode/mode/uid/gid/name/size/
      const [, , mode, , , name, size] = row.split('/');
      if (name === undefined || ['', '.', '..', 'lost+found'].includes(name)) continue;
      const path = join(directory, name);
      if (mode.startsWith('04')) visit(path);
      else lines.push(line(path, Number(size)));
    }
  };
  visit('');
  listed(lines, say);
  for (const name of SHOWN) {
    const text = ask(`cat "/${name}"`);
    if (text !== '') showFile(name, text, say);
  }
}

/** The text of a file in an ext partition, if debugfs is there. */
export function readExtFile(partitionFile, name) {
  if (!hasProgram('debugfs')) return undefined;
  return run('debugfs', ['-R', `cat "/${name}"`, partitionFile]).stdout.trim();
}

function listed(lines, say) {
  for (const text of lines.slice(0, MAX_LISTED)) say(`    ${text}`);
  if (lines.length > MAX_LISTED) say(`    … and ${lines.length - MAX_LISTED} more`);
}

function showFile(name, text, say) {
  say(`  --- ${name}`);
  for (const row of text.trimEnd().split(/\r?\n/)) say(`  | ${row}`);
}

function line(path, size) {
  return `${path.padEnd(44)} ${String(size).padStart(9)} bytes`;
}

function run(program, args) {
  return spawnSync(program, args, { encoding: 'utf8', env: { ...process.env, PATH } });
}
