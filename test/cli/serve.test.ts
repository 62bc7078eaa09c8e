import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { CLI, servers } from './serve-process.ts';

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const DEMO = join(REPOSITORY, 'images/demo.qcow2');
const {
  expect: { sha256, snapshots },
} = JSON.parse(readFileSync(join(REPOSITORY, 'images/demo.json'), 'utf8')) as {
  expect: { sha256: string; snapshots: { name: string; size: number; sha256: string }[] };
};

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

/** `qcow2 serve` with arguments with which it does not start. */
function refused(...args: string[]): string {
  const child = spawnSync(process.execPath, [CLI, 'serve', ...args], {
    cwd: directory(),
    timeout: 20_000,
    encoding: 'utf8',
  });
  expect(child.status).toBe(1);
  expect(child.stdout).toBe('');
  return child.stderr;
}

function rawDisk(name: string, size: number): string {
  const path = join(directory(), name);
  writeFileSync(path, 'the first bytes');
  truncateSync(path, size);
  return path;
}

function sha256Of(uri: string): string {
  const copy = join(directory(), 'copy.raw');
  run('nbdcopy', [uri, copy]);
  return createHash('sha256').update(readFileSync(copy)).digest('hex');
}

describePeers(['nbdinfo', 'nbdcopy', 'qemu-img', 'python3-libnbd'], 'qcow2 serve', () => {
  it('serves the disk, its partitions and its snapshots', async () => {
    const { uri, exports } = await serve('--socket', 'nbd.sock', DEMO);
    expect(uri).toBe(`nbd+unix:///?socket=${directory()}/nbd.sock`);
    expect(exports.map(({ name }) => name)).toEqual([
      'demo',
      'demo/1',
      'demo/2',
      'demo@installed',
      'demo@configured',
    ]);
    const list = JSON.parse(run('nbdinfo', ['--list', '--json', uri])) as {
      exports: { 'export-name': string; 'export-size': number; description: string }[];
    };
    const listed = list.exports.map((item) => [item['export-name'], item['export-size']]);
    expect(listed).toEqual(exports.map(({ name, size }) => [name, size]));
    expect(sha256Of(uri)).toBe(sha256);
    for (const snapshot of snapshots) {
      const found = exports.find(({ name }) => name === `demo@${snapshot.name}`)!;
      expect(found.size).toBe(snapshot.size);
      expect(sha256Of(found.uri)).toBe(snapshot.sha256);
    }
    const compared = run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', DEMO, uri]);
    expect(compared).toContain('Images are identical.');
  });

  it('serves a partition as the bytes of the disk where it lies', async () => {
    const server = await serve('--socket', 's', '--partition', '2', DEMO);
    const whole = await serve('--socket', 'whole', DEMO);
    const expected = whole.exports.find(({ name }) => name === 'demo/2')!;
    expect(server.exports.map(({ name }) => name)).toEqual(['demo']);
    expect(server.exports[0]!.size).toBe(expected.size);
    expect(sha256Of(server.uri)).toBe(sha256Of(expected.uri));
  });

  it('serves a snapshot in place of the disk, under a name and description', async () => {
    const name = ['--name', 'before', '--description', 'as installed'];
    const server = await serve('-k', 's', '--snapshot', 'installed', ...name, DEMO);
    expect(server.exports.map((item) => item.name)).toEqual(['before', 'before/1', 'before/2']);
    expect(run('nbdinfo', ['--json', server.uri])).toContain('as installed');
    expect(sha256Of(server.uri)).toBe(snapshots[0]!.sha256);
  });

  it('serves several images; the first is the default', async () => {
    const raw = rawDisk('data.raw', 1024 * 1024);
    const server = await serve('--socket', 's', '-f', 'raw', raw, DEMO);
    expect(server.exports.map(({ name }) => name)).toEqual(['data', 'demo']);
    expect(run('nbdinfo', ['--size', server.uri])).toBe(`${1024 * 1024}\n`);
  });

  it('listens on TCP, and on the address that it is told', async () => {
    const server = await serve('--port=0', '--bind=127.0.0.1', DEMO);
    expect(server.uri).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/$/);
    expect(sha256Of(server.uri)).toBe(sha256);
  });

  it('says for people where the exports are', async () => {
    const child = spawn(process.execPath, [CLI, 'serve', '--socket', 's', DEMO], {
      cwd: directory(),
    });
    let stdout = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    await until(() => stdout.includes('Stop with')).finally(() => child.kill());
    const uri = `nbd+unix:///?socket=${directory()}/s`;
    expect(stdout.split('\n').slice(0, 2)).toEqual([
      `Serving for reading at ${uri}`,
      `  demo: 64 MiB (67108864 bytes), nbd+unix:///demo?socket=${directory()}/s`,
    ]);
    expect(stdout).toContain(`qemu-img info '${uri}'`);
  });

  it('takes a socket that is passed in, and leaves standard output alone', () => {
    const args = ['--size', '[', process.execPath, CLI, 'serve', DEMO, ']'];
    expect(run('nbdinfo', args)).toBe(`${64 * 1024 * 1024}\n`);
    const copied = tryRun('nbdcopy', ['--', '[', process.execPath, CLI, 'serve', DEMO, ']', '-']);
    expect(copied.exitCode).toBe(0);
  });

  it.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('ends well on %s', async (signal) => {
    const pidFile = join(directory(), 'pid');
    const { child, pid, ended } = await serve('--socket=s', `--pid-file=${pidFile}`, DEMO);
    expect(readFileSync(pidFile, 'utf8')).toBe(`${pid}\n`);
    expect(pid).toBe(child.pid);
    child.kill(signal);
    expect(await ended).toBe(0);
    expect(existsSync(join(directory(), 's'))).toBe(false);
    expect(existsSync(pidFile)).toBe(false);
  });

  it('ends within seconds in the middle of a transfer', async () => {
    const raw = rawDisk('large.raw', 2 ** 36);
    const { child, uri, ended } = await serve('--socket=s', '-f', 'raw', raw);
    // nbdcopy would leave out the holes, and be done at once.
    const script = `import nbd; h = nbd.NBD(); h.connect_uri('${uri}')
while True: h.pread(${32 * 1024 * 1024}, 0)`;
    const copy = spawn(SYSTEM_PYTHON, ['-c', script], { stdio: 'ignore' });
    const copyEnded = new Promise((resolve) => copy.on('close', resolve));
    await sleep(300);
    expect(copy.exitCode).toBeNull();
    child.kill('SIGTERM');
    expect(await ended).toBe(0);
    expect(await copyEnded).not.toBe(0);
    expect(existsSync(join(directory(), 's'))).toBe(false);
  });

  it('replaces the socket of a server that was killed', async () => {
    const first = await serve('--socket=s', DEMO);
    expect(refused('--socket=s', DEMO)).toBe('qcow2: s: another server is listening there\n');
    first.child.kill('SIGKILL');
    await first.ended;
    expect(existsSync(join(directory(), 's'))).toBe(true);
    const second = await serve('--socket=s', DEMO);
    expect(run('nbdinfo', ['--size', second.uri])).toBe(`${64 * 1024 * 1024}\n`);
  });

  it('tells who comes and goes, when asked', async () => {
    const { uri, stderr } = await serve('--socket=s', '--verbose', DEMO);
    run('nbdinfo', ['--size', uri]);
    await until(() => stderr().includes('disconnected'));
    expect(stderr()).toContain("qcow2: client 1: uses export 'demo'\n");
  });

  it('turns clients away above --max-clients', async () => {
    const { uri, stderr } = await serve('--socket=s', '--max-clients=1', DEMO);
    // nbdcopy opens four connections where it may.
    const { exitCode } = tryRun('nbdcopy', ['--connections=4', uri, 'null:']);
    expect(exitCode).not.toBe(0);
    await until(() => stderr().includes('client turned away: 1 are connected already'));
  });
});

describe('qcow2 serve with wrong arguments', () => {
  it.each([
    [['--port=x', DEMO], "--port must be a number from 0 to 65535, not 'x'"],
    [['--port=65536', DEMO], "--port must be a number from 0 to 65535, not '65536'"],
    [['--max-clients=0', DEMO], "--max-clients must be a number from 1 to 10000, not '0'"],
    [['--partition=-1', DEMO], "--partition must be a number from 1 to 65535, not '-1'"],
    [['--socket=s', '--port=1', DEMO], '--socket cannot be used together with --port or --bind'],
    [['--socket=s', '--bind=::1', DEMO], '--socket cannot be used together with --port or --bind'],
    [['--name=x', DEMO, DEMO], '--name can be given for one image only'],
    [['--description=x', DEMO, DEMO], '--description can be given for one image only'],
    [['--prot=1', DEMO], 'unknown option --prot; did you mean --port?'],
    [['--rwx', DEMO], 'unknown option --rwx'],
    [['--rw', '--temp', DEMO], '--rw and --temp cannot be used together'],
    [['--temp', '--overlay=o', DEMO], '--temp and --overlay cannot be used together'],
    [['--rw', '--snapshot=1', DEMO], 'snapshots can only be read'],
    [
      ['--temp', '--bitmap=b', DEMO],
      'bitmaps of an image do not know what is written to an overlay',
    ],
    [['--overlay=o', '--bitmap=b', DEMO], 'bitmaps of an image do not know what is written'],
    [['--bitmap=none', DEMO], "there is no bitmap 'none'"],
    [['--temp', '--force-share', DEMO], 'not with force-share'],
    [[], 'expected IMAGE…'],
    [
      ['--socket=s', DEMO, DEMO],
      'two images have the same file name, by which their exports would be called',
    ],
    [['--socket=s', '--partition=9', DEMO], 'partition'],
    [['--socket=s', '--snapshot=none', DEMO], 'snapshot'],
    [['--socket=s', 'nothing.qcow2'], 'nothing.qcow2: cannot open: no such file or directory'],
  ])('%j says what is wrong in one line', (args, problem) => {
    const message = refused(...args);
    expect(message).toMatch(/^qcow2: [^\n]+\n$/);
    expect(message).toContain(problem);
    expect(existsSync(join(directory(), 's'))).toBe(false);
  });

  it('never replaces a file by its socket', () => {
    writeFileSync(join(directory(), 'file'), 'precious');
    expect(refused('--socket=file', DEMO)).toBe(
      'qcow2: file: there is a file already that is not a socket; choose another path or remove it\n',
    );
    expect(readFileSync(join(directory(), 'file'), 'utf8')).toBe('precious');
  });

  it('says that a port is taken', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => other.on('listening', resolve));
    const address = other.address();
    const port = typeof address === 'object' ? address!.port : 0;
    try {
      expect(refused(`--port=${port}`, DEMO)).toBe(
        `qcow2: localhost:${port}: another server is listening there\n`,
      );
    } finally {
      other.close();
    }
  });

  it('says that it cannot write the process ID, and leaves no socket', () => {
    expect(refused('--socket=s', '--pid-file=no/pid', DEMO)).toContain(
      'no/pid: cannot write the process ID: no such file or directory',
    );
    expect(existsSync(join(directory(), 's'))).toBe(false);
  });

  it('shows examples with --help', () => {
    const help = spawnSync(process.execPath, [CLI, 'serve', '--help'], { encoding: 'utf8' });
    expect(help.stdout).toContain('qcow2 serve --socket /tmp/disk.sock disk.qcow2');
    expect(help.stdout).toContain('10809');
  });
});
