/**
 * The name that QEMU shows for an image that was given by its options: the file's, if opening that
 * would be the same, and a `json:` name otherwise.
 */

import type { OptionValue } from './option-reader.ts';

/** A file of the host. */
interface HostFileNode {
  driver: string;
  filename: string;
}

/** An image, or a part of a file, with what is below it. */
interface FormatNode {
  driver: string;
  /** The options `offset` and `size` as they were given. */
  window?: Readonly<Record<string, OptionValue>>;
  file: FileNode;
}

/** What an image's bytes are in. */
export type FileNode = HostFileNode | FormatNode;

/** The name to show for an image. */
export function imageName(node: FileNode): string {
  if ('filename' in node) return node.filename;
  const { file, window = {} } = node;
  if ('filename' in file && Object.keys(window).length === 0) return file.filename;
  return `json:${format(describe(node))}`;
}

interface Document {
  [key: string]: OptionValue | Document;
}

/** In QEMU's order. */
function describe(node: FileNode): Document {
  const { driver } = node;
  if ('filename' in node) return { driver, filename: node.filename };
  const { offset, size } = node.window ?? {};
  return {
    ...(offset === undefined ? {} : { offset }),
    driver,
    ...(size === undefined ? {} : { size }),
    file: describe(node.file),
  };
}

/** As QEMU writes JSON in one line. */
function format(document: Document): string {
  const members = Object.entries(document).map(([key, value]) => {
    const isDocument = typeof value === 'object' && value !== null;
    return `${JSON.stringify(key)}: ${isDocument ? format(value) : JSON.stringify(value)}`;
  });
  return `{${members.join(', ')}}`;
}
