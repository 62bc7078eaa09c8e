/**
 * File names out of names that an image holds.
 *
 * Partition labels and snapshot names are whatever the image says. A file name must not leave its
 * directory, must not be read as `.` or `..`, must fit the kernel's 255 bytes, and should not
 * carry control or text-direction characters to the terminal that lists it.
 */

/** Bytes in a file name (NAME_MAX). */
export const MAX_NAME_BYTES = 255;

// Controls, the slash, the code points that turn text around, lone surrogates and noncharacters.
const UNSAFE =
  /[\u0000-\u001f\u007f-\u009f/\\\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffd]|\p{Surrogate}|\p{Noncharacter_Code_Point}/gu;

/**
 * A name that is safe as part of a file name: unsafe characters become `_`, spaces at the ends go.
 * May be empty.
 */
export function safeName(name: string): string {
  return name.replace(UNSAFE, '_').trim();
}

/**
 * `stem` + `suffix`, cut at a character's edge so that it has at most 255 bytes, never `.` or `..`.
 *
 * @param stem any string; it is made safe
 * @param suffix ASCII, short, as in `.raw`
 */
export function fileName(stem: string, suffix = ''): string {
  let name = safeName(stem);
  const room = MAX_NAME_BYTES - suffix.length;
  const bytes = Buffer.from(name);
  if (bytes.length > room) {
    // A character that is cut in two is decoded as U+FFFD, which is in no safe name.
    name = bytes.toString('utf8', 0, room).replace(/\ufffd$/, '');
  }
  if (suffix === '' && (name === '' || name === '.' || name === '..'))
    return '_'.padEnd(name.length, '_');
  return name + suffix;
}

/** Makes names unique among those that it gave out before, by a number before the suffix. */
export class UniqueNames {
  /** For each name given out, the number that the next of the same stem gets. */
  readonly #taken = new Map<string, number>();

  /** Parameters as for {@link fileName}. */
  next(stem: string, suffix = ''): string {
    const first = fileName(stem, suffix);
    let name = first;
    let count = this.#taken.get(first) ?? 1;
    while (this.#taken.has(name)) name = fileName(stem, `~${++count}${suffix}`);
    this.#taken.set(name, 1);
    this.#taken.set(first, count);
    return name;
  }
}
