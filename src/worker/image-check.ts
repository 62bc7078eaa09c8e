/** Checking and repairing images in worker threads. */

import type { CheckOptions, CheckResult, RepairOptions } from '../operations/check.ts';
import type { AsyncOpenImageOptions } from './image-client.ts';
import { ImageThread } from './image-thread.ts';

/**
 * Checks the metadata of an image in a worker thread of its own, as the synchronous `openForCheck`
 * and `checkImage` do. Its backing files are not looked at.
 *
 * @throws {Qcow2Error} as those do; `UNSUPPORTED` for a raw image
 * @example
 * const { corruptions = 0, leaks = 0 } = await checkImage('disk.qcow2');
 */
export function checkImage(
  path: string,
  { onProblem, ...options }: AsyncOpenImageOptions & CheckOptions = {},
): Promise<CheckResult> {
  const thread = new ImageThread({ path, options, purpose: 'check' });
  return closingAfter(thread, onProblem, () => thread.call('check'));
}

/**
 * Repairs the metadata of an image in a worker thread of its own, as the synchronous `openForRepair`
 * and `repairImage` do.
 *
 * @returns what is left, and how much was repaired
 * @throws {Qcow2Error} as those do; `UNSUPPORTED` for a raw image
 * @example
 * await repairImage('disk.qcow2', { fix: 'leaks' });
 */
export function repairImage(
  path: string,
  { fix, onProblem, ...options }: AsyncOpenImageOptions & RepairOptions,
): Promise<CheckResult> {
  const thread = new ImageThread({ path, options, purpose: 'repair' });
  return closingAfter(thread, onProblem, () => thread.call('repair', fix));
}

async function closingAfter<T>(
  thread: ImageThread,
  onProblem: CheckOptions['onProblem'],
  check: () => Promise<T>,
): Promise<T> {
  thread.onProblem = onProblem;
  try {
    const result = await check();
    await thread.call('close');
    return result;
  } finally {
    await thread.terminate();
  }
}
