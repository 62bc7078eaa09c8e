/** Makes one image of the corpus: a temporary directory, and a record of what was done in it. */

import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { Qcow2Bytes } from './qcow2-bytes.mjs';
import { deriveExpectation, hashFile, IMAGES, qemuIo, run, writeSidecar } from './tools.mjs';

/** Files above this are stored compressed, as `NAME.gz`. */
const GZIP_ABOVE = 256 * 1024;

/** Where a case does its work. File names are relative to its directory. */
export class Workshop {
  directory = mkdtempSync(join(tmpdir(), 'qcow2-corpus-'));
  /** What was done, for the sidecar. */
  log = [];

  path(file) {
    return join(this.directory, file);
  }

  /** Runs qemu-img. */
  img(...args) {
    this.log.push(`qemu-img ${args.join(' ')}`);
    return run('qemu-img', args, { cwd: this.directory });
  }

  /** Creates an image: options as for `qemu-img create -o`, or none. */
  create(file, size, options = '', ...rest) {
    const more = options === '' ? [] : ['-o', options];
    return this.img('create', '-q', '-f', 'qcow2', ...more, ...rest, file, ...(size ? [size] : []));
  }

  /** Runs qemu-io commands on an image, or with other options than `-f qcow2`. */
  io(file, ...commands) {
    const options = Array.isArray(commands[0]) ? commands.shift() : [];
    const shown = commands.map((command) => `-c '${command}'`).join(' ');
    this.log.push(
      `qemu-io ${[...(options.length ? options : ['-f qcow2']), file, shown].join(' ')}`,
    );
    qemuIo(file, commands, { cwd: this.directory, options });
  }

  /** Notes what the disk reads as before it is damaged. */
  noteSoundContent(file) {
    const raw = this.path('.sound.raw');
    run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', file, raw], { cwd: this.directory });
    this.soundSha256 = hashFile(raw);
  }

  /** Runs another program. */
  run(program, ...args) {
    this.log.push(`${program} ${args.join(' ')}`);
    return run(program, args, { cwd: this.directory });
  }

  /** Writes a file that goes into an image. */
  file(name, bytes, what) {
    this.log.push(`# ${name}: ${what}`);
    writeFileSync(this.path(name), bytes);
  }

  /** Changes single bytes of an image, which `what` describes. */
  patch(file, what, change) {
    this.log.push(`# patch ${file}: ${what}`);
    Qcow2Bytes.patch(this.path(file), change);
  }

  close() {
    rmSync(this.directory, { recursive: true });
  }
}

/** Bytes that compress to about two thirds, the same each time. */
export function compressibleBytes(lengthBytes, seed) {
  const bytes = Buffer.alloc(lengthBytes);
  let state = seed + 1;
  for (let at = 0; at < lengthBytes; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[at] = 0x20 + ((state >>> 24) & 31);
  }
  return bytes;
}

/**
 * Makes the images of a group with their sidecars.
 *
 * A case is `{ name, description, features, make(workshop) }`. Its image is `NAME.qcow2`; whatever
 * other files `make` returns the names of are kept too. `deviation` says where and why this
 * package is meant to answer differently from QEMU, `leniency` where it may; `unanswered`, why QEMU cannot be asked.
 */
export function generateGroup(group, cases) {
  const target = join(IMAGES, group);
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  for (const one of cases) generateCase(target, one);
  const bytes = readdirSync(target).reduce(
    (sum, file) => sum + statSync(join(target, file)).size,
    0,
  );
  console.log(`${group}: ${cases.length} images, ${(bytes / 1024).toFixed(0)} KiB with sidecars`);
}

function generateCase(
  target,
  { name, description, features, deviation, leniency, unanswered, make },
) {
  const workshop = new Workshop();
  try {
    const image = `${name}.qcow2`;
    const others = make(workshop, image) ?? [];
    const expect =
      unanswered === undefined
        ? deriveExpectation(workshop.directory, image)
        : { sha256: null, refusal: unanswered };
    if (expect.sha256 === null && workshop.soundSha256 !== undefined) {
      expect.soundSha256 = workshop.soundSha256;
    }
    const files = [image, ...others].map((file) => store(workshop.path(file), join(target, file)));
    const command = workshop.log;
    writeSidecar(target, name, {
      ...{ description, features, files, command },
      ...(deviation === undefined ? {} : { deviation }),
      ...(leniency === undefined ? {} : { leniency }),
      expect,
    });
  } catch (error) {
    throw new Error(`image ${name}: ${error.message}`, { cause: error });
  } finally {
    workshop.close();
  }
}

/** Copies a file into the corpus and returns the name that it has there. */
function store(source, destination) {
  if (statSync(source).size <= GZIP_ABOVE) {
    copyFileSync(source, destination);
    return destination.split('/').at(-1);
  }
  writeFileSync(`${destination}.gz`, gzipSync(readFileSync(source), { level: 9 }));
  return `${destination.split('/').at(-1)}.gz`;
}
