/**
 * Writes to an image through the library, in a process of its own, as lib-write asks it to:
 *
 *     node write.mjs LIBRARY IMAGE '{"count":…,"bytes":…,"step":…,"diskBytes":…,"flushEvery":…}'
 *
 * Prints `open` before the first write, and `closed` when the image is.
 */

import { writeSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [libraryPath, imagePath, patternText] = process.argv.slice(2);
const { openImage } = await import(pathToFileURL(libraryPath).href);
const { count, bytes, step, diskBytes, flushEvery } = JSON.parse(patternText);
const data = Buffer.alloc(bytes, 0xaa);

const image = openImage(imagePath, { format: 'qcow2', writable: true });
writeSync(1, 'open\n');
for (let index = 0, offset = 0; index < count; index++) {
  image.write(data, offset);
  if (flushEvery > 0 && (index + 1) % flushEvery === 0) image.flush();
  offset = (offset + step) % diskBytes;
}
image.flush();
image.close();
writeSync(1, 'closed\n');
