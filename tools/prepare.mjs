/**
 * What has to be there before the demonstration or the tests can run, on a fresh clone with
 * nothing but Node and npm: the packages of the lock file, and a build as new as the sources.
 * Does what is missing, says what it does, and needs no package itself.
 */

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** What the build is made from, beside `src/`. */
const BUILD_INPUTS = ['build.mjs', 'package.json', 'tsconfig.json', 'tsconfig.build.json'];

/** Ends the program with one line on standard error. */
export function fail(message) {
  console.error(message);
  process.exit(1);
}

/**
 * Installs and builds, as far as that has not been done.
 *
 * @param {{ types: boolean }} options whether the type declarations are needed too
 */
export function prepare({ types }) {
  requireNode();
  if (!isInstalled()) install();
  if (!isBuilt(types)) build(types);
}

function requireNode() {
  const { engines } = readJson('package.json');
  const wanted = /(\d+)\.(\d+)/.exec(engines.node).slice(1).map(Number);
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < wanted[0] || (major === wanted[0] && minor < wanted[1])) {
    fail(`Node ${engines.node} is needed; this is ${process.versions.node}.`);
  }
}

/** Whether `node_modules` holds the versions of the lock file; optional packages may be missing. */
function isInstalled() {
  const record = join(ROOT, 'node_modules/.package-lock.json');
  if (!existsSync(record)) return false;
  const installed = readJson('node_modules/.package-lock.json').packages ?? {};
  const locked = Object.entries(readJson('package-lock.json').packages);
  return locked.every(([path, { version, optional, devOptional }]) => {
    if (path === '' || (installed[path] === undefined && (optional || devOptional))) return true;
    return installed[path]?.version === version;
  });
}

function install() {
  console.log('Installing the packages of package-lock.json (npm ci) …');
  const npm = process.env.npm_execpath;
  // No package here needs its installation script, and that of fuse-native compiles for nothing.
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
  const { status, error } =
    npm?.endsWith('.js') === true
      ? spawnSync(process.execPath, [npm, ...args], { cwd: ROOT, stdio: 'inherit' })
      : spawnSync('npm', args, { cwd: ROOT, stdio: 'inherit' });
  if (error !== undefined) fail(`npm could not be started: ${error.message}`);
  if (status !== 0) fail('npm ci failed (see above); the packages need network access once.');
}

function isBuilt(types) {
  const stamp = join(ROOT, 'dist/.build.json');
  if (!existsSync(stamp)) return false;
  if (types && readJson('dist/.build.json').types !== true) return false;
  const builtMs = statSync(stamp).mtimeMs;
  const inputs = [...BUILD_INPUTS, ...filesBelow('src')];
  return inputs.every((file) => statSync(join(ROOT, file)).mtimeMs < builtMs);
}

function build(types) {
  console.log('Building dist/ …');
  const args = types ? ['build.mjs'] : ['build.mjs', '--fast'];
  const { status } = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' });
  if (status !== 0) fail('The build failed (see above).');
}

function filesBelow(directory) {
  return readdirSync(join(ROOT, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = join(directory, entry.name);
    // The directory itself counts: its time changes when a file goes away.
    return entry.isDirectory() ? [path, ...filesBelow(path)] : [path];
  });
}

function readJson(path) {
  return JSON.parse(readFileSync(join(ROOT, path), 'utf8'));
}
