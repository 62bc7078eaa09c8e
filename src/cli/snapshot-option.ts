/** The `-l` option of qemu-img: which internal snapshot of an image to read. */

import type { Image } from '../chain/open.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { usageError } from './command.ts';

/** What an option asks for: by both, either, or whichever fits first. */
type SnapshotChoice = { id?: string; name?: string } | { idOrName: string };

/**
 * Opens the snapshot that `option` names: an ID or name (IDs are tried first), or
 * `snapshot.id=ID,snapshot.name=NAME`, of which either may be left out. Commas in a value are
 * doubled.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` if the option is malformed, `NOT_FOUND` if there is no
 * such snapshot
 */
export function openSnapshot(image: Image, option: string): BlockDevice {
  const choice = parseSnapshotOption(option);
  if (!('snapshots' in image)) {
    throw new Qcow2Error('NOT_FOUND', `a ${image.format} image has no snapshots`, {
      file: image.path,
    });
  }
  if ('idOrName' in choice) return image.openSnapshot(choice.idOrName);
  const found = image.snapshots.find(
    ({ id, name }) =>
      (choice.id === undefined || choice.id === id) &&
      (choice.name === undefined || choice.name === name),
  );
  if (found === undefined) {
    throw new Qcow2Error('NOT_FOUND', `there is no snapshot '${option}'`, { file: image.path });
  }
  return image.openSnapshot(found.id);
}

function parseSnapshotOption(option: string): SnapshotChoice {
  if (!option.startsWith('snapshot.')) return { idOrName: option };
  const choice: { id?: string; name?: string } = {};
  // A single comma separates; two stand for one in a value.
  for (const part of option.replaceAll(',,', '\0').split(',')) {
    const [key, ...rest] = part.replaceAll('\0', ',').split('=');
    const value = rest.join('=');
    if (key === 'snapshot.id' && rest.length > 0) choice.id = value;
    else if (key === 'snapshot.name' && rest.length > 0) choice.name = value;
    else throw usageError(`-l understands snapshot.id=ID and snapshot.name=NAME, not '${part}'`);
  }
  return choice;
}
