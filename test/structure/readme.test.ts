/** The examples of README.md do what it says. */

import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { describePeers } from '../support/peers.ts';
import { qemuImgJson, run } from '../support/qemu.ts';
import { REPOSITORY } from './source-files.ts';

/** Inside the repository, so that `qcow2` is the package itself, through its `exports`. */
const DIRECTORY = join(REPOSITORY, 'test/.cache', `readme-${process.pid}`);

/** Each JavaScript example, and the block of its output if there is one right after it. */
function examples(): { code: string; output: string }[] {
  const readme = readFileSync(join(REPOSITORY, 'README.md'), 'utf8');
  const pattern = /^```js\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?/gms;
  return [...readme.matchAll(pattern)].map(([, code = '', output = '']) => ({ code, output }));
}

afterAll(() => rmSync(DIRECTORY, { recursive: true, force: true }));

describePeers(['koffi', 'qemu-img'], 'the examples of README.md', () => {
  it('run on the demo image, and print what is shown', () => {
    const found = examples();
    expect(found.length).toBeGreaterThan(2);
    expect(found.filter(({ output }) => output !== '').length).toBeGreaterThan(1);
    mkdirSync(DIRECTORY, { recursive: true });
    const script = join(DIRECTORY, 'example.mjs');
    const disk = join(DIRECTORY, 'disk.qcow2');
    for (const { code, output } of found) {
      copyFileSync(join(REPOSITORY, 'images/demo.qcow2'), disk);
      writeFileSync(script, code);
      expect(run(process.execPath, [script], { cwd: DIRECTORY })).toBe(output);
      expect(qemuImgJson('check', disk)).toMatchObject({ 'check-errors': 0 });
    }
  });
});
