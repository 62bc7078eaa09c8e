/** The growing file of the image builder, and the record of what is where in it. */

/** A field of a structure. */
export interface Field {
  /** Its name in the specification, and of which structure. */
  name: string;
  /** Host offset. */
  offset: number;
  /** Bytes. */
  size: 1 | 2 | 4 | 8;
  /** Largest value that can make sense: tests try it and the next one. */
  limit: bigint;
}

/** A structure of the file. */
export interface Structure {
  name: string;
  /** Host offset. */
  offset: number;
  /** Bytes. */
  length: number;
  fields: Field[];
}

/** Writes the fields of one structure; a name of `undefined` keeps a field out of the record. */
export class FieldWriter {
  readonly #bytes: () => Buffer;
  readonly #structure: Structure;

  constructor(bytes: () => Buffer, structure: Structure) {
    this.#bytes = bytes;
    this.#structure = structure;
  }

  u8(name: string | undefined, at: number, value: number, limit: bigint): void {
    this.#bytes().writeUInt8(value, this.#note(name, at, 1, limit));
  }

  u16(name: string | undefined, at: number, value: number, limit: bigint): void {
    this.#bytes().writeUInt16BE(value, this.#note(name, at, 2, limit));
  }

  u32(name: string | undefined, at: number, value: number, limit: bigint): void {
    this.#bytes().writeUInt32BE(value, this.#note(name, at, 4, limit));
  }

  u64(name: string | undefined, at: number, value: bigint, limit: bigint): void {
    this.#bytes().writeBigUInt64BE(value, this.#note(name, at, 8, limit));
  }

  #note(name: string | undefined, at: number, size: Field['size'], limit: bigint): number {
    const offset = this.#structure.offset + at;
    if (name !== undefined) this.#structure.fields.push({ name, offset, size, limit });
    return offset;
  }
}

/** A file that grows by clusters. */
export class StructureWriter {
  bytes = Buffer.alloc(0);
  readonly structures: Structure[] = [];
  readonly #clusterSize: number;

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  /** Adds zeroed clusters at the end and returns the offset of the first. */
  allocate(lengthBytes: number): number {
    const offset = this.bytes.length;
    const length = Math.ceil(lengthBytes / this.#clusterSize) * this.#clusterSize;
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(length)]);
    return offset;
  }

  /** Adds `data` at the end, from a new cluster on, and records it. */
  place(name: string, data: Uint8Array): number {
    const offset = this.allocate(data.length);
    this.put(offset, data);
    this.record(name, offset, data.length);
    return offset;
  }

  /** Stores bytes. */
  put(offset: number, data: Uint8Array): void {
    this.bytes.set(data, offset);
  }

  /** Records a structure without fields. */
  record(name: string, offset: number, length: number): Structure {
    const structure: Structure = { name, offset, length, fields: [] };
    this.structures.push(structure);
    return structure;
  }

  /** Records a structure and returns the writer of its fields. */
  structure(name: string, offset: number, length: number): FieldWriter {
    return new FieldWriter(() => this.bytes, this.record(name, offset, length));
  }
}
