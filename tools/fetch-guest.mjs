/**
 * Fetches what the test's virtual machine boots: Debian's kernel for virtual machines, busybox and a
 * boot loader. They are unpacked into a directory of the tests and not installed, so that the
 * machine that runs the tests does not change.
 */

import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { ROOT } from './prepare.mjs';

/** Where it is: `vmlinuz`, `busybox`, `syslinux`, `mbr.bin` and `modules/`. */
export const GUEST_DIRECTORY = join(ROOT, 'test/.cache/guest');

/** What the kernel needs to see a virtio disk; as modules or in it. */
const MODULES = /^virtio(_ring|_pci|_pci_legacy_dev|_pci_modern_dev|_blk)?\.ko(\.xz)?$/;

/** Fetches what is missing, where there is Debian's apt for amd64; needs no root. */
export function fetchGuest() {
  if (existsSync(GUEST_DIRECTORY)) return;
  console.log('Fetching what a virtual machine boots: a kernel, busybox, syslinux …');
  try {
    fetchPackages();
  } catch {
    // apt's lists may be missing, or older than the packages that are offered.
    spawnSync('apt-get', ['-q', 'update'], { stdio: 'ignore' });
    try {
      fetchPackages();
    } catch (error) {
      console.log(`Tests of virtual machines are skipped: ${error.message}`);
    }
  }
}

function fetchPackages() {
  const scratch = `${GUEST_DIRECTORY}-${process.pid}`;
  try {
    const packages = join(scratch, 'packages');
    mkdirSync(packages, { recursive: true });
    const names = [kernelPackage(), 'busybox-static', 'syslinux', 'syslinux-common'];
    run('apt-get', ['-q', 'download', ...names], { cwd: packages });
    const files = join(scratch, 'files');
    for (const name of readdirSync(packages)) run('dpkg-deb', ['-x', join(packages, name), files]);
    const found = join(scratch, 'guest');
    collect(files, found);
    renameSync(found, GUEST_DIRECTORY);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

/** The name of the newest kernel's package. */
function kernelPackage() {
  const dependencies = run('apt-cache', ['depends', 'linux-image-cloud-amd64']);
  const [, name] = /Depends: (linux-image-\S+)/.exec(dependencies) ?? [];
  if (name === undefined) throw new Error('there is no kernel for them among the packages');
  return name;
}

function collect(files, found) {
  const all = readdirSync(files, { recursive: true });
  const one = (pattern, name) => {
    const path = all.find((candidate) => pattern.test(candidate));
    if (path === undefined) throw new Error(`the packages have no ${name}`);
    cpSync(join(files, path), join(found, name));
  };
  mkdirSync(join(found, 'modules'), { recursive: true });
  one(/^boot\/vmlinuz-/, 'vmlinuz');
  one(/bin\/busybox$/, 'busybox');
  one(/bin\/syslinux$/, 'syslinux');
  one(/\/mbr\/mbr\.bin$/, 'mbr.bin');
  for (const path of all.filter((candidate) => MODULES.test(basename(candidate)))) {
    const copy = join(found, 'modules', basename(path));
    cpSync(join(files, path), copy);
    if (copy.endsWith('.xz')) run('xz', ['-d', copy]);
  }
}

function run(program, args, options = {}) {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    ...options,
    encoding: 'utf8',
  });
  if (error !== undefined) throw error;
  if (status !== 0) throw new Error(`${program} ${args[0]}: ${stderr.trim()}`);
  return stdout;
}
