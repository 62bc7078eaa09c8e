/**
 * The programs and powers that tests need from the machine: QEMU, libnbd, fio, `/dev/fuse`, root.
 *
 * A test whose peer is missing is skipped, and says so; where peers are required (`CI` or
 * `QCOW2_REQUIRE_PEERS=1`), it fails instead, so that no run there is green for want of a program.
 */

import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { describe, it } from 'vitest';

/** What the machine must let a test do, beside having programs installed. */
export type Capability =
  /** `/dev/fuse` can be opened for reading and writing. */
  | '/dev/fuse'
  /** The tests run as root. */
  | 'root'
  /** Root can set up loop devices. */
  | 'loop'
  /** The tests run as root and can become the user `nobody`. */
  | 'other-user'
  /** koffi loads. */
  | 'koffi'
  /** fuse-native is installed, with an addon for this platform. */
  | 'fuse-native'
  /** The system's Python, {@link SYSTEM_PYTHON}, has libnbd's module. */
  | 'python3-libnbd'
  /** What a virtual machine boots is in {@link GUEST_DIRECTORY}. */
  | 'linux-guest';

/** A program's name as it is typed, or a {@link Capability}. */
export type Peer = Capability | (string & {});

/** The interpreter that the distribution's Python packages are for; another may come first in PATH. */
export const SYSTEM_PYTHON = '/usr/bin/python3';

/** A kernel, a boot loader and so on, put there by `tools/fetch-guest.mjs`. */
export const GUEST_DIRECTORY = join(import.meta.dirname, '../.cache/guest');

/** Loading it takes some preparation, which is the channel's business: a test shows whether it works. */
const FUSE_NATIVE_ADDON = join(
  import.meta.dirname,
  '../../node_modules/fuse-native/prebuilds',
  `${process.platform}-${process.arch}`,
  'node.napi.node',
);

const CAPABILITIES: Record<Capability, () => boolean> = {
  '/dev/fuse': () => canUse('/dev/fuse', constants.R_OK | constants.W_OK),
  root: isRoot,
  loop: () => isRoot() && existsSync('/dev/loop-control') && succeeds('losetup', ['--find']),
  'other-user': () => isRoot() && succeeds('setpriv', ['--reuid=65534', '--clear-groups', 'true']),
  koffi: () => succeeds(process.execPath, ['-e', 'require("koffi")']),
  'fuse-native': () => existsSync(FUSE_NATIVE_ADDON),
  'python3-libnbd': () => succeeds(SYSTEM_PYTHON, ['-c', 'import nbd']),
  'linux-guest': () => existsSync(GUEST_DIRECTORY),
};

const found = new Map<Peer, boolean>();

/** Whether the machine has `peer`; looked up once. */
export function hasPeer(peer: Peer): boolean {
  let present = found.get(peer);
  if (present === undefined) {
    present = Object.hasOwn(CAPABILITIES, peer)
      ? CAPABILITIES[peer as Capability]()
      : findProgram(peer) !== undefined;
    found.set(peer, present);
  }
  return present;
}

/** Those of `peers` that the machine lacks. */
export function missingPeers(peers: readonly Peer[]): Peer[] {
  return peers.filter((peer) => !hasPeer(peer));
}

/** Whether a missing peer is a failure. */
export function peersAreRequired(env: NodeJS.ProcessEnv = process.env): boolean {
  const isSet = (value: string | undefined) => !['', '0', 'false', undefined].includes(value);
  return isSet(env.CI) || isSet(env.QCOW2_REQUIRE_PEERS);
}

/**
 * `describe` for tests that need peers: left out, with their names in the title, where one is
 * missing, since there is nothing to compare with; a failing test instead where peers are required.
 */
export function describePeers(peers: readonly Peer[], name: string, tests: () => void): void {
  const missing = missingPeers(peers);
  if (missing.length > 0 && peersAreRequired()) failForMissing(name, missing);
  else describe.runIf(missing.length === 0)(titleWith(name, missing), tests);
}

/** `it` for a test that needs peers, as {@link describePeers}. */
export function itPeers(
  peers: readonly Peer[],
  name: string,
  test: () => void | Promise<void>,
  timeoutMs?: number,
): void {
  const missing = missingPeers(peers);
  if (missing.length > 0 && peersAreRequired()) failForMissing(name, missing);
  else it.runIf(missing.length === 0)(titleWith(name, missing), test, timeoutMs);
}

function titleWith(name: string, missing: readonly string[]): string {
  return missing.length === 0 ? name : `${name} (needs ${missing.join(', ')})`;
}

function failForMissing(name: string, missing: readonly string[]): void {
  it(titleWith(name, missing), () => {
    throw new Error(`required here and missing: ${missing.join(', ')}`);
  });
}

/** The path of a program, searched as a shell would, with the system administrator's directories. */
export function findProgram(name: string): string | undefined {
  const directories = (process.env.PATH ?? '').split(delimiter);
  return [...directories, '/usr/sbin', '/sbin']
    .map((directory) => join(directory, name))
    .find((path) => canUse(path, constants.X_OK));
}

function isRoot(): boolean {
  return process.getuid?.() === 0;
}

function canUse(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false;
  }
}

function succeeds(program: string, args: string[]): boolean {
  return spawnSync(program, args, { stdio: 'ignore', timeout: 20_000 }).status === 0;
}
