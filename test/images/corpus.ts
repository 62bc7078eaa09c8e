/** The corpus in `images/`: sidecars, and the files that they speak of, ready to be opened. */

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { gunzipSync } from 'node:zlib';

/** The `images/` directory. */
export const IMAGES = join(import.meta.dirname, '../../images');

/** What QEMU reads of a part of a disk, or of all of it. */
export interface ExpectedRange {
  offset: number;
  length: number;
  sha256: string;
}

/** What QEMU reads of an internal snapshot. */
export interface ExpectedSnapshot {
  id: string;
  name: string;
  /** Bytes of the disk then. */
  size?: number;
  /** `null` where QEMU refuses, with its message in `refusal`. */
  sha256: string | null;
  refusal?: string;
}

/** A `NAME.json` of the corpus. */
export interface Sidecar {
  description: string;
  features: string[];
  /** The image first, then the files that it refers to. */
  files: string[];
  command: string | string[];
  /** Where this package is meant to answer differently from QEMU. */
  deviation?: { code: string; reason: string };
  /** Errors that are as good as QEMU's answer. */
  leniency?: { codes: string[]; reason: string };
  expect: {
    info?: Record<string, unknown> | null;
    sha256?: string | null;
    refusal?: string;
    /** What the disk reads as without the damage, where that need not keep it from being read. */
    soundSha256?: string;
    ranges?: ExpectedRange[];
    snapshots?: ExpectedSnapshot[];
    map?: unknown[] | null;
    check?: Record<string, unknown> & { exitCode: number };
  };
}

/** An image of the corpus. */
export interface CorpusImage {
  /** Path below `images/` without the suffix, as in `damage/l1-reserved`. */
  name: string;
  /** The directory that it is in. */
  directory: string;
  sidecar: Sidecar;
}

/** All images that have a sidecar. */
export function corpusImages(): CorpusImage[] {
  return readdirSync(IMAGES, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.json'))
    .sort()
    .map((file) => ({
      name: relative('.', file).replace(/\.json$/, ''),
      directory: dirname(join(IMAGES, file)),
      sidecar: JSON.parse(readFileSync(join(IMAGES, file), 'utf8')) as Sidecar,
    }));
}

/** Copies the files of an image into `target`, unpacked, and returns the path of the image. */
export function unpackImage({ directory, sidecar }: CorpusImage, target: string): string {
  mkdirSync(target, { recursive: true });
  for (const file of sidecar.files) {
    const source = join(directory, file);
    const unpacked = join(target, basename(file).replace(/\.gz$/, ''));
    if (file.endsWith('.gz')) writeFileSync(unpacked, gunzipSync(readFileSync(source)));
    else copyFileSync(source, unpacked);
  }
  return join(target, basename(sidecar.files[0]!).replace(/\.gz$/, ''));
}

/** Files of the corpus that no sidecar speaks of. */
export function strayFiles(): string[] {
  const named = new Set<string>();
  for (const { directory, sidecar } of corpusImages()) {
    for (const file of sidecar.files) named.add(join(directory, file));
  }
  const missing = [...named].filter((file) => !existsSync(file));
  const unnamed = readdirSync(IMAGES, { recursive: true, encoding: 'utf8' })
    .filter((file) => /\.(qcow2|raw|data)(\.gz)?$/.test(file))
    .map((file) => join(IMAGES, file))
    .filter((file) => !named.has(file));
  return [...missing, ...unnamed];
}
