/** The main thread's end of the conversation with the worker thread that holds an image open. */

import { Worker } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import type { ProblemListener } from '../operations/check.ts';
import type {
  ImageCalls,
  ImageResponse,
  ImageWorkerData,
  ProblemNotice,
} from './image-protocol.ts';
import { fromWireError } from './wire-error.ts';

interface PendingCall {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}

/** Posts calls to the worker, which executes them in order, and matches the answers to them. */
export class ImageThread {
  /** Bytes of the active disk, after the last call that was answered. */
  diskSize = 0;
  /** Is told of the problems that a check meets. */
  onProblem: ProblemListener | undefined;
  readonly #worker: Worker;
  readonly #pending = new Map<number, PendingCall>();
  #nextId = 0;
  #failure: Error | undefined;
  #isTerminated = false;

  constructor(data: ImageWorkerData) {
    // No options of the process: `--input-type`, for one, keeps a thread from loading a file.
    this.#worker = new Worker(imageWorkerUrl(), { workerData: data, execArgv: [] });
    this.#worker.on('message', (message: ImageResponse | ProblemNotice) => this.#receive(message));
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.on('exit', () => this.#fail(new Qcow2Error('CLOSED', 'the image was closed')));
    // An open image alone does not keep the process alive; a call under way does.
    this.#worker.unref();
  }

  /**
   * Has the worker do something, once it has done what it was asked before. Of bytes in shared
   * memory it sees what is there then; of others it gets a copy of what they are now.
   */
  call<Name extends keyof ImageCalls>(
    name: Name,
    ...values: ImageCalls[Name]['arguments']
  ): Promise<ImageCalls[Name]['result']> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    const transferred: ArrayBuffer[] = [];
    const posted = values.map((value: unknown) => {
      if (!(value instanceof Uint8Array) || isShared(value)) return value;
      // Cloning a view would clone all of its buffer, which may be a pool; transferring it would
      // take it away from the caller.
      const copy = new Uint8Array(value);
      transferred.push(copy.buffer);
      return copy;
    });
    return new Promise((resolve, reject) => {
      this.#worker.postMessage({ id, call: name, arguments: posted }, transferred);
      this.#pending.set(id, {
        resolve: (result) => resolve(result as ImageCalls[Name]['result']),
        reject,
      });
      this.#worker.ref();
    });
  }

  /** Whether it was ended, and its files closed with it. */
  get isTerminated(): boolean {
    return this.#isTerminated;
  }

  /** Ends the worker; whatever it has not answered is rejected with `CLOSED`. */
  async terminate(): Promise<void> {
    this.#isTerminated = true;
    this.#failure ??= new Qcow2Error('CLOSED', 'the image was closed');
    await this.#worker.terminate();
  }

  #receive(message: ImageResponse | ProblemNotice): void {
    if ('problems' in message) for (const problem of message.problems) this.onProblem?.(problem);
    else this.#settle(message);
  }

  #settle(response: ImageResponse): void {
    const call = this.#pending.get(response.id);
    this.#pending.delete(response.id);
    if (this.#pending.size === 0) this.#worker.unref();
    this.diskSize = response.diskSize;
    if (response.ok) call?.resolve(response.result);
    else call?.reject(fromWireError(response.error));
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#failure);
    this.#pending.clear();
  }
}

/** Whether several threads can see the bytes. */
export function isShared({ buffer }: Uint8Array): boolean {
  return buffer instanceof SharedArrayBuffer;
}

/** The worker's bundle, which lies beside this one; from the sources, in `dist/`. */
function imageWorkerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? '../../dist/image.js' : './image.js', import.meta.url);
}
