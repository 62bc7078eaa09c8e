/**
 * Where a server listens: Unix sockets, TCP, and descriptors that were inherited.
 *
 * A Unix socket is a file: the one of a server that died is replaced, the one of a server that
 * lives is an error, and any other file is never touched.
 */

import { lookup } from 'node:dns/promises';
import { chmodSync, chownSync, linkSync, lstatSync, unlinkSync } from 'node:fs';
import type { Stats } from 'node:fs';
import { connect, createServer, Socket } from 'node:net';
import type { ListenOptions, Server } from 'node:net';
import { basename, dirname, join, resolve } from 'node:path';
import { hostError, Qcow2Error } from '../../errors.ts';
import { descriptorState } from '../../host/socket-state.ts';

/** A Unix socket; the file is made, and removed when the server is closed. */
export interface UnixSocketAddress {
  socketPath: string;
  /** Permissions of the file (default: as the umask says). */
  mode?: number;
  /** Whom the file belongs to. */
  owner?: { uid?: number; gid?: number };
}

/** Where an NBD server is to be reached. */
export type NbdAddress =
  | UnixSocketAddress
  /** TCP; port 0 takes a free one. `host` is `localhost` (IPv4 and IPv6) if it is not given. */
  | { port: number; host?: string }
  /**
   * A socket that was inherited: one that listens, as by socket activation, or the connection to
   * one client.
   */
  | { fd: number };

/** A socket that is being listened on. */
export interface Listener {
  /** NBD URI of an export; undefined where it cannot be told, as for a descriptor. */
  uriOf(exportName: string): string | undefined;
  /** Whether it is the connection to one client, and no other can come. */
  isOneClient?: boolean;
  /** Accepts no more clients, and removes the socket file. */
  close(): void;
}

/** Bytes of a Unix socket's path, as `sockaddr_un` holds it with its NUL. */
const MAX_SOCKET_PATH_BYTES = 107;
/** Clients that may wait to be accepted: a Unix socket turns the next one away at once. */
const BACKLOG = 1024;

/**
 * Listens on an address.
 * @param onSocket called for each client; `isOneClient` if the connection to it was inherited
 * @throws {Qcow2Error} `LOCKED` if another server is there, `HOST` if it cannot be had
 */
export async function listen(
  address: NbdAddress,
  onSocket: (socket: Socket, isOneClient: boolean) => void,
): Promise<Listener[]> {
  if ('fd' in address) return [await listenFd(address.fd, onSocket)];
  const onAccepted = (socket: Socket): void => onSocket(socket, false);
  if ('socketPath' in address) return [await listenUnix(address, onAccepted)];
  return listenTcp(address.port, address.host ?? 'localhost', onAccepted);
}

async function listenFd(
  fd: number,
  onSocket: (socket: Socket, isOneClient: boolean) => void,
): Promise<Listener> {
  const uriOf = (): undefined => undefined;
  const name = `descriptor ${fd}`;
  const state = descriptorState(fd);
  if (state === 'no socket') throw new Qcow2Error('HOST', 'it is no open socket', { file: name });
  if (state === 'connected') {
    const socket = new Socket({ fd, allowHalfOpen: true });
    setImmediate(() => onSocket(socket, true));
    return { uriOf, isOneClient: true, close: () => undefined };
  }
  const server = await startServer({ fd }, (socket) => onSocket(socket, false), name);
  return { uriOf, close: () => void server.close() };
}

async function listenTcp(
  port: number,
  host: string,
  onSocket: (socket: Socket) => void,
): Promise<Listener[]> {
  const name = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  const found = await lookup(host, { all: true }).catch((error: unknown) => {
    throw hostError('cannot find the address', host, error);
  });
  const addresses = new Set(found.map(({ address }) => address));
  // Both loopback addresses, whatever /etc/hosts says; the second one may be missing.
  if (host === 'localhost') for (const extra of ['127.0.0.1', '::1']) addresses.add(extra);
  const servers: Server[] = [];
  let actualPort = port;
  let failure: unknown;
  for (const address of addresses) {
    try {
      const options = { port: actualPort, host: address, backlog: BACKLOG };
      const server = await startServer(options, onSocket, name);
      servers.push(server);
      const bound = server.address();
      if (typeof bound === 'object' && bound !== null) actualPort = bound.port;
    } catch (error) {
      failure = error;
      if (!isMissingAddress(error)) break;
      failure = servers.length > 0 ? undefined : error;
    }
  }
  if (failure !== undefined || servers.length === 0) {
    for (const server of servers) server.close();
    throw failure;
  }
  const shownHost = host === '0.0.0.0' || host === '::' ? 'localhost' : host;
  const base = `nbd://${shownHost.includes(':') ? `[${shownHost}]` : shownHost}:${actualPort}/`;
  const uriOf = (exportName: string) => base + encodePath(exportName);
  return servers.map((server) => ({ uriOf, close: () => void server.close() }));
}

/** Text as a part of a URI in which slashes may stand. */
function encodePath(text: string): string {
  return encodeURIComponent(text).replaceAll('%2F', '/').replaceAll('%40', '@');
}

function isMissingAddress(error: unknown): boolean {
  const cause = error instanceof Qcow2Error ? error.cause : undefined;
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  return code === 'EADDRNOTAVAIL' || code === 'EAFNOSUPPORT';
}

/**
 * The socket is bound beside its place and linked into it, which fails if something is there: so
 * no file is ever replaced, and clients see it only once it listens.
 */
async function listenUnix(
  { socketPath: path, mode, owner }: UnixSocketAddress,
  onSocket: (socket: Socket) => void,
): Promise<Listener> {
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
    throw new Qcow2Error(
      'INVALID_OPTION',
      `the path of a Unix socket has at most ${MAX_SOCKET_PATH_BYTES} bytes`,
      { file: path },
    );
  }
  await removeStaleSocket(path);
  const besides = temporaryPath(path);
  const server = await startServer({ path: besides, backlog: BACKLOG }, onSocket, path);
  let identity: string | undefined;
  try {
    identity = identityOf(lstatSync(besides));
    if (owner !== undefined) chownSync(besides, owner.uid ?? -1, owner.gid ?? -1);
    if (mode !== undefined) chmodSync(besides, mode);
    if (besides !== path) {
      linkSync(besides, path);
      unlinkSync(besides);
    }
  } catch (error) {
    server.close();
    throw hostError('cannot make the socket', path, error);
  }
  const close = (): void => {
    server.close();
    const stats = lstatSync(path, { throwIfNoEntry: false });
    if (stats !== undefined && identityOf(stats) === identity) unlinkSync(path);
  };
  const query = `?socket=${encodePath(resolve(path))}`;
  return { uriOf: (exportName) => `nbd+unix:///${encodePath(exportName)}${query}`, close };
}

function identityOf({ dev, ino }: Stats): string {
  return `${dev}:${ino}`;
}

/** A name beside `path` that is not longer than may be; `path` itself if there is none. */
function temporaryPath(path: string): string {
  const candidate = join(dirname(path), `.${basename(path).slice(0, 8)}.${process.pid}`);
  return Buffer.byteLength(candidate) <= MAX_SOCKET_PATH_BYTES ? candidate : path;
}

async function removeStaleSocket(path: string): Promise<void> {
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (stats === undefined) return;
  if (!stats.isSocket()) {
    throw new Qcow2Error('HOST', 'there is a file already that is not a socket', {
      file: path,
      hint: 'choose another path or remove it',
    });
  }
  if (await isAnswering(path)) {
    throw new Qcow2Error('LOCKED', 'another server is listening there', { file: path });
  }
  const now = lstatSync(path, { throwIfNoEntry: false });
  if (now !== undefined && identityOf(now) === identityOf(stats)) unlinkSync(path);
}

/** Whether somebody listens on a Unix socket: only a refusal says that nobody does. */
function isAnswering(path: string): Promise<boolean> {
  return new Promise((settle) => {
    const socket = connect({ path });
    socket.on('connect', () => {
      socket.destroy();
      settle(true);
    });
    socket.on('error', (error: NodeJS.ErrnoException) => {
      settle(error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT');
    });
  });
}

function startServer(
  options: ListenOptions & { fd?: number },
  onSocket: (socket: Socket) => void,
  name: string,
): Promise<Server> {
  // Half-open: a client that has said its last word still gets its replies.
  const server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true }, onSocket);
  return new Promise((settle, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => reject(listenError(name, error)));
    server.listen(options, () => {
      server.removeAllListeners('error');
      // Accepting fails when descriptors run out; the clients that are there go on.
      server.on('error', () => undefined);
      settle(server);
    });
  });
}

function listenError(name: string, error: NodeJS.ErrnoException): Qcow2Error {
  if (error.code === 'EADDRINUSE') {
    const problem = 'another server is listening there';
    return new Qcow2Error('LOCKED', problem, { file: name, cause: error });
  }
  return hostError('cannot listen', name, error);
}
