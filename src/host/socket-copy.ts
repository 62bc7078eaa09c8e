/** A second descriptor of a connection, by which another thread of the process can go on with it. */

import type { Socket } from 'node:net';
import { loadLibc } from './libc.ts';
import { descriptorOf } from './sendfile.ts';

const F_DUPFD_CLOEXEC = 1030;
/** Descriptors below are never given, so that none is taken for that of a standard stream. */
const LOWEST = 3;

let fcntl: ((...values: unknown[]) => unknown) | undefined;

/** Whether {@link copyDescriptor} can work here. */
export function canCopyDescriptors(): boolean {
  if (fcntl === undefined && process.platform === 'linux') {
    fcntl = loadLibc()?.func('int fcntl(int fd, int command, int argument)');
  }
  return fcntl !== undefined;
}

/**
 * Another descriptor of a socket's connection, which stays open when the socket is destroyed. It is
 * the caller's to close.
 * @returns undefined where there is none: no koffi, not Linux, the socket is gone, or there are as
 * many descriptors as may be
 */
export function copyDescriptor(socket: Socket): number | undefined {
  const fd = descriptorOf(socket);
  if (fd < 0 || !canCopyDescriptors()) return undefined;
  const copy = Number(fcntl!(fd, F_DUPFD_CLOEXEC, LOWEST));
  return copy < 0 ? undefined : copy;
}
