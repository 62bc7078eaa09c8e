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
import { Worker } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import { ErrorLog } from '../export/fuse/error-log.ts';
import { mountNative } from '../export/fuse/native-channel.ts';
import { loadLibc } from '../host/libc.ts';
import { abortConnection, mountFuse, raiseReadAhead, unmountFuse } from '../host/mount.ts';
import { findMount } from '../host/mountinfo.ts';
import { processStartTime } from '../host/processes.ts';
import { openForMount } from './fuse-image.ts';
import { removeEmptyDirectory } from './fuse-mounts.ts';
import { fromWireError } from './wire-error.ts';
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

/** What the kernel may read ahead; more gained nothing (bench fuse-seq), and root only can. */
const READ_AHEAD_KIB = 1024;
/** How long a worker may take to finish the request that it is serving. */
const STOP_TIMEOUT_MS = 1500;
/** How often the mount table is looked at for the end of a mount that does not tell. */
const POLL_MS = 250;
/**
 * Heap of the worker. The caches lie outside it, in buffers; the ceiling keeps the garbage of the
 * start from being kept for the weeks that a mount may last.
 */
const WORKER_LIMITS = { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 4 };

/** A mount that is being served. */
export interface ActiveMount {
  summary: MountSummary;
  /** Settles once the mount has ended and everything that was made for it is gone. */
  ended: Promise<void>;
  /** Ends the mount, even if it is in use; settles as {@link ended} does. */
  stop(): Promise<void>;
}

/** One channel's part of a mount. */
interface Served {
  summary: ImageSummary;
  channel: ChannelName;
  fallbackReason?: string;
  /** Settles when the connection to the kernel has ended. */
  ended: Promise<void>;
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
    if (request.madeDirectory) removeEmptyDirectory(directory);
    throw error;
  }
  raiseReadAhead(directory, READ_AHEAD_KIB);
  record(request, served.channel);
  const ended = served.ended.finally(() => {
    detach(directory);
    if (request.madeDirectory) removeEmptyDirectory(directory);
    removeState(stateFile(request.id));
  });
  const { summary, channel, fallbackReason } = served;
  return {
    summary: {
      directory,
      image: request.image,
      channel,
      ...(fallbackReason === undefined ? {} : { fallbackReason }),
      pid: process.pid,
      ...summary,
    },
    ended,
    async stop() {
      try {
        unmountFuse(directory);
      } catch {
        await served.cutOff();
      }
      return ended;
    },
  };
}

async function serve(request: MountRequest): Promise<Served> {
  if (request.channel === 'fuse-native') return serveNative(request);
  try {
    return await serveKernel(request);
  } catch (error) {
    const mayFallBack =
      request.channel === 'auto' &&
      error instanceof Qcow2Error &&
      error.code === 'MISSING_DEPENDENCY';
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
  const { directory, options } = request;
  const stop = new SharedArrayBuffer(4);
  const input: WorkerInput = { request, stop };
  const worker = new Worker(workerUrl(), { workerData: input, resourceLimits: WORKER_LIMITS });
  const messages = new MessageQueue(worker);
  // Takes some milliseconds, which the worker needs to start anyway.
  loadLibc();
  const opened = await messages.next('opened');
  let fd: number;
  try {
    fd = mountFuse({
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
  const serveMessage: ServeMessage = { fd };
  worker.postMessage(serveMessage);
  try {
    await messages.next('ready');
  } catch (error) {
    detach(directory);
    closeSync(fd);
    throw error;
  }
  const ended = messages
    .next('ended')
    .then(() => undefined)
    // The last reference: whoever still waits for an answer gets an error now.
    .finally(() => closeSync(fd));
  return {
    summary: opened.summary,
    channel: 'kernel',
    ended,
    cutOff: () => stopWorker(directory, new Int32Array(stop), ended),
  };
}

/** The worker's bundle, which lies beside whichever bundle this code is in. */
function workerUrl(): URL {
  return new URL('./fuse-session.js', import.meta.url);
}

async function stopWorker(
  directory: string,
  stopFlag: Int32Array,
  ended: Promise<void>,
): Promise<void> {
  const device = findMount(directory)?.device;
  Atomics.store(stopFlag, 0, 1);
  // A request for the blocked worker to wake up by; whether it is answered does not matter.
  statfs(directory).catch(() => undefined);
  if (await settlesWithin(ended, STOP_TIMEOUT_MS)) return;
  if (device !== undefined && abortConnection(device)) {
    if (await settlesWithin(ended, STOP_TIMEOUT_MS)) return;
  }
  // Somebody has detached the directory and keeps a file of it open: no request reaches the worker
  // from here. The end of the process is the end of the connection too.
  detach(directory);
  process.kill(process.pid, 'SIGKILL');
}

async function settlesWithin(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  const settled = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([settled, timeout]);
  } finally {
    clearTimeout(timer);
  }
}

async function serveNative(request: MountRequest): Promise<Served> {
  const { directory, options } = request;
  const { tree, summary } = await openForMount(request);
  const log = new ErrorLog((line) => process.stderr.write(`${line}\n`));
  await mountNative(tree, log, {
    directory,
    source: options.source ?? request.image,
    subtype: options.subtype,
    flags: [...options.flags, ...(options.directIo ? ['direct_io'] : [])],
    allowOther: options.allowOther,
  });
  const device = findMount(directory)?.device;
  const ended = new Promise<void>((resolve) => {
    // libfuse's thread ends silently when the directory is unmounted.
    const timer = setInterval(() => {
      const mount = findMount(directory);
      if (mount !== undefined && mount.device === device) return;
      clearInterval(timer);
      resolve();
    }, POLL_MS);
  });
  return {
    summary,
    channel: 'fuse-native',
    ended,
    // The connection itself ends with the process.
    cutOff: () => {
      detach(directory);
      return Promise.resolve();
    },
  };
}

/** Takes the directory out of the mount table, if it is still there. */
function detach(directory: string): void {
  if (!findMount(directory)?.type.startsWith('fuse')) return;
  try {
    unmountFuse(directory, { lazy: true });
  } catch {
    // Then it stays behind as a dead mount; the next mount or unmount clears it away.
  }
}

function record(request: MountRequest, channel: ChannelName): void {
  const { id, directory, image, madeDirectory, log } = request;
  writeState({
    id,
    directory,
    image,
    pid: process.pid,
    startTime: processStartTime(process.pid) ?? null,
    ...currentUser(),
    since: new Date().toISOString(),
    channel,
    device: findMount(directory)?.device ?? '',
    madeDirectory,
    log: log ?? null,
  });
}

/** Messages of a worker, awaited one kind after the other. A failure is thrown to who waits. */
class MessageQueue {
  readonly #waiting = new Map<WorkerMessage['kind'], (message: WorkerMessage) => void>();
  readonly #arrived = new Map<WorkerMessage['kind'], WorkerMessage>();
  #reject: ((error: Error) => void) | undefined;
  #failure: Error | undefined;

  constructor(worker: Worker) {
    worker.on('message', (message: WorkerMessage) => {
      if (message.kind === 'failed') this.#fail(fromWireError(message.error));
      const resolve = this.#waiting.get(message.kind);
      if (resolve === undefined) this.#arrived.set(message.kind, message);
      else resolve(message);
    });
    worker.on('error', (error: Error) => this.#fail(error));
    worker.on('exit', () => this.#fail(new Error('the worker of the mount has ended')));
  }

  async next<K extends WorkerMessage['kind']>(
    kind: K,
  ): Promise<Extract<WorkerMessage, { kind: K }>> {
    const message = await new Promise<WorkerMessage>((resolve, reject) => {
      const arrived = this.#arrived.get(kind);
      if (arrived !== undefined) resolve(arrived);
      else if (this.#failure !== undefined) reject(this.#failure);
      this.#waiting.set(kind, resolve);
      this.#reject = reject;
    });
    return message as Extract<WorkerMessage, { kind: K }>;
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#reject?.(this.#failure);
  }
}
