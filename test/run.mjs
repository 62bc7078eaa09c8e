/**
 * `npm test`: gets ready (packages, build, the programs to compare with) and runs vitest.
 *
 *     npm test                           all tests
 *     npm test -- test/format            the tests below a directory
 *     QCOW2_INSTALL_PEERS=0 npm test     without installing programs through apt-get
 *     QCOW2_REQUIRE_PEERS=1 npm test     a missing program fails the tests that need it
 */

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fetchGuest } from '../tools/fetch-guest.mjs';
import { installPeers } from '../tools/install-peers.mjs';
import { prepare, ROOT } from '../tools/prepare.mjs';

if (process.env.QCOW2_INSTALL_PEERS !== '0') {
  installPeers();
  fetchGuest();
}
prepare({ types: true });

const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
const { status } = spawnSync(process.execPath, [vitest, 'run', ...process.argv.slice(2)], {
  cwd: ROOT,
  stdio: 'inherit',
  // Programs like mke2fs are not on every user's search path.
  env: { ...process.env, PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin` },
});
process.exitCode = status ?? 1;
