/**
 * A mount that is served by this process: the image in a worker thread on the kernel channel, or
 * on the main thread through fuse-native.
 *
 * The end of a mount always starts outside the worker, which is blocked in a read that nothing
 * interrupts but the end of the connection: somebody unmounts the directory, and the read fails.
 * If the mount is in use and has to end all the same, the worker is made to leave its loop by a
 * flag and one request for it to notice; closing the descriptor then cuts the users off.
 */

import { once } from 'node:events';
import { closeSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import { ErrorLog } from '../export/fuse/error-log.ts';
import { dropPages } from '../export/fuse/invalidations.ts';
import type { FileTree } from '../export/fuse/file-tree.ts';
import { mountNative } from '../export/fuse/native-channel.ts';
import { becomeIoFlusher } from '../host/io-flusher.ts';
import { loadLibc } from '../host/libc.ts';
import { abortConnection, mountFuse, raiseReadAhead, unmountFuse } from '../host/mount.ts';
import { unmountOnMacSoon } from '../host/macos.ts';
import { findMount, isFuse } from '../host/mountinfo.ts';
import { processStartTime } from '../host/processes.ts';
import { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { DecompressionThreads, MAX_DECOMPRESSION_THREADS } from './decompression.ts';
import { channelsToTry } from './fuse-channels.ts';
import { openForMount } from './fuse-image.ts';
import { clearFiles, mountFiles } from './fuse-files.ts';
import type { MountedStack } from './fuse-files.ts';
import { FuseHelpers } from './fuse-helpers.ts';
import { MessageQueue } from './fuse-messages.ts';
import { removeEmptyDirectory } from './fuse-mounts.ts';
import { watchNative } from './fuse-native-end.ts';
import { allocateMountStats } from './mount-stats.ts';
import { defaultServingThreads } from './thread-count.ts';
import { fromWireError } from './wire-error.ts';
import { Control } from './fuse-request.ts';
import type {
  ChannelName,
  ImageSummary,
  MountRequest,
  MountSummary,
  ServeMessage,
  WorkerInput,
  WorkerMessage,
} from './fuse-request.ts';
import { currentUser, removeState, stateFile, writeState } from './fuse-state.ts';
import type { RecordedFiles } from './fuse-state.ts';

/** What the kernel may read ahead; more gained nothing (bench fuse-seq), and root only can. */
const READ_AHEAD_KIB = 1024;
/** How long a worker may take to finish the request that it is serving, before it is pressed. */
const STOP_TIMEOUT_MS = 1500;
/** How long it may take then, where that may be a flush to a slow disk. */
const WRITER_STOP_TIMEOUT_MS = 30_000;
/** The same, for the worker's last request. */
const STOP_POLL_MS = 10;
/** How often what was written is flushed unasked, on the channel that cannot tell when it is idle. */
const FLUSH_MS = 5000;
/**
 * Heap of the worker. The caches lie outside it, in buffers; the ceiling keeps the garbage of the
 * start from being kept for the weeks that a mount may last.
 */
const WORKER_LIMITS = { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 4 };

/** A mount that is being served. */
export interface ActiveMount {
  summary: MountSummary;
  /**
   * To be called before somebody is told of the mount. Until then, an overlay that was made for it
   * goes again with it, unless something was written.
   */
  accept(): void;
  /**
   * Settles once the mount has ended and everything that was made for it is gone. Rejected if what
   * was written last may be lost; the record of the mount says so then.
   */
  ended: Promise<void>;
  /** Ends the mount, even if it is in use; settles with {@link ended}, and is never rejected. */
  stop(): Promise<void>;
}

/** One channel's part of a mount. */
interface Served {
  summary: ImageSummary;
  channel: ChannelName;
  fallbackReason?: string;
  /**
   * Settles when the connection to the kernel has ended and the image is closed. Rejected if what
   * was written last may be lost.
   */
  ended: Promise<void>;
  /** Number of the mounted filesystem, as in `0:45`; undefined where that cannot be told. */
  device: string | undefined;
  /** See {@link ActiveMount}. */
  accept(): void;
  /** Ends the connection although the mount is in use. */
  cutOff(): Promise<void>;
}

/**
 * Opens the image and mounts it.
 *
 * @returns once the mount answers
 * @throws {Qcow2Error} what is wrong with the image, or why it cannot be mounted
 */
export async function startMount(request: MountRequest): Promise<ActiveMount> {
  const { directory } = request;
  let served: Served;
  try {
    served = await serve(request);
  } catch (error) {
    removeMade(request);
    throw error;
  }
  raiseReadAhead(directory, READ_AHEAD_KIB);
  const status: RecordedStatus = { channel: served.channel, device: served.device };
  record(request, status);
  const tidy = (): void => {
    detach(directory);
    if (status.files !== undefined) clearFiles(status.files);
    removeMade(request);
  };
  const ended = served.ended.then(
    () => {
      tidy();
      removeState(stateFile(request.id));
    },
    (error: unknown) => {
      tidy();
      // For whoever unmounted it: nobody else may look at the log.
      const failure = error instanceof Error ? error.message : String(error);
      record(request, { ...status, failure });
      throw error;
    },
  );
  let stack: MountedStack | undefined;
  try {
    stack = await mountStack(request, served.summary, status);
  } catch (error) {
    detach(directory);
    await ended.catch(() => undefined);
    throw error;
  }
  return {
    summary: summarize(request, served, stack),
    accept: () => served.accept(),
    ended,
    async stop() {
      if (stack !== undefined) await endStack(stack, served);
      else {
        try {
          await unmountServed(directory);
        } catch {
          await served.cutOff();
        }
      }
      await ended.catch(() => undefined);
    },
  };
}

/** Goes on to the files, if they are asked for. */
async function mountStack(
  request: MountRequest,
  summary: ImageSummary,
  status: RecordedStatus,
): Promise<MountedStack | undefined> {
  const { files } = request;
  if (files === undefined) return undefined;
  const keepRecord = (recorded: RecordedFiles): void => {
    status.files = recorded;
    record(request, status);
  };
  return mountFiles({ request, files, summary, record: keepRecord });
}

function summarize(
  { directory, image, access, overlay, files }: MountRequest,
  { summary, channel, fallbackReason }: Served,
  stack: MountedStack | undefined,
): MountSummary {
  return {
    directory: files?.directory ?? directory,
    image,
    access,
    ...(overlay === undefined ? {} : { overlay }),
    channel,
    ...(fallbackReason === undefined ? {} : { fallbackReason }),
    pid: process.pid,
    ...summary,
    ...(stack === undefined ? {} : { files: stack.files }),
    warnings: [...summary.warnings, ...(stack?.warnings ?? [])],
  };
}

/** Ends the mounts of the files, and then that of the image, if users of the files keep it. */
async function endStack(stack: MountedStack, served: Served): Promise<void> {
  const ending = (async () => {
    if (!(await stack.end())) return false;
    await served.ended;
    return true;
  })().catch(() => false);
  const timeout = sleep(WRITER_STOP_TIMEOUT_MS, false, { ref: false });
  if (!(await Promise.race([ending, timeout]))) await served.cutOff();
}

/** Removes the directories that were made for a mount. */
function removeMade({ directory, madeDirectory, files }: MountRequest): void {
  if (madeDirectory) removeEmptyDirectory(directory);
  if (files?.madeDirectory === true) removeEmptyDirectory(files.directory);
}

async function serve(request: MountRequest): Promise<Served> {
  const [first, second] = channelsToTry(request.channel);
  if (first === 'fuse-native') return serveNative(request);
  try {
    return await serveKernel(request);
  } catch (error) {
    const mayFallBack =
      second !== undefined && error instanceof Qcow2Error && error.code === 'MISSING_DEPENDENCY';
    if (!mayFallBack) throw error;
    try {
      return { ...(await serveNative(request)), fallbackReason: error.message };
    } catch {
      // The first error says what to install for the channel that was meant.
      throw error;
    }
  }
}

async function serveKernel(request: MountRequest): Promise<Served> {
  const { directory } = request;
  const control = new SharedArrayBuffer(4 * Object.keys(Control).length);
  const words = new Int32Array(control);
  const isRead = request.access === 'ro';
  const most = isRead ? (request.threads ?? defaultServingThreads()) : 1;
  const stats = allocateMountStats(most + MAX_DECOMPRESSION_THREADS);
  const input: WorkerInput = { request, control, stats };
  const worker = new Worker(workerUrl(), { workerData: input, resourceLimits: WORKER_LIMITS });
  const messages = new MessageQueue(worker);
  // Takes some milliseconds, which the worker needs to start anyway.
  loadLibc();
  const opened = await messages.next('opened');
  const fd = await mountFor(worker, request);
  const clusterCache = SharedClusterCache.attach(opened.clusterCache);
  const rows = { memory: stats.counters, row: most };
  const decompression = new DecompressionThreads(clusterCache, undefined, rows);
  const helpers = new FuseHelpers({
    request,
    fd,
    control,
    stats,
    fingerprint: opened.fingerprint,
    clusterCache,
    most: most - 1,
    log: (line) => process.stderr.write(`${line}\n`),
  });
  const jobsDone = words.subarray(Control.jobsDone);
  worker.on('message', (message: WorkerMessage) => {
    if (message.kind === 'invalidate') dropPages(fd, message.job, jobsDone);
    else if (message.kind === 'busy') void helpers.workerIsBusy();
  });
  const serveMessage: ServeMessage = { fd };
  worker.postMessage(serveMessage);
  try {
    await messages.next('ready');
  } catch (error) {
    detach(directory);
    closeSync(fd);
    throw error;
  }
  if (isRead && request.threads !== undefined) helpers.startAll();
  const device = findMount(directory)?.device;
  const ended = messages
    .next('ended')
    .then(({ failure }) => {
      if (failure !== undefined) throw fromWireError(failure);
    })
    .finally(async () => {
      await helpers.stop();
      await decompression.close();
      // The last reference: whoever still waits for an answer gets an error now.
      closeSync(fd);
    });
  return {
    summary: opened.summary,
    channel: 'kernel',
    ended,
    device,
    accept: () => void Atomics.store(words, Control.isAccepted, 1),
    cutOff: async () => {
      // Otherwise one of them might take the request that is to wake the worker.
      await helpers.stop();
      await stopWorker({ request, device, words, ended });
    },
  };
}

/** Mounts a directory that a worker is to serve; if that fails, the worker is ended. */
async function mountFor(worker: Worker, request: MountRequest): Promise<number> {
  const { directory, options } = request;
  try {
    return mountFuse({
      directory,
      source: options.source ?? request.image,
      subtype: options.subtype,
      flags: options.flags,
      allowOther: options.allowOther,
    });
  } catch (error) {
    // Not terminated: that would abort the process if the thread is loading a native module.
    const ended = once(worker, 'exit');
    worker.postMessage({ fd: undefined } satisfies ServeMessage);
    await ended;
    throw error;
  }
}

/** The worker's bundle, which lies beside whichever bundle this code is in. */
function workerUrl(): URL {
  return new URL('./fuse-session.js', import.meta.url);
}

async function stopWorker({
  request: { directory, access },
  device,
  words,
  ended,
}: {
  request: MountRequest;
  device: string | undefined;
  words: Int32Array;
  ended: Promise<void>;
}): Promise<void> {
  Atomics.store(words, Control.stop, 1);
  const stops = (timeoutMs: number): Promise<boolean> =>
    hasStoppedWithin({ words, ended, timeoutMs });
  if (findMount(directory) !== undefined) {
    // A request for the blocked worker to wake up by; whether it is answered does not matter.
    statfs(directory).catch(() => undefined);
    if (await stops(STOP_TIMEOUT_MS)) return;
  }
  if (device !== undefined && abortConnection(device)) {
    if (await stops(access === 'ro' ? STOP_TIMEOUT_MS : WRITER_STOP_TIMEOUT_MS)) return;
  }
  // Somebody has detached the directory and keeps a file of it open: no request reaches the worker
  // from here. The end of the process is the end of the connection too.
  detach(directory);
  process.kill(process.pid, 'SIGKILL');
}

/** Waits until the worker takes no more requests, and then for as long as it closes the image. */
async function hasStoppedWithin({
  words,
  ended,
  timeoutMs,
}: {
  words: Int32Array;
  ended: Promise<void>;
  timeoutMs: number;
}): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  let hasEnded = false;
  const end = ended.then(
    () => (hasEnded = true),
    () => (hasEnded = true),
  );
  while (!hasEnded && Atomics.load(words, Control.hasStopped) === 0) {
    if (performance.now() > deadline) return false;
    await Promise.race([end, sleep(STOP_POLL_MS)]);
  }
  await end;
  return true;
}

async function serveNative(request: MountRequest): Promise<Served> {
  const { directory, options } = request;
  const { tree, summary, close } = await openForMount(request);
  // As the worker of the other channel does.
  if (request.access !== 'ro') becomeIoFlusher();
  const log = new ErrorLog((line) => process.stderr.write(`${line}\n`));
  try {
    await mountNative(tree, log, {
      directory,
      source: options.source ?? request.image,
      subtype: options.subtype,
      flags: [...options.flags, ...(options.directIo ? ['direct_io'] : [])],
      allowOther: options.allowOther,
    });
  } catch (error) {
    close({ isAccepted: false });
    throw error;
  }
  let isAccepted = false;
  const flushing = setInterval(() => flushUnasked(tree, log), FLUSH_MS);
  const watch = watchNative(directory);
  const ended = watch.ended.then(() => {
    clearInterval(flushing);
    close({ isAccepted });
  });
  return {
    summary,
    channel: 'fuse-native',
    ended,
    device: watch.device,
    accept: () => {
      isAccepted = true;
    },
    // The connection itself ends with the process.
    cutOff: async () => {
      if (process.platform === 'darwin') {
        await unmountOnMacSoon(directory, { force: true }).catch(() => undefined);
      } else detach(directory);
      watch.cut();
    },
  };
}

function flushUnasked({ disk }: FileTree, log: ErrorLog): void {
  if (disk?.isUnflushed !== true) return;
  try {
    disk.flush();
  } catch (error) {
    // It is tried again; whoever syncs is told.
    log.report('flush', error);
  }
}

/** Unmounts a directory that this process serves. macOS may ask it something meanwhile. */
async function unmountServed(directory: string): Promise<void> {
  if (process.platform === 'darwin') await unmountOnMacSoon(directory, { force: false });
  else unmountFuse(directory);
}

/** Takes the directory out of the mount table, if it is still there. */
function detach(directory: string): void {
  const mount = findMount(directory);
  if (mount === undefined || !isFuse(mount)) return;
  try {
    unmountFuse(directory, { lazy: true });
  } catch {
    // Then it stays behind as a dead mount; the next mount or unmount clears it away.
  }
}

/** The part of a record that is not in the request. */
interface RecordedStatus {
  channel: ChannelName;
  device: string | undefined;
  files?: RecordedFiles;
  failure?: string;
}

function record(request: MountRequest, status: RecordedStatus): void {
  const { id, image, access, log } = request;
  const { channel, device = '', files, failure } = status;
  const { directory, madeDirectory } = request.files ?? request;
  writeState({
    id,
    directory,
    image,
    pid: process.pid,
    startTime: processStartTime(process.pid) ?? null,
    ...currentUser(),
    since: new Date().toISOString(),
    channel,
    access,
    device,
    madeDirectory,
    log: log ?? null,
    ...(files === undefined ? {} : { files }),
    ...(failure === undefined ? {} : { failure }),
  });
}
