/** Rows that several subcommands have. */

import { call, notHere, refused, same } from './model.ts';
import type { CaseDetails, OptionRow } from './model.ts';

const NO_OBJECTS =
  'made for the secrets of encrypted images, which are neither read nor written here';

/** `--object`, which no command takes. `call` is the rest of a call. */
export function objectRow(rest: string, details: CaseDetails = {}): OptionRow {
  return refused('--object', NO_OBJECTS, [
    notHere(`--object secret,id=a,data=b ${rest}`, '--object', details),
  ]);
}

/** `-U`, for a command that can read `disk.qcow2` while somebody writes to it. */
export function forceShareRow(rest: string, details: CaseDetails = {}): OptionRow {
  const exitCode = details.exitCode ?? 1;
  const successful = { ...details, exitCode: 0, inUse: 'disk.qcow2' };
  return same('-U --force-share', [
    call(`-U ${rest}`, successful),
    call(`--force-share ${rest}`, successful),
    call(rest, { exitCode, inUse: 'disk.qcow2' }),
  ]);
}
