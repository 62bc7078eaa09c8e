/** Which channels a mount may go through. */

import { Qcow2Error } from '../errors.ts';
import type { ChannelName } from './fuse-request.ts';

/**
 * The channels to try, the preferred one first.
 *
 * @throws {Qcow2Error} `UNSUPPORTED` for one that the platform does not have
 */
export function channelsToTry(
  asked: ChannelName | 'auto',
  platform: NodeJS.Platform = process.platform,
): readonly ChannelName[] {
  if (platform === 'linux') return asked === 'auto' ? ['kernel', 'fuse-native'] : [asked];
  if (asked === 'kernel') {
    throw new Qcow2Error('UNSUPPORTED', 'the channel kernel needs Linux', {
      hint: 'leave --channel out to mount through fuse-native',
    });
  }
  return ['fuse-native'];
}

/**
 * Makes sure that the files of an image can be mounted here.
 * @throws {Qcow2Error} `UNSUPPORTED`
 */
export function checkFilesPossible(platform: NodeJS.Platform = process.platform): void {
  if (platform === 'linux') return;
  throw new Qcow2Error('UNSUPPORTED', 'mount --fs needs Linux', {
    hint:
      platform === 'darwin'
        ? 'mount without --fs, then: hdiutil attach -imagekey diskimage-class=CRawDiskImage ' +
          'DIR/disk.raw'
        : 'mount without --fs to have the partitions as files',
  });
}

/** Whether a mount can be detached while it is in use. */
export function isLazyPossible(platform: NodeJS.Platform = process.platform): boolean {
  return platform === 'linux';
}

/**
 * Makes sure that a mount can be detached while it is in use.
 * @throws {Qcow2Error} `UNSUPPORTED`
 */
export function checkLazyPossible(platform: NodeJS.Platform = process.platform): void {
  if (isLazyPossible(platform)) return;
  throw new Qcow2Error('UNSUPPORTED', '--lazy needs Linux', {
    hint: 'wait until nobody uses the mount, or cut them off with --force',
  });
}
