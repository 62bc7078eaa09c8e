/**
 * How the options of qemu-img are listed: a row each, with what became of it here and with calls that
 * show it.
 */

/**
 * `same`: means and does what it does for qemu-img. `better`: the same calls work, and the remark
 * tells what else there is. `refused`: an error that names the reason.
 */
export type OptionState = 'same' | 'better' | 'refused';

/** A call. `@` in its arguments stands for the directory of the images, and a slash. */
export interface OptionCase {
  args: readonly string[];
  /** Exit code of both programs. */
  exitCode: number;
  /**
   * Files that have to be the same afterwards: what they read as, what they say about themselves, what
   * is allocated in them. Names that end in `.raw` are of that format, and others are qcow2.
   */
  images: readonly string[];
  /** Images that only have to read the same, and to say the same about themselves. */
  contents: readonly string[];
  /** Files that have to be the same afterwards, byte by byte. */
  bytes: readonly string[];
  /** Files of which the first cluster has to be the same, that is the header, beside being images. */
  headers: readonly string[];
  /** How what is printed is compared; `own`: it is not, as the remark says. */
  output: 'same' | 'json' | 'own';
  /** What is expected here where it is not what qemu-img does. */
  ours?: { exitCode: number; says?: string };
  /** `ours`: qemu-img 7.2 has no such call. */
  runs: 'both' | 'ours';
  /** An image that somebody else has open for writing meanwhile. */
  inUse?: string;
}

/** What may be said of a call, beside its arguments. */
export type CaseDetails = Partial<Omit<OptionCase, 'args'>>;

/** An option, or what else is part of a call. */
export interface OptionRow {
  /** All of its forms, as in `-f` and `--format`. */
  names: readonly string[];
  state: OptionState;
  /** What is better, or why it is refused; what there is to know otherwise. */
  remark?: string;
  cases: readonly OptionCase[];
}

/** A subcommand, and all that can be said to it. */
export interface Subcommand {
  name: string;
  /** Whether it leaves all images as they are, so that both programs can have the same ones. */
  readOnly: boolean;
  rows: readonly OptionRow[];
}

/** A call that succeeds, or that ends as `details` say. Spaces separate arguments. */
export function call(args: string | readonly string[], details: CaseDetails = {}): OptionCase {
  return {
    args: typeof args === 'string' ? args.split(' ').filter((arg) => arg !== '') : args,
    exitCode: 0,
    images: [],
    contents: [],
    bytes: [],
    headers: [],
    output: 'same',
    runs: 'both',
    ...details,
  };
}

/** A call that both programs refuse. */
export function wrong(args: string | readonly string[], details: CaseDetails = {}): OptionCase {
  return call(args, { exitCode: 1, ...details });
}

/** A call that only qemu-img accepts; here it fails with a message that contains `says`. */
export function notHere(
  args: string | readonly string[],
  says: string,
  { exitCode = 1, ...details }: CaseDetails = {},
): OptionCase {
  return call(args, { output: 'own', ...details, ours: { exitCode, says } });
}

/** A call that qemu-img 7.2 does not know. */
export function onlyHere(args: string | readonly string[], details: CaseDetails = {}): OptionCase {
  return call(args, { runs: 'ours', ...details });
}

/** An option that does what it does for qemu-img. */
export function same(names: string, cases: readonly OptionCase[], remark?: string): OptionRow {
  return row('same', names, cases, remark);
}

/** An option that does more, or does it better. */
export function better(names: string, remark: string, cases: readonly OptionCase[]): OptionRow {
  return row('better', names, cases, remark);
}

/** An option that is not there, and why. */
export function refused(names: string, remark: string, cases: readonly OptionCase[]): OptionRow {
  return row('refused', names, cases, remark);
}

function row(
  state: OptionState,
  names: string,
  cases: readonly OptionCase[],
  remark: string | undefined,
): OptionRow {
  return { names: names.split(' '), state, cases, ...(remark === undefined ? {} : { remark }) };
}
