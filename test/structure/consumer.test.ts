import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { afterAll, describe, expect, it } from 'vitest';
import { run } from '../support/qemu.ts';
import { REPOSITORY } from './source-files.ts';

/** Inside the repository, so that `qcow2` is the package itself, through its `exports`. */
const DIRECTORY = join(REPOSITORY, 'test/.cache', `consumer-${process.pid}`);

/** The compiler's complaints about a module of someone who uses the package. */
function complaintsAbout(text: string): string[] {
  mkdirSync(DIRECTORY, { recursive: true });
  const file = join(DIRECTORY, 'consumer.mts');
  writeFileSync(file, text);
  const program = ts.createProgram([file], {
    target: ts.ScriptTarget.ES2023,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    types: ['node'],
    strict: true,
    noEmit: true,
  });
  return ts
    .getPreEmitDiagnostics(program)
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '));
}

afterAll(() => rmSync(DIRECTORY, { recursive: true, force: true }));

describe('the built package', () => {
  it('has types that a strict program can use', () => {
    const complaints = complaintsAbout(`
      import { openImage, openDevice, readPartitionTable, Qcow2Error } from 'qcow2';
      import * as promises from 'qcow2/promises';
      const image = openImage('disk.qcow2');
      export const size: number = image.size;
      export const first: number | undefined = readPartitionTable(image).partitions[0]?.offset;
      export const partition = openDevice('disk.qcow2', { partition: 1 });
      export const isOurs = (error: unknown) => error instanceof Qcow2Error && error.code;
      export const open: typeof promises.openImage = promises.openImage;
    `);
    expect(complaints).toEqual([]);
  });

  it('has types that tell what is wrong', () => {
    const complaints = complaintsAbout(`
      import { openImage } from 'qcow2';
      export const size: string = openImage('disk.qcow2').size;
    `);
    expect(complaints).toEqual(["Type 'number' is not assignable to type 'string'."]);
  });

  it('can be imported by its name', () => {
    const script = `
      const { openImage } = await import('qcow2');
      const promises = await import('qcow2/promises');
      const image = openImage('images/demo.qcow2');
      console.log(image.size, typeof promises.openImage);
      image.close();
    `;
    const args = ['--input-type=module', '-e', script];
    expect(run(process.execPath, args, { cwd: REPOSITORY })).toBe('67108864 function\n');
  });
});
