/** What checkImage and `qemu-img check` say of an image, in the same form. */

import { Qcow2Error } from '../../src/errors.ts';
import { checkImage, openForCheck } from '../../src/operations/check.ts';
import type { CheckResult } from '../../src/operations/check.ts';
import { tryRun } from '../support/qemu.ts';

/** What QEMU says of stale bitmaps on a line of its own that it does not end. */
const HINT_WITHOUT_END =
  /Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix\./;

/** The outcome of a check. */
export interface Outcome {
  /** Undefined where the image cannot be checked at all. */
  result: CheckResult | undefined;
  /** Lines of messages, sorted: those of a table that is shared come together here. */
  messages: string[];
  /** Why it could not be checked. */
  refusal: string;
}

/** What we say. */
export function check(path: string): Outcome {
  const messages: string[] = [];
  try {
    using image = openForCheck(path, { format: 'qcow2' });
    if (image.format !== 'qcow2') throw new Error('it was opened as qcow2');
    const onProblem = ({ message }: { message: string }): void => {
      messages.push(...message.split('\n').filter((line) => !line.startsWith('warning: ')));
    };
    return { result: checkImage(image, { onProblem }), messages: messages.sort(), refusal: '' };
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    return { result: undefined, messages, refusal: error.message };
  }
}

/** What QEMU says, and its exit code, which is negative where it crashed. */
export function qemuCheck(path: string): Outcome & { exitCode: number } {
  const { stdout, stderr, exitCode } = tryRun('qemu-img', [
    ...['check', '-f', 'qcow2', '--output=json', path],
  ]);
  const lines = stderr
    .replace(HINT_WITHOUT_END, '')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('qemu-img:'));
  if (stdout === '') return { result: undefined, messages: [], refusal: stderr, exitCode };
  const result = JSON.parse(stdout) as CheckResult;
  return { result, messages: lines.sort(), refusal: '', exitCode };
}
