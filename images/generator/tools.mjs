/**
 * What every part of the image generator needs: running QEMU's tools, patching bytes, and asking
 * QEMU what an image holds.
 */

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The `images/` directory. */
export const IMAGES = dirname(dirname(fileURLToPath(import.meta.url)));

/** The time that everything in the images is dated: 2024-01-01 00:00:00 UTC. */
export const EPOCH = 1_704_067_200;

const ENVIRONMENT = {
  ...process.env,
  TZ: 'UTC',
  LC_ALL: 'C',
  SOURCE_DATE_EPOCH: String(EPOCH),
  E2FSPROGS_FAKE_TIME: String(EPOCH),
  MTOOLS_SKIP_CHECK: '1',
};

/** Runs a program and returns what became of it; never throws for its exit code. */
export function attempt(program, args, { cwd, input } = {}) {
  const result = spawnSync(program, args, {
    cwd,
    input,
    env: ENVIRONMENT,
    encoding: 'utf8',
    timeout: 60_000,
    maxBuffer: 64 * 1024 * 1024,
  });
  if (result.error) throw result.error;
  return result;
}

/** Runs a program that has to succeed and returns its standard output. */
export function run(program, args, options) {
  const result = attempt(program, args, options);
  if (result.status !== 0) {
    throw new Error(`${program} ${args.join(' ')}: exit ${result.status}\n${result.stderr}`);
  }
  return result.stdout;
}

/** Runs qemu-io commands on an image, one `-c` each. */
export function qemuIo(file, commands, { cwd, options = [] } = {}) {
  const args = [...options, file];
  if (options.length === 0) args.unshift('-f', 'qcow2');
  for (const command of commands) args.push('-c', command);
  const output = run('qemu-io', args, { cwd });
  if (/failed|error/i.test(output)) throw new Error(`qemu-io ${commands.join('; ')}: ${output}`);
}

/** SHA-256 of a host file. */
export function hashFile(path) {
  const hash = createHash('sha256');
  const buffer = Buffer.alloc(1024 * 1024);
  const fd = openSync(path, 'r');
  try {
    for (let count; (count = readSync(fd, buffer, 0, buffer.length, null)) > 0;) {
      hash.update(buffer.subarray(0, count));
    }
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}

/** Disks above this are hashed by ranges, not whole. */
const WHOLE_HASH_LIMIT = 512 * 1024 * 1024;

/**
 * Asks QEMU everything that a sidecar records of `file`.
 *
 * @param directory where the file is and where temporary ones may be made
 */
export function deriveExpectation(directory, file, { format = 'qcow2' } = {}) {
  const expect = {};
  const qemuImg = (...args) => attempt('qemu-img', args, { cwd: directory });
  const info = qemuImg('info', '--output=json', '-f', format, file);
  expect.info = info.status === 0 ? withoutHostFacts(JSON.parse(info.stdout)) : null;

  const size = expect.info?.['virtual-size'] ?? 0;
  const raw = join(directory, '.content.raw');
  try {
    if (size <= WHOLE_HASH_LIMIT) {
      const converted = qemuImg('convert', '-f', format, '-O', 'raw', file, raw);
      if (converted.status === 0) expect.sha256 = hashFile(raw);
      else Object.assign(expect, { sha256: null, refusal: messageOf(converted) });
    } else {
      expect.ranges = hashRanges(directory, file, { format, size, raw });
    }
    for (const snapshot of expect.info?.snapshots ?? []) {
      expect.snapshots ??= [];
      const entry = { id: snapshot.id, name: snapshot.name };
      expect.snapshots.push({ ...entry, ...hashSnapshot(directory, file, snapshot.id, raw) });
    }
  } finally {
    rmSync(raw, { force: true });
  }

  const map = qemuImg('map', '--output=json', '-f', format, file);
  expect.map = map.status === 0 ? JSON.parse(map.stdout) : null;
  const check = qemuImg('check', '--output=json', '-f', format, file);
  expect.check = { exitCode: check.status };
  if (check.stdout.trim() !== '') {
    const result = JSON.parse(check.stdout);
    delete result.filename;
    Object.assign(expect.check, result);
  }
  return expect;
}

/** Content of some places of a disk that is too large to hash whole. */
function hashRanges(directory, file, { format, size, raw }) {
  const lengthBytes = 64 * 1024;
  const last = Math.floor((size - 1) / lengthBytes) * lengthBytes;
  const offsets = [0, lengthBytes, Math.floor(size / 2 / lengthBytes) * lengthBytes, last];
  return offsets.map((offset) => {
    const length = Math.min(lengthBytes, size - offset);
    run(
      'qemu-img',
      [
        ...[
          'dd',
          '-f',
          format,
          '-O',
          'raw',
          `bs=${lengthBytes}`,
          'count='.concat(offset / lengthBytes + 1),
        ],
        ...[`skip=${offset / lengthBytes}`, `if=${file}`, `of=${raw}`],
      ],
      { cwd: directory },
    );
    return { offset, length, sha256: hashFile(raw) };
  });
}

/** Content of a snapshot: what the disk holds once QEMU has gone back to it. */
function hashSnapshot(directory, file, id, raw) {
  const copy = join(directory, '.applied.qcow2');
  try {
    run('cp', ['--sparse=always', file, copy], { cwd: directory });
    const applied = attempt('qemu-img', ['snapshot', '-a', id, copy], { cwd: directory });
    if (applied.status !== 0) return { sha256: null, refusal: messageOf(applied) };
    const args = ['convert', '-f', 'qcow2', '-O', 'raw', copy, raw];
    const converted = attempt('qemu-img', args, { cwd: directory });
    if (converted.status !== 0) return { sha256: null, refusal: messageOf(converted) };
    return { size: statSync(raw).size, sha256: hashFile(raw) };
  } finally {
    rmSync(copy, { force: true });
  }
}

function messageOf({ stderr }) {
  return stderr
    .trim()
    .split('\n')
    .at(-1)
    .replace(/^qemu-img: /, '');
}

/** What `qemu-img info` says without what depends on the machine that it runs on. */
function withoutHostFacts(info) {
  for (const key of ['filename', 'actual-size', 'full-backing-filename']) delete info[key];
  return info;
}

/** Writes `NAME.json` beside the image. */
export function writeSidecar(directory, name, sidecar) {
  writeFileSync(join(directory, `${name}.json`), `${JSON.stringify(sidecar, null, 1)}\n`);
}

/** The name of a file without directories and without its `.qcow2`. */
export function stemOf(path) {
  return basename(path).replace(/\.[^.]*$/, '');
}
