/** Sizes on the command line, read and written as qemu-img does. */

import { usageError } from './command.ts';

/** Powers of 1024 by suffix letter; `b` is one byte. */
const SUFFIXES = 'bkmgtpe';

const HEXADECIMAL = /^\s*\+?0x([0-9a-f]+)([kmgtp])?$/i;
const DECIMAL = /^\s*\+?([0-9]+)(?:\.([0-9]*))?([bkmgtpe])?$/i;

/**
 * Reads a size: digits, an optional fraction, and an optional suffix of `b`, `k`, `M`, `G`, `T`,
 * `P` or `E` in either case, powers of 1024; or a hexadecimal number. A fraction needs a suffix
 * above `b` and is rounded to bytes.
 *
 * @param text as in `1.5G`
 * @param what names the value in the error, as in `the sparse size`
 * @param bound it must be less than that; above 2^53, what it is exactly is lost (default 2^53)
 * @throws {Qcow2Error} `INVALID_OPTION` if it is malformed, or `bound` and more
 */
export function parseSize(text: string, what: string, bound = 2 ** 53): number {
  const bytes = sizeInBytes(text);
  if (bytes === undefined) {
    throw usageError(
      `${what} '${text}' is not a size; give bytes, or a number with a suffix k, M, G, T, P or E`,
    );
  }
  if (bytes >= bound) {
    const most = bound === 2 ** 53 ? '8P' : `${bound}`;
    throw usageError(`${what} '${text}' is too large; sizes are less than ${most}`);
  }
  return bytes;
}

function sizeInBytes(text: string): number | undefined {
  const hexadecimal = HEXADECIMAL.exec(text);
  if (hexadecimal !== null) {
    const [, digits = '', suffix = 'b'] = hexadecimal;
    return Number.parseInt(digits, 16) * multiplierOf(suffix);
  }
  const decimal = DECIMAL.exec(text);
  if (decimal === null) return undefined;
  const [, whole = '', fractionDigits = '', suffix = 'b'] = decimal;
  const multiplier = multiplierOf(suffix);
  const fraction = Number(`0.${fractionDigits}`);
  if (fraction !== 0 && multiplier === 1) return undefined;
  return Number(whole) * multiplier + Math.floor(fraction * multiplier + 0.5);
}

function multiplierOf(suffix: string): number {
  return 1024 ** SUFFIXES.indexOf(suffix.toLowerCase());
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/**
 * A size in three significant digits and the largest unit of which there is at least 0.977, as in
 * `1.5 GiB`.
 *
 * @param bytes not negative
 */
export function formatSize(bytes: number): string {
  // A unit is left for the next as soon as its number would have four digits.
  let unit = 0;
  let scaled = bytes;
  while (scaled >= 1000 && unit < UNITS.length - 1) {
    scaled /= 1024;
    unit++;
  }
  return `${threeDigits(scaled)} ${UNITS[unit]}`;
}

/** A size both ways: `1.5 GiB (1610612736 bytes)`. */
export function formatSizeWithBytes(bytes: number): string {
  return `${formatSize(bytes)} (${bytes} bytes)`;
}

/** As C's `%.3g`: three significant digits without trailing zeroes; 999.6 becomes `1e+03`. */
function threeDigits(value: number): string {
  const rounded = value.toPrecision(3);
  if (rounded.includes('e')) {
    const [mantissa = '', exponent = ''] = rounded.split('e');
    const [sign, ...digits] = exponent;
    return `${Number(mantissa)}e${sign}${digits.join('').padStart(2, '0')}`;
  }
  return String(Number(rounded));
}
