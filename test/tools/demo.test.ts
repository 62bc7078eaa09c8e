import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { describePeers, itPeers } from '../support/peers.ts';
import { run } from '../support/qemu.ts';

const REPOSITORY = join(import.meta.dirname, '../..');

const { expect: demo } = JSON.parse(readFileSync(join(REPOSITORY, 'images/demo.json'), 'utf8')) as {
  expect: { sha256: string };
};

describePeers(['/dev/fuse', 'root', 'loop', 'debugfs'], 'npm run demo', () => {
  itPeers(['nbdinfo'], 'mounts an image, shows files inside, serves it, and clears up', () => {
    const output = run(process.execPath, [join(REPOSITORY, 'tools/demo.mjs')]);
    expect(output).toMatch(/^ {2}disk\.raw +67108864 bytes$/m);
    expect(output).toMatch(/^ {2}partitions\/2-root\.raw +56623104 bytes$/m);
    expect(output).toMatch(/^ {2}\| default juniper\.conf$/m);
    expect(output).toMatch(/^ {2}\| # A demonstration disk$/m);
    expect(output).toMatch(/^ {2}snapshot 1-installed +installer$/m);
    expect(output).toMatch(/^ {2}snapshot 2-configured +juniper$/m);
    expect(output).toMatch(/^ {2}overlay +overlay$/m);
    expect(output).toContain(`over NBD, SHA-256 ${demo.sha256}`);
    expect(output).toMatch(/Done\.\n$/);
    // Nothing is left behind.
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain('/qcow2-demo-');
  });
});
