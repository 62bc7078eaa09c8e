/**
 * Dropping what the kernel has cached of files whose bytes were changed through another file.
 *
 * The kernel is asked to by a message on the connection (FUSE_NOTIFY_INVAL_INODE), and it returns
 * only when that is done: it waits for pages that are being read or written, and so for the thread
 * that serves those requests. That thread must not send the message itself, then, or both would
 * wait for ever. It hands it to another one, together with the reply to the write, which is sent
 * once the pages are gone: nobody who saw the write return finds old bytes in any file.
 *
 * The other thread does its jobs one after the other, so a reply must not stand behind a message
 * that waits for it: a write to a file that some job is about to drop is answered at once, and what
 * it made stale is dropped as soon as that may be. So are pages that the kernel writes of its own
 * accord (those changed through mmap), since dropping a file's pages writes such pages first.
 */

import { writeSync } from 'node:fs';
import { Notify } from './protocol.ts';
import type { DiskView } from './writable-disk.ts';

/** What the other thread is to do. Survives being posted. */
export interface InvalidationJob {
  /** Files whose pages are dropped; none if the reply only has to wait for jobs before it. */
  inodes: number[];
  /** Sent after that. */
  reply?: Uint8Array;
}

/** A change that made pages of other files stale. */
export interface StalePages {
  /** The file that was written through. */
  writer: DiskView;
  /** Those that show the same bytes, and of which the kernel has or had pages. */
  others: readonly DiskView[];
  /** Whether the reply may wait until the pages are gone. */
  mayWait: boolean;
}

/** The serving thread's end. */
export class Invalidations {
  readonly #post: (job: InvalidationJob) => void;
  readonly #jobsDone: Int32Array;
  #jobsPosted = 0;
  /** The last job that drops pages of an inode. */
  readonly #lastJobs = new Map<number, number>();

  /**
   * @param post hands a job over; they are done in this order
   * @param jobsDone one number that {@link dropPages} counts up, in shared memory
   */
  constructor(post: (job: InvalidationJob) => void, jobsDone: Int32Array) {
    this.#post = post;
    this.#jobsDone = jobsDone;
  }

  /**
   * Has the pages dropped.
   * @returns whether the reply was taken over; if not, it is the caller's to send
   */
  drop({ writer, others, mayWait }: StalePages, reply: Uint8Array): boolean {
    const cached = others.filter((view) => view.isCached);
    const takesReply =
      mayWait &&
      !this.#isPending(writer.inode) &&
      (cached.length > 0 || others.some(({ inode }) => this.#isPending(inode)));
    if (cached.length === 0 && !takesReply) return false;
    this.#jobsPosted = (this.#jobsPosted + 1) | 0;
    for (const view of cached) {
      view.isCached = false;
      this.#lastJobs.set(view.inode, this.#jobsPosted);
    }
    const inodes = cached.map(({ inode }) => inode);
    this.#post(takesReply ? { inodes, reply: Uint8Array.from(reply) } : { inodes });
    return takesReply;
  }

  /** Whether a job is not done yet that drops pages of the inode. */
  #isPending(inode: number): boolean {
    const job = this.#lastJobs.get(inode);
    if (job === undefined) return false;
    // The numbers may have come round.
    if (((job - Atomics.load(this.#jobsDone, 0)) | 0) > 0) return true;
    this.#lastJobs.delete(inode);
    return false;
  }
}

/** The other thread's end: does a job on the descriptor of the connection. */
export function dropPages(fd: number, { inodes, reply }: InvalidationJob, done: Int32Array): void {
  // A message that fails is about an inode that the kernel has forgotten, with all its pages, or
  // a connection that has ended.
  for (const inode of inodes) trySend(fd, invalidationMessage(inode));
  if (reply !== undefined) trySend(fd, reply);
  Atomics.add(done, 0, 1);
}

function trySend(fd: number, message: Uint8Array): void {
  try {
    writeSync(fd, message);
  } catch {
    // See above.
  }
}

/** `fuse_out_header` and `fuse_notify_inval_inode_out`: all pages of an inode, from 0 to the end. */
function invalidationMessage(inode: number): Uint8Array {
  const message = new ArrayBuffer(40);
  const words = new Int32Array(message);
  words[0] = 40;
  words[1] = Notify.INVAL_INODE;
  new BigUint64Array(message)[2] = BigInt(inode);
  return new Uint8Array(message);
}
