/**
 * From an image to its files: the filesystems in a mounted image, mounted in their turn.
 *
 * The image is mounted in a private directory. As root, a loop device takes a partition's file there,
 * and a driver of the kernel takes the loop device; other users have a program for it. Once that
 * stands, the private directory is unmounted lazily: nobody sees the image any more, and it stays
 * mounted for exactly as long as the loop device, or the program, has its file open. So unmounting the
 * files, by whatever means, undoes everything below them, in the right order; and what was written is
 * in the image before the process that serves it ends.
 */

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { Qcow2Error, hostError } from '../errors.ts';
import { canMountDirectly, unmountFuse } from '../host/mount.ts';
import { findMount } from '../host/mountinfo.ts';
import { chooseFilesystems } from './file-choice.ts';
import type { ChosenFilesystem } from './file-choice.ts';
import { kernelDriverFor, noDriver, userDriverFor } from './file-drivers.ts';
import type { FileJobResult, KernelMountJob, UnmountJob } from './file-jobs.ts';
import type { PreparedDirectory } from './fuse-directory.ts';
import { removeEmptyDirectory } from './fuse-mounts.ts';
import type { FuseOptions } from './fuse-options.ts';
import type { FilesRequest, ImageSummary, MountedFiles, MountRequest } from './fuse-request.ts';
import { stateDirectory } from './fuse-state.ts';
import type { RecordedFiles } from './fuse-state.ts';
import { startUserDriver } from './user-driver.ts';
import { fromWireError } from './wire-error.ts';

/** Files that are mounted. */
export interface MountedStack {
  files: MountedFiles[];
  warnings: string[];
  /**
   * Unmounts them all, even if they are in use; what was written to them comes to the image.
   * @returns whether nobody uses them any more, so that the mount of the image ends by itself
   */
  end(): Promise<boolean>;
}

/** Partitions that are mounted by one command: its record has to have room for them. */
const MAX_TOGETHER = 64;

/** What {@link mountFiles} works on. */
export interface FilesJob {
  request: MountRequest;
  files: FilesRequest;
  /** What the mounted image shows. */
  summary: ImageSummary;
  /** Keeps a record of what there is to undo, before and after it is done. */
  record: (files: RecordedFiles) => void;
}

/**
 * Mounts the files of an image that is mounted in a private directory, and takes that directory away.
 *
 * @throws {Qcow2Error} why there is nothing that could be mounted; all is undone then but the mount
 * of the image
 */
export async function mountFiles(job: FilesJob): Promise<MountedStack> {
  const { request, files, summary, record } = job;
  const writable = request.access !== 'ro';
  const choice = { all: files.all, writable };
  const plan = chooseFilesystems(summary, choice).map((chosen) => ({
    chosen,
    directory: files.all ? join(files.directory, chosen.name) : files.directory,
  }));
  if (plan.length > MAX_TOGETHER) {
    throw new Qcow2Error('TOO_LARGE', `${plan.length} partitions have files`, {
      hint: `at most ${MAX_TOGETHER} are mounted together; choose with --partition N`,
    });
  }
  const made = files.all ? plan.map(({ directory }) => directory) : [];
  const inner = request.directory;
  record({
    inner,
    mounts: plan.map(({ directory }) => ({ directory, device: '' })),
    madeDirectories: made,
  });
  const mounted: MountedFiles[] = [];
  const warnings: string[] = [];
  const undo = async (): Promise<boolean> => {
    const directories = mounted.map(({ directory }) => directory).reverse();
    const result = await runJob({ kind: 'unmount', directories, evenIfBusy: true });
    for (const directory of made) removeEmptyDirectory(directory);
    return result.ok && !result.hasUsers;
  };
  try {
    for (const directory of made) makeDirectory(directory);
    for (const { chosen, directory } of plan) {
      try {
        mounted.push(await mountOne(job, chosen, directory));
        warnings.push(...chosen.warnings);
      } catch (error) {
        if (!files.all || !(error instanceof Qcow2Error)) throw error;
        warnings.push(`${chosen.name}: ${error.problem}`);
        removeEmptyDirectory(directory);
      }
    }
    if (mounted.length === 0) throw new Qcow2Error('UNSUPPORTED', warnings.join('; '));
    unmountFuse(inner, { lazy: true });
  } catch (error) {
    await undo();
    throw error;
  }
  removeEmptyDirectory(inner);
  record({
    inner,
    mounts: mounted.map(({ directory }) => ({
      directory,
      device: findMount(directory)?.device ?? '',
    })),
    madeDirectories: made,
  });
  for (const one of mounted.filter(({ journalIgnored }) => journalIgnored)) {
    warnings.push(
      `the journal of the ${one.type} filesystem was not replayed, for that would write: ` +
        'what changed last may be missing or half done; --temp replays it beside the image',
    );
  }
  return { files: mounted, warnings, end: undo };
}

/**
 * Clears away what is left of mounted files once the mount of the image has ended: nothing, unless
 * somebody cut that off under them. Only what is known to be from here.
 */
export function clearFiles({ mounts, madeDirectories }: RecordedFiles): void {
  for (const { directory, device } of mounts.toReversed()) {
    if (device === '' || findMount(directory)?.device !== device) continue;
    try {
      unmountFuse(directory, { lazy: true });
    } catch {
      // Whoever reads there gets errors, and umount(8) ends it.
    }
  }
  for (const made of madeDirectories) removeEmptyDirectory(made);
}

/**
 * The part of a request that goes on to the files: the image itself in a private directory, readable
 * by this user alone.
 *
 * @param prepared where the files will be
 * @throws {Qcow2Error} `HOST` if there is no place for the private directory
 */
export function filesRequest({
  id,
  prepared,
  options,
  all,
}: {
  id: string;
  prepared: PreparedDirectory;
  options: FuseOptions;
  all: boolean;
}): Pick<MountRequest, 'directory' | 'madeDirectory' | 'options' | 'files'> {
  const directory = join(stateDirectory(), `${id}.mnt`);
  makeDirectory(directory);
  return {
    directory,
    madeDirectory: true,
    options: {
      flags: options.flags.filter((flag) => flag === 'ro' || flag === 'nosuid' || flag === 'nodev'),
      allowOther: false,
      nonempty: false,
      directIo: false,
      fileMode: options.flags.includes('ro') ? 0o400 : 0o600,
      subtype: options.subtype,
      ...(options.source === undefined ? {} : { source: options.source }),
    },
    files: { ...prepared, all, options },
  };
}

function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory);
  } catch (error) {
    throw hostError('cannot make the directory', directory, error);
  }
}

async function mountOne(
  { request, files }: FilesJob,
  { file, filesystem, name }: ChosenFilesystem,
  directory: string,
): Promise<MountedFiles> {
  const readOnly = request.access === 'ro';
  const path = join(request.directory, file);
  const told = { directory, file, name, type: filesystem.type, label: filesystem.label };
  const driver = kernelDriverFor(filesystem);
  if (canMountDirectly() && driver !== undefined) {
    if (!readOnly && driver.readsOnly) throw onlyRead(filesystem.type);
    const job: KernelMountJob = {
      kind: 'mount',
      file: path,
      directory,
      name: request.image,
      driver,
      readOnly,
      flags: files.options.flags.filter((flag) => flag !== 'ro'),
      ownerOptions: ownerOptions(files),
    };
    const result = await runJob(job);
    if (result.ok) return { ...told, driver: result.type, journalIgnored: result.journalIgnored };
    const error = fromWireError(result.error);
    // A program may know what the kernel does not.
    if (!(error instanceof Qcow2Error) || error.code !== 'UNSUPPORTED') throw error;
    return mountForUser().catch((second: unknown) => {
      const found = userDriverFor(filesystem.type);
      throw found?.path === undefined ? noDriver(filesystem.type, found) : second;
    });
  }
  return mountForUser();

  async function mountForUser(): Promise<MountedFiles> {
    const needsRecovery = filesystem.needsRecovery === true;
    const { program } = await startUserDriver(filesystem, {
      file: path,
      directory,
      readOnly,
      allowOther: files.options.allowOther,
      needsRecovery,
    });
    return { ...told, driver: program, journalIgnored: readOnly && needsRecovery };
  }
}

function onlyRead(type: string): Qcow2Error {
  return new Qcow2Error('UNSUPPORTED', `files of ${type} can only be read`, {
    hint: 'leave --rw, --temp or --overlay out',
  });
}

/** Owner and permissions for filesystems without: of whoever called sudo, unless told otherwise. */
function ownerOptions({ options }: FilesRequest): string[] {
  const uid = options.uid ?? idFrom(process.env['SUDO_UID']) ?? 0;
  const gid = options.gid ?? idFrom(process.env['SUDO_GID']) ?? 0;
  // Directories are entered by those who may read them.
  const mode = options.fileMode | ((options.fileMode & 0o444) >> 2);
  return [`uid=${uid}`, `gid=${gid}`, `umask=${(0o777 & ~mode).toString(8).padStart(3, '0')}`];
}

function idFrom(text: string | undefined): number | undefined {
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}

/** Does a job in a thread of its own, which may wait for this one. */
async function runJob(job: KernelMountJob | UnmountJob): Promise<FileJobResult> {
  if (job.kind === 'unmount' && job.directories.length === 0) {
    return { ok: true, type: '', journalIgnored: false, hasUsers: false };
  }
  const worker = new Worker(new URL('./fuse-files.js', import.meta.url), { workerData: job });
  return new Promise((resolve, reject) => {
    worker.once('message', (result: FileJobResult) => resolve(result));
    worker.once('error', reject);
    worker.once('exit', () => reject(new Error('the thread that mounts has ended')));
  });
}
