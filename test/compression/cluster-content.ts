/** Clusters of all sorts to compress: made from a seed, so that a failure can be repeated. */

/** What a cluster holds. */
export const CONTENT_KINDS = ['zero', 'noise', 'text', 'mixed', 'far-repeats'] as const;
export type ContentKind = (typeof CONTENT_KINDS)[number];

const WORDS = ['lorem ', 'ipsum ', 'dolor ', 'sit ', 'amet, ', '\n', '0x7f ', '0x00 '];

/** A cluster of one kind. */
export function clusterContent(kind: ContentKind, seed: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const random = randomBytes(seed);
  if (kind === 'noise') fill(bytes, 0, length, random);
  if (kind === 'text') writeText(bytes, 0, length, random);
  if (kind === 'mixed') {
    // Runs of zeroes, text and noise, of up to 255 bytes each.
    for (let at = 0; at < length;) {
      const end = Math.min(length, at + 1 + random());
      const choice = random() % 3;
      if (choice === 1) writeText(bytes, at, end, random);
      if (choice === 2) fill(bytes, at, end, random);
      at = end;
    }
  }
  if (kind === 'far-repeats') {
    // Noise that only repeats further back than a window of 4 KiB.
    const period = Math.min(length, 5000);
    fill(bytes, 0, period, random);
    for (let at = period; at < length; at++) bytes[at] = bytes[at - period]!;
  }
  return bytes;
}

function fill(bytes: Buffer, start: number, end: number, random: () => number): void {
  for (let at = start; at < end; at++) bytes[at] = random();
}

function writeText(bytes: Buffer, start: number, end: number, random: () => number): void {
  for (let at = start; at < end;) {
    at += bytes.write(WORDS[random() % WORDS.length]!, at, end - at, 'latin1');
  }
}

/** Bytes of xorshift32. */
function randomBytes(seed: number): () => number {
  let state = (seed | 0) === 0 ? 1 : seed | 0;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 11) & 0xff;
  };
}
