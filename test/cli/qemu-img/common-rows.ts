/** Rows that several subcommands have. */

import { call, notHere, refused, same, wrong } from './model.ts';
import type { CaseDetails, OptionRow } from './model.ts';

const NO_OBJECTS = 'made for encryption and for protocols over a network, which are not here';

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

/** What is said of an image with `--image-opts`, and how a call goes on. */
interface ImageOptsCall {
  /** Options before it, as in `-O qcow2`. */
  before?: string;
  /** The image; qcow2. */
  image: string;
  after?: string;
  /** What the call that succeeds is held against. */
  details?: CaseDetails;
  /** Exit code of those that fail. */
  failure?: number;
}

/** `--image-opts`, for a command that opens one image by it. */
export function imageOptsRow({
  before = '',
  image,
  after = '',
  details = {},
  failure: exitCode = 1,
}: ImageOptsCall): OptionRow {
  const withOptions = (options: string): string =>
    `--image-opts ${before} ${options} ${after}`.trim();
  return same(
    '--image-opts',
    [
      call(withOptions(`driver=qcow2,file.driver=file,file.filename=@${image}`), details),
      call(withOptions(`driver=qcow2,file.filename=@${image}`), details),
      wrong(withOptions('driver=qcow2,file.filename=@missing'), { exitCode }),
      wrong(withOptions('driver=nofmt,file.filename=@missing'), { exitCode }),
      wrong(withOptions(`@${image}`), { exitCode }),
      wrong(withOptions(`driver=qcow2,file.filename=@${image},nope=1`), { exitCode }),
    ],
    'the drivers qcow2, raw, file and host_device, with the options of theirs that apply to files',
  );
}
