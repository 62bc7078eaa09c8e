/**
 * Each option of qemu-img is either what it is there, or better, or refused with a reason: the tables
 * in `qemu-img/` say which, and their calls show it. The list of options is the one that qemu-img prints.
 */

import { beforeAll, describe, expect, it } from 'vitest';
import { loadCommand } from '../../src/cli/commands.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { makeImages } from './qemu-img/fixture.ts';
import { CHECK, COMMIT, REBASE, RESIZE, SNAPSHOT } from './qemu-img/change-tables.ts';
import { COMPARE, INFO, MAP, MEASURE } from './qemu-img/read-tables.ts';
import { CONVERT, CREATE, CREATION } from './qemu-img/make-tables.ts';
import { expectCase } from './qemu-img/run-case.ts';

const directory = sharedTemporaryDirectory();
beforeAll(() => makeImages(directory));

describe.each([
  CREATE,
  CREATION,
  CONVERT,
  CHECK,
  COMMIT,
  REBASE,
  RESIZE,
  SNAPSHOT,
  COMPARE,
  INFO,
  MAP,
  MEASURE,
])('qcow2 $name', ({ name, readOnly, rows }) => {
  const cases = rows.flatMap(({ names, cases }) =>
    cases.map((option) => ({ option, title: `${names[0]}: ${option.args.join(' ')}` })),
  );
  it.each(cases)('$title', async ({ option }) => {
    const command = await loadCommand(name);
    expect(command).toBeDefined();
    await expectCase(option, { command: command!, images: directory, readOnly });
  });
});
