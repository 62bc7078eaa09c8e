/** qemu-img's `-o` lists for amending: what of an image can be changed, in QEMU's words. */

import { Qcow2Error } from '../errors.ts';
import type { AmendOptions } from '../operations/amend.ts';
import { nearestName, usageError } from './command.ts';
import {
  CREATION_OPTIONS,
  noEncryption,
  optionLines,
  parseOptionLists,
  toCreateOptions,
} from './creation-options.ts';
import type { OptionTable } from './creation-options.ts';

const NAMES = [
  'size',
  'compat',
  'backing_file',
  'backing_fmt',
  'data_file',
  'data_file_raw',
  'lazy_refcounts',
  'refcount_bits',
];

const AMEND_OPTIONS: OptionTable = Object.fromEntries(
  Object.entries(CREATION_OPTIONS.qcow2).filter(([name]) => NAMES.includes(name)),
);

/** The list of options that `-o help` shows. */
export function amendOptionsHelp(): string {
  const lines = optionLines(AMEND_OPTIONS, () => true);
  return `${["Amend options for 'qcow2':", ...lines].join('\n')}\n`;
}

/**
 * What `-o` lists ask for.
 * @throws {Qcow2Error} `INVALID_OPTION` for items that are malformed, unknown or not amendable
 */
export function parseAmendOptions(lists: readonly string[]): AmendOptions {
  const values = parseOptionLists(AMEND_OPTIONS, lists, notAmendable);
  const { compat, size, refcountBits, dataFile, ...rest } = toCreateOptions('qcow2', values);
  const { lazyRefcounts, dataFileRaw, backingFile, backingFormat } = rest;
  return {
    ...{ compat, size, refcountBits, dataFile, backingFile, backingFormat },
    lazyRefcounts: values.has('lazy_refcounts') ? lazyRefcounts : undefined,
    dataFileRaw: values.has('data_file_raw') ? dataFileRaw : undefined,
  };
}

function notAmendable(name: string): Qcow2Error {
  if (name.startsWith('encrypt.')) return noEncryption(name);
  if (Object.hasOwn(CREATION_OPTIONS.qcow2, name)) {
    return new Qcow2Error('INVALID_OPTION', `-o ${name} is for new images, and cannot be amended`, {
      hint: `convert the image to change it: qcow2 convert -o ${name}=…`,
    });
  }
  const nearest = nearestName(name, NAMES);
  const advice = nearest === undefined ? 'see -o help' : `did you mean ${nearest}?`;
  return usageError(`there is no option '${name}' to amend; ${advice}`);
}
