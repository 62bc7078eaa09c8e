/**
 * Errors in the words of qemu-img 7.2, which programs look for: what cannot be opened and why, and
 * what is wrong with a call. Errors that qemu-img does not have are told in our own words.
 */

import { Qcow2Error } from '../errors.ts';
import { describeError } from './report.ts';
import { callError } from './qemu-img-usage.ts';

/** A call of a command, as far as it can be told where it is wrong. */
export interface QemuCall {
  command: string;
  operands: readonly string[];
  /** Values of options by their long names; empty for flags. */
  values: ReadonlyMap<string, string>;
}

/** An error in qemu-img's words. */
export interface QemuMessage {
  /** Lines; the program's name goes before the first. */
  lines: readonly string[];
  /** What qemu-img exits with, where that is not what the command exits with. */
  exitCode?: number | undefined;
  /** Whether it goes on to say where there is help. */
  triesHelp?: boolean | undefined;
}

/** Tells an error as qemu-img would. */
export function describeAsQemu(error: unknown, call: QemuCall): QemuMessage {
  if (!(error instanceof Qcow2Error)) return { lines: [describeError(error)] };
  const { file = '', code, problem } = error;
  if (call.operands.includes(file) && code === 'INVALID_OPTION' && /[=:]/.test(file)) {
    // Of an image that is given by its options.
    return { lines: [`Could not open '${file}': ${problem}`] };
  }
  const ofCall = callError(error, call);
  if (ofCall !== undefined) return ofCall;
  const reason = openFailure(error);
  const lines = reason === undefined ? undefined : placeFailure(error, reason, call);
  return { lines: lines ?? [error.message] };
}

/** Why a file could not be opened, as qemu-img says it; undefined for what is no such error. */
function openFailure(error: Qcow2Error): string[] | undefined {
  const { code, problem, hint = '', file = '', structure } = error;
  if (code === 'LOCKED') {
    const permission = hint.includes('--force-share') ? 'shared "write"' : '"write"';
    return [`Failed to get ${permission} lock`, `Is another process using the image [${file}]?`];
  }
  if (code === 'HOST' && /^cannot (?:open|create)/.test(problem)) {
    return [`Could not open '${file}': ${systemMessage(error)}`];
  }
  if (code === 'NOT_THIS_FORMAT') return ['Image is not in qcow2 format'];
  if (code === 'UNKNOWN_FORMAT' && problem.startsWith('it is ')) {
    return [`'file' driver requires '${file}' to be a regular file`];
  }
  if (code === 'READ_ONLY' && problem.startsWith('it is to be opened')) {
    return ['Block node is read-only'];
  }
  if (problem.startsWith('it is marked corrupt')) {
    return ['qcow2: Image is corrupt; cannot be opened read/write'];
  }
  const isOfOpening =
    structure === 'header' || structure === 'backing file' || structure === 'external data file';
  if (isOfOpening || code === 'CYCLE' || code === 'UNKNOWN_FORMAT') return [withHint(error)];
  return undefined;
}

function withHint({ problem, hint }: Qcow2Error): string {
  return hint === undefined ? problem : `${problem}; ${hint}`;
}

/** Says which of the files of a call it was that could not be opened. */
function placeFailure(
  error: Qcow2Error,
  [reason = '', ...more]: readonly string[],
  { command, operands, values }: QemuCall,
): string[] {
  const { file = '' } = error;
  const [first = ''] = operands;
  if (command === 'create') return createFailure(error, [reason, ...more], first);
  const output = command === 'convert' ? operands.at(-1) : outputOf(command, operands);
  if (output === file && operands.length > 1 && !values.has('no-create')) {
    const doing = command === 'convert' ? converting(values) : 'error while creating output image';
    return [`${file}: ${doing}: ${created(reason)}`, ...more];
  }
  if (command === 'rebase' && isNewBacking(file, values.get('backing'))) {
    return [`Could not open new backing file '${values.get('backing')}': ${reason}`, ...more];
  }
  const images = command === 'dd' ? operands.map((text) => text.replace(/^if=/, '')) : operands;
  const image = images.find((operand) => operand === file || isOptionsOf(operand, file));
  if (image !== undefined) return [`Could not open '${image}': ${reason}`, ...more];
  // With --backing-chain the files of a chain are opened one by one.
  if (command === 'info') return [`Could not open '${file}': ${reason}`, ...more];
  return [`Could not open '${images[0] ?? file}': Could not open backing file: ${reason}`, ...more];
}

function outputOf(command: string, operands: readonly string[]): string | undefined {
  if (command !== 'dd') return undefined;
  return operands.find((text) => text.startsWith('of='))?.slice('of='.length);
}

function converting(values: ReadonlyMap<string, string>): string {
  return `error while converting ${values.get('output-format') ?? 'raw'}`;
}

/** What is made is not opened. */
function created(reason: string): string {
  return reason.replace(/^Could not open /, 'Could not create ');
}

function createFailure(error: Qcow2Error, lines: readonly string[], image: string): string[] {
  const [reason = '', ...more] = lines;
  if (error.file === image) return [`${image}: ${created(reason)}`, ...more];
  return [`${image}: ${reason}`, ...more, 'Could not open backing image.'];
}

function isNewBacking(file: string, backing: string | undefined): boolean {
  return (
    backing !== undefined && backing !== '' && (file === backing || file.endsWith(`/${backing}`))
  );
}

/** Whether an operand of `--image-opts`, or a `json:` or `file:` name, is about a file. */
function isOptionsOf(operand: string, file: string): boolean {
  return (
    operand === `file:${file}` ||
    operand.includes(`filename=${file.replaceAll(',', ',,')}`) ||
    (operand.startsWith('json:') && operand.includes(JSON.stringify(file)))
  );
}

/** As strerror(3). */
function systemMessage({ cause, problem }: Qcow2Error): string {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code ?? '';
  return SYSTEM_MESSAGES[code] ?? problem.replace(/^[^:]*: /, '');
}

const SYSTEM_MESSAGES: Readonly<Record<string, string>> = {
  EACCES: 'Permission denied',
  EBUSY: 'Device or resource busy',
  EIO: 'Input/output error',
  EISDIR: 'Is a directory',
  ELOOP: 'Too many levels of symbolic links',
  EMFILE: 'Too many open files',
  ENAMETOOLONG: 'File name too long',
  ENOENT: 'No such file or directory',
  ENOSPC: 'No space left on device',
  ENOTDIR: 'Not a directory',
  ENXIO: 'No such device or address',
  EPERM: 'Operation not permitted',
  EROFS: 'Read-only file system',
  ETXTBSY: 'Text file busy',
};
