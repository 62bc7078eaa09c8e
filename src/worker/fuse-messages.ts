/** What the worker of a mount tells the main thread, as it is waited for. */

import type { Worker } from 'node:worker_threads';
import type { WorkerMessage } from './fuse-request.ts';
import { fromWireError } from './wire-error.ts';

/** Messages of a worker, awaited one kind after the other. A failure is thrown to who waits. */
export class MessageQueue {
  readonly #waiting = new Map<WorkerMessage['kind'], (message: WorkerMessage) => void>();
  readonly #arrived = new Map<WorkerMessage['kind'], WorkerMessage>();
  #reject: ((error: Error) => void) | undefined;
  #failure: Error | undefined;

  /** @param worker whose messages are kept from here on */
  constructor(worker: Worker) {
    worker.on('message', (message: WorkerMessage) => {
      // Those come in any number, and nobody waits for them here.
      if (message.kind === 'invalidate' || message.kind === 'busy') return;
      if (message.kind === 'failed') this.#fail(fromWireError(message.error));
      const resolve = this.#waiting.get(message.kind);
      if (resolve === undefined) this.#arrived.set(message.kind, message);
      else resolve(message);
    });
    worker.on('error', (error: Error) => this.#fail(error));
    worker.on('exit', () => this.#fail(new Error('the worker of the mount has ended')));
  }

  /**
   * The message of a kind, which has come or will come.
   * @throws {Error} (rejects) what the worker says is wrong, or that it has ended
   */
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
