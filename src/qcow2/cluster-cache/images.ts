/**
 * Numbers for images: threads that open the same file have to find each other's clusters. A file is
 * known by a name that changes whenever the file does (device, inode, size, times); one that is
 * written gets a number for itself.
 */

import { HeaderWord, IMAGE_ENTRIES, IMAGE_NAME_BYTES, IMAGE_WORDS, Part } from './layout.ts';
import type { CacheMemory } from './memory.ts';

const FIRST_WORD = Part.images / 4;

/** A number that no image has had. */
export function newImage({ words }: CacheMemory): number {
  return Atomics.add(words, HeaderWord.nextImage, 1) + 1;
}

/**
 * The number of the image of a name.
 * @param name in ASCII
 */
export function imageNumber(memory: CacheMemory, name: string): number {
  const { buffer, words } = memory;
  // Whoever has no place in the table shares nothing, and loses nothing else.
  if (name.length > IMAGE_NAME_BYTES || !memory.lock(HeaderWord.imagesLock)) {
    return newImage(memory);
  }
  try {
    for (let index = 0; index < IMAGE_ENTRIES; index++) {
      const at = FIRST_WORD + index * IMAGE_WORDS;
      const bytes = new Uint8Array(buffer, (at + 2) * 4, IMAGE_NAME_BYTES);
      if (words[at] === 0) {
        for (let i = 0; i < name.length; i++) bytes[i] = name.charCodeAt(i);
        words[at + 1] = name.length;
        return (words[at] = newImage(memory));
      }
      if (String.fromCharCode(...bytes.subarray(0, words[at + 1])) === name) return words[at]!;
    }
    return newImage(memory);
  } finally {
    memory.unlock(HeaderWord.imagesLock);
  }
}

/** Forgets the name of an image, so that whoever opens it next gets another number. */
export function forgetImage(memory: CacheMemory, image: number): void {
  const { words } = memory;
  if (!memory.lock(HeaderWord.imagesLock)) return;
  for (let index = 0; index < IMAGE_ENTRIES; index++) {
    const at = FIRST_WORD + index * IMAGE_WORDS;
    // The entry stays, since the first that is empty ends the table; no name has no letters.
    if (words[at] === image) words[at + 1] = 0;
  }
  memory.unlock(HeaderWord.imagesLock);
}
