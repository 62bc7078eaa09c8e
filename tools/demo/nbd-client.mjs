/**
 * The smallest NBD client: fixed newstyle handshake with GO, and reads, one at a time.
 *
 * Specification: `doc/proto.md` of the NBD project.
 */

import { connect } from 'node:net';

const NBDMAGIC = 0x4e42444d41474943n;
const IHAVEOPT = 0x49484156454f5054n;
const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const FIXED_NEWSTYLE_AND_NO_ZEROES = 3;
const OPTION_GO = 7;
const REPLY_ACK = 1;
const REPLY_INFO = 3;
const INFO_EXPORT = 0;
const COMMAND_READ = 0;
const COMMAND_DISCONNECT = 2;

/** A connection to one export of a server on a Unix socket. */
export class NbdClient {
  #socket;
  #chunks;
  #buffered = Buffer.alloc(0);
  #size = 0;

  constructor(socketPath) {
    this.#socket = connect(socketPath);
    this.#chunks = this.#socket[Symbol.asyncIterator]();
  }

  /** Bytes of the export. */
  get size() {
    return this.#size;
  }

  /** Says hello and chooses an export; '' is the server's default. */
  async open(exportName) {
    const greeting = await this.#receive(18);
    if (greeting.readBigUInt64BE(0) !== NBDMAGIC || greeting.readBigUInt64BE(8) !== IHAVEOPT) {
      throw new Error('the server does not speak NBD (fixed newstyle)');
    }
    const name = Buffer.from(exportName);
    const request = Buffer.alloc(4 + 8 + 4 + 4 + 4 + name.length + 2);
    request.writeUInt32BE(FIXED_NEWSTYLE_AND_NO_ZEROES, 0);
    request.writeBigUInt64BE(IHAVEOPT, 4);
    request.writeUInt32BE(OPTION_GO, 12);
    request.writeUInt32BE(4 + name.length + 2, 16);
    request.writeUInt32BE(name.length, 20);
    name.copy(request, 24);
    this.#socket.write(request);
    for (;;) {
      const { type, data } = await this.#receiveOptionReply();
      if (type === REPLY_ACK) return;
      if (type !== REPLY_INFO) throw new Error(`the server refused the export: ${data}`);
      if (data.readUInt16BE(0) === INFO_EXPORT) this.#size = Number(data.readBigUInt64BE(2));
    }
  }

  /** Reads bytes of the export. */
  async read(offset, length) {
    this.#socket.write(request(COMMAND_READ, offset, length));
    const reply = await this.#receive(16);
    const error = reply.readUInt32BE(4);
    if (reply.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC || error !== 0) {
      throw new Error(`the server could not read ${length} bytes at ${offset} (error ${error})`);
    }
    return this.#receive(length);
  }

  /** Ends the connection. */
  close() {
    this.#socket.end(request(COMMAND_DISCONNECT, 0, 0));
  }

  async #receiveOptionReply() {
    const header = await this.#receive(20);
    if (header.readBigUInt64BE(0) !== OPTION_REPLY_MAGIC) throw new Error('a reply is malformed');
    return { type: header.readUInt32BE(12), data: await this.#receive(header.readUInt32BE(16)) };
  }

  async #receive(length) {
    const parts = [this.#buffered];
    let received = this.#buffered.length;
    while (received < length) {
      const { value, done } = await this.#chunks.next();
      if (done) throw new Error('the server closed the connection');
      parts.push(value);
      received += value.length;
    }
    const bytes = Buffer.concat(parts);
    this.#buffered = bytes.subarray(length);
    return bytes.subarray(0, length);
  }
}

function request(command, offset, length) {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(REQUEST_MAGIC, 0);
  bytes.writeUInt16BE(command, 6);
  bytes.writeBigUInt64BE(BigInt(offset), 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}
