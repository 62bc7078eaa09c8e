/**
 * Telling the kernel that a thread is one that it needs in order to write memory back (prctl(2),
 * `PR_SET_IO_FLUSHER`).
 *
 * A filesystem whose block device is served by this process writes its changed pages through it. If
 * the process needs memory for that while there is none left, the kernel would wait for pages to be
 * written, which only this process can bring about. A flusher's requests for memory never wait for
 * writing.
 */

import { loadLibc } from './libc.ts';

const PR_SET_IO_FLUSHER = 57;

/**
 * Marks the calling thread, and those that it starts from then on.
 * @returns whether that was possible: it takes Linux 5.6, koffi, and CAP_SYS_RESOURCE
 */
export function becomeIoFlusher(): boolean {
  const libc = process.platform === 'linux' ? loadLibc() : undefined;
  if (libc === undefined) return false;
  const prctl = libc.func(
    'int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)',
  );
  return Number(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)) === 0;
}
