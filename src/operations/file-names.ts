/** The names that QEMU shows for the files that an image refers to. */

import type { Image } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';

/**
 * The name of a file that an image refers to: a relative one is put after the directory part of
 * the image's own name, just as it stands.
 *
 * @param referrer name of the image
 * @param name as the image has it
 */
export function referencedName(referrer: string, name: string): string {
  const isRelativePath = !name.startsWith('/') && !/^[^/:]*:/.test(name);
  return isRelativePath ? referrer.slice(0, referrer.lastIndexOf('/') + 1) + name : name;
}

/** The name that an image was given by, if that is not the path of its file. */
export function givenName({ file, format }: Image): string | undefined {
  const name = file instanceof FileDevice ? file.shownName : undefined;
  const isDescription = format === 'qcow2' && name?.startsWith('json:') === true;
  return isDescription ? `json:{"driver": "qcow2", "file": ${name.slice('json:'.length)}}` : name;
}

/** The shown names of the host files of a chain, by the paths that they were opened by. */
export function shownNames(image: Image): ReadonlyMap<string, string> {
  const names = new Map<string, string>();
  let name = givenName(image) ?? image.path;
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    // Where a part of a file is meant, its bytes are told as those of the file.
    const isPart = layer.format === 'raw' && layer.window !== undefined;
    names.set(layer.path, isPart ? layer.path : name);
    if (layer.format === 'raw') break;
    const { dataFile, header } = layer;
    const { externalDataFile } = header.extensions;
    if (dataFile !== undefined && externalDataFile !== undefined) {
      names.set(dataFile.path, referencedName(name, externalDataFile));
    }
    const given = layer.backing && givenName(layer.backing);
    name = given ?? referencedName(name, header.backingFile ?? '');
  }
  return names;
}
