/** A client that sends what it is told to and reads what it asks for. */

import { connect } from 'node:net';
import type { NetConnectOpts, Socket } from 'node:net';
import { clientFlags, CMD, GREETING, infoData, OPT, option, request } from './wire.ts';

/** A connection to a server under test. */
export class TestClient {
  readonly socket: Socket;
  /** Settles when the server has hung up and everything has been received. */
  readonly closed: Promise<void>;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #isClosed = false;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#wake?.();
    });
    socket.on('error', () => undefined);
    this.closed = new Promise((resolve) => {
      const end = (): void => {
        this.#isClosed = true;
        this.#wake?.();
        resolve();
      };
      socket.on('end', end);
      socket.on('close', end);
    });
  }

  static async connect(address: NetConnectOpts): Promise<TestClient> {
    const socket = connect(address);
    const client = new TestClient(socket);
    await new Promise<void>((resolve, reject) => {
      socket.on('connect', resolve);
      socket.on('error', reject);
    });
    return client;
  }

  /** Connects and chooses an export. */
  static async open(address: NetConnectOpts, exportName = ''): Promise<TestClient> {
    const client = await TestClient.connect(address);
    client.send(clientFlags(), option(OPT.GO, infoData(exportName)));
    await client.take(GREETING.length + 20 + 12 + 20);
    return client;
  }

  send(...parts: Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** The next `length` bytes; fewer if the server hangs up first. */
  async take(length: number): Promise<Buffer> {
    while (this.#receivedBytes < length && !this.#isClosed) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const all = Buffer.concat(this.#received);
    this.#received = [all.subarray(length)];
    this.#receivedBytes = Math.max(0, all.length - length);
    return all.subarray(0, length);
  }

  /** The answer to one read: its error, and the data if there is none. */
  async read(offset: number, length: number): Promise<{ error: number; data: Buffer }> {
    this.send(request({ type: CMD.READ, offset, length }));
    const error = (await this.take(16)).readUInt32BE(4);
    return { error, data: error === 0 ? await this.take(length) : Buffer.alloc(0) };
  }

  destroy(): void {
    this.socket.destroy();
  }
}
