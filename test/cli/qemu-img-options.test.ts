/**
 * Each option of qemu-img is either what it is there, or better, or refused with a reason: the tables
 * in `qemu-img/` say which, and their calls show it. The list of options is the one that qemu-img prints.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { qemuImg } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { CHECK, COMMIT, REBASE, RESIZE, SNAPSHOT } from './qemu-img/change-tables.ts';
import { documentOf } from './qemu-img/document.ts';
import { makeImages } from './qemu-img/fixture.ts';
import { GENERAL } from './qemu-img/general-table.ts';
import { AMEND, AMENDMENTS, BENCH, BITMAP, DD } from './qemu-img/later-tables.ts';
import { CONVERT, CREATE, CREATION } from './qemu-img/make-tables.ts';
import type { Subcommand } from './qemu-img/model.ts';
import { COMPARE, INFO, MAP, MEASURE } from './qemu-img/read-tables.ts';
import { expectCase } from './qemu-img/run-case.ts';

const SUBCOMMANDS: readonly Subcommand[] = [
  AMEND,
  BENCH,
  BITMAP,
  CHECK,
  COMMIT,
  COMPARE,
  CONVERT,
  CREATE,
  DD,
  INFO,
  MAP,
  MEASURE,
  REBASE,
  RESIZE,
  SNAPSHOT,
];

const directory = sharedTemporaryDirectory();
beforeAll(() => makeImages(directory));

describe.each([GENERAL, CREATION, AMENDMENTS, ...SUBCOMMANDS])('qemu-img $name', (subcommand) => {
  const cases = subcommand.rows.flatMap(({ names, cases }) =>
    cases.map((option) => ({ option, title: `${names[0]}: ${option.args.join(' ')}` })),
  );
  it.each(cases)('$title', async ({ option }) => {
    await expectCase(option, { subcommand, images: directory });
  });
});

describe('the tables', () => {
  const help = qemuImg('--help');
  const namesOf = ({ rows }: Subcommand): string[] => rows.flatMap(({ names }) => names);

  it('name every option of qemu-img --help', () => {
    const synopses = [...help.matchAll(/^ {2}([a-z]+) (.*\bfilename.*|.*if=.*)$/gm)];
    expect(synopses.length).toBeGreaterThan(10);
    const missing = synopses.flatMap(([, name, synopsis = '']) => {
      const subcommand = SUBCOMMANDS.find((candidate) => candidate.name === name);
      if (subcommand === undefined) return [`${name}`];
      const options = synopsis.match(/(?<![\w-])--?[A-Za-z][\w-]*|\b[a-z]+=/g) ?? [];
      const known = namesOf(subcommand);
      return options
        .filter((option) => !option.endsWith('=') || name === 'dd')
        .filter((option) => !known.includes(option))
        .map((option) => `${name} ${option}`);
    });
    expect(missing).toEqual([]);
  });

  it('name every standard option', () => {
    const options = [...help.matchAll(/^ {4}'(-\w)', '(--\w+)'/gm)].flatMap(([, a, b]) => [a, b]);
    expect(options.length).toBeGreaterThan(5);
    expect(namesOf(GENERAL)).toEqual(expect.arrayContaining(options));
  });

  it.each(['qcow2', 'raw'])('name every creation option of %s images', (format) => {
    const list = qemuImg('create', '-f', format, '-o', 'help', join(directory, 'x'));
    const options = [...list.matchAll(/^ {2}([\w.-]+)=</gm)].map(([, name]) => name);
    expect(options.length).toBeGreaterThan(3);
    expect(namesOf(CREATION)).toEqual(expect.arrayContaining(options));
  });

  it('name every option of amend', () => {
    const list = qemuImg('amend', '-f', 'qcow2', '-o', 'help', join(directory, 'plain.qcow2'));
    const options = [...list.matchAll(/^ {2}([\w.-]+)=</gm)].map(([, name]) => name);
    expect(options.length).toBeGreaterThan(3);
    expect(namesOf(AMENDMENTS)).toEqual(expect.arrayContaining(options));
  });

  it('show each option by a call, and tell why it is not the same', () => {
    for (const { names, state, remark, cases } of [
      GENERAL,
      CREATION,
      AMENDMENTS,
      ...SUBCOMMANDS,
    ].flatMap(({ rows }) => rows)) {
      const isPhrase = names[0]?.startsWith('(') === true;
      if (!isPhrase) expect(cases.length, names[0]).toBeGreaterThan(0);
      if (state !== 'same') expect(remark, names[0]).toBeDefined();
    }
  });

  it('are summed up in README.md', () => {
    const readme = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8');
    const section = /^## Coming from qemu-img\n(.*?)^## /ms.exec(readme)?.[1] ?? '';
    const rows = [...section.matchAll(/^\| `([a-z]+)` \|/gm)].map(([, name]) => name);
    expect(rows).toEqual(SUBCOMMANDS.map(({ name }) => name));
  });

  it('are what src/cli/QEMU-IMG.md says', async () => {
    const parts = [{ title: 'In general', subcommand: GENERAL }];
    for (const subcommand of SUBCOMMANDS) {
      parts.push({ title: `qcow2 ${subcommand.name}`, subcommand });
      if (subcommand === AMEND) parts.push({ title: 'amend -o', subcommand: AMENDMENTS });
      if (subcommand === CREATE) parts.push({ title: 'create -o', subcommand: CREATION });
    }
    await expect(documentOf(parts)).toMatchFileSnapshot('../../src/cli/QEMU-IMG.md');
  });
});
