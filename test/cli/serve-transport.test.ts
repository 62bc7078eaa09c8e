import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { CLI, servers } from './serve-process.ts';

const DEMO = fileURLToPath(new URL('../../images/demo.qcow2', import.meta.url));
const SIZE = `${64 * 1024 * 1024}\n`;

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

function refused(...args: string[]): string {
  const command = [CLI, 'serve', ...args];
  const { status, stderr } = spawnSync(process.execPath, command, {
    cwd: directory(),
    encoding: 'utf8',
    timeout: 20_000,
  });
  expect(status).toBe(1);
  expect(existsSync(join(directory(), 's'))).toBe(false);
  return stderr;
}

function python(script: string): string {
  const preamble = `import nbd, os, socket, subprocess, sys, time
qcow2 = ${JSON.stringify([process.execPath, CLI])}; demo = ${JSON.stringify(DEMO)}\n`;
  return run(SYSTEM_PYTHON, ['-c', preamble + script], { cwd: directory() }).trim();
}

describePeers(['nbdinfo', 'python3-libnbd'], 'qcow2 serve', () => {
  it('gives the Unix socket the permissions and the owner that it is told', async () => {
    const { uid, gid } = process.getuid?.() === 0 ? { uid: 65_534, gid: 1 } : statSync(directory());
    await serve('--socket=s', '--socket-mode=660', `--socket-owner=${uid}:${gid}`, DEMO);
    const stats = statSync(join(directory(), 's'));
    expect({ mode: stats.mode & 0o777, uid: stats.uid, gid: stats.gid }).toEqual({
      mode: 0o660,
      uid,
      gid,
    });
  });

  it('knows owners by name', async () => {
    if (process.getuid?.() !== 0) return;
    await serve('--socket=s', '--socket-owner=root:root', DEMO);
    rmSync(join(directory(), 's'));
    expect(refused('--socket=t', '--socket-owner=nobody-has-this-name', DEMO)).toContain(
      "there is no user 'nobody-has-this-name' in /etc/passwd",
    );
  });

  it.each(['127.0.0.1', '::1'])('listens on %s', async (address) => {
    const { uri } = await serve('--port=0', `--bind=${address}`, DEMO);
    expect(uri).toContain(address);
    expect(run('nbdinfo', ['--size', uri])).toBe(SIZE);
  });

  it('takes several sockets from whoever starts it', () => {
    const script = `
listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for n, s in enumerate(listeners): s.bind(f's{n}'); s.listen()
def child():
    for n, s in enumerate(listeners): os.dup2(s.fileno(), 10 + n)
    for n in range(2): os.dup2(10 + n, 3 + n)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')
pid = os.fork()
if pid == 0:
    child(); os.execv(qcow2[0], qcow2 + ['serve', demo])
for n in range(2):
    h = nbd.NBD(); h.connect_unix(f's{n}'); print(h.get_size()); h.shutdown()
os.kill(pid, 15); print(os.waitpid(pid, 0)[1])`;
    expect(python(script)).toBe(`${SIZE}${SIZE}0`);
  });

  it('takes a socket that listens, or the connection to a client, by its number', () => {
    const script = `
l = socket.socket(socket.AF_UNIX); l.bind('s'); l.listen()
p = subprocess.Popen(qcow2 + ['serve', '--fd', str(l.fileno()), demo], pass_fds=[l.fileno()])
h = nbd.NBD(); h.connect_unix('s'); print(h.get_size()); h.shutdown()
assert p.poll() is None; p.terminate(); print(p.wait())
a, b = socket.socketpair()
p = subprocess.Popen(qcow2 + ['serve', '--temp', '--fd', str(b.fileno()), demo], pass_fds=[b.fileno()])
b.close(); h = nbd.NBD(); h.connect_socket(a.detach())
h.pwrite(b'x' * 512, 0); print(h.get_size()); h.shutdown()
print(p.wait())`;
    expect(python(script)).toBe(`${SIZE}0\n${SIZE}0`);
  });

  it('is what libnbd starts by socket activation', () => {
    expect(
      run('nbdinfo', ['--size', '--', '[', process.execPath, CLI, 'serve', '--temp', DEMO, ']']),
    ).toBe(SIZE);
  });

  it('drops clients that are idle for too long, and no others', async () => {
    const { uri, stderr, stop } = await serve('--socket=s', '--idle-timeout=1', DEMO);
    const script = `
idle = nbd.NBD(); idle.connect_uri(${JSON.stringify(uri)}); busy = nbd.NBD(); busy.connect_uri(${JSON.stringify(uri)})
for _ in range(10): busy.pread(512, 0); time.sleep(0.2)
try: idle.pread(512, 0); print('not dropped')
except nbd.Error: print('dropped')
busy.pread(512, 0)`;
    expect(python(script)).toBe('dropped');
    expect(await stop()).toBe(0);
    expect(stderr()).toContain('client dropped: it was idle for 1 seconds');
  });

  it('ends with its last client if it is to, and not before', async () => {
    const { uri, ended } = await serve('--socket=s', '--until-last-client', DEMO);
    run('nbdinfo', ['--size', uri]);
    expect(await ended).toBe(0);
    expect(existsSync(join(directory(), 's'))).toBe(false);
  });

  it('goes on in the background once clients can connect', async () => {
    const args = [CLI, 'serve', '--fork', '--socket=s', '--pid-file=pid', DEMO];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, {
      cwd: directory(),
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toContain('Serving for reading at nbd+unix://');
    const pid = Number(readFileSync(join(directory(), 'pid'), 'utf8'));
    try {
      expect(pid).not.toBe(process.pid);
      expect(run('nbdinfo', ['--size', `nbd+unix:///?socket=${directory()}/s`])).toBe(SIZE);
      // It has nobody to talk to any more, and goes on all the same.
      tryRun('nbdinfo', ['--size', `nbd+unix:///nothing?socket=${directory()}/s`]);
      expect(run('nbdinfo', ['--size', `nbd+unix:///?socket=${directory()}/s`])).toBe(SIZE);
    } finally {
      process.kill(pid, 'SIGTERM');
    }
    await until(() => !existsSync(join(directory(), 's')) && !existsSync(join(directory(), 'pid')));
  });

  it('warns before it goes on in the background', async () => {
    writeFileSync(join(directory(), 'disk.raw'), Buffer.alloc(1024 * 1024));
    const options = ['--fork', '--rw', '--socket=s', '--pid-file=pid', 'disk.raw'];
    const { status, stdout, stderr } = spawnSync(process.execPath, [CLI, 'serve', ...options], {
      cwd: directory(),
      encoding: 'utf8',
    });
    process.kill(Number(readFileSync(join(directory(), 'pid'), 'utf8')), 'SIGTERM');
    await until(() => !existsSync(join(directory(), 's')) && !existsSync(join(directory(), 'pid')));
    expect({ status, stderr }).toEqual({
      status: 0,
      stderr:
        'qcow2: warning: disk.raw: no format was given, and it was taken for raw; ' +
        'say -f raw if it is\n',
    });
    expect(stdout).toContain('Serving for reading and writing');
  });

  it('says in the foreground why it cannot go on in the background', () => {
    expect(refused('--fork', '--socket=s', 'nothing.qcow2')).toBe(
      'qcow2: nothing.qcow2: cannot open: no such file or directory\n',
    );
  });

  it.each([
    [['--socket-mode=660'], '--socket-mode is for --socket'],
    [
      ['--socket=s', '--socket-mode=999'],
      "--socket-mode must be three octal digits, as in 660, not '999'",
    ],
    [['--socket=s', '--socket-owner=:'], '--socket-owner must be USER, USER:GROUP or :GROUP'],
    [['--socket=s', '--fd=3'], '--fd cannot be used together with --socket, --port or --bind'],
    [['--fd=99'], 'descriptor 99: it is no open socket'],
    [['--fd=3', '--fork'], '--fork cannot be used with a socket that is passed in'],
    [
      ['--socket=s', '--idle-timeout=0'],
      "--idle-timeout must be a number from 1 to 1000000, not '0'",
    ],
    [
      ['--socket=s', '-t', '--until-last-client'],
      '--persistent and --until-last-client cannot be used together',
    ],
    [['--socket=s', '--tls=on'], 'TLS needs either --tls-certificates or --tls-psk'],
    [['--socket=s', '--tls=off', '--tls-psk=f'], '--tls=off goes with neither'],
    [['--socket=s', '--tls-psk=none'], 'none: cannot read: no such file or directory'],
    [['--socket=s', '--tls-certificates=.'], 'server-cert.pem: cannot read: no such file'],
  ])('%j says what is wrong in one line', (args, problem) => {
    const message = refused(...args, DEMO);
    expect(message).toMatch(/^qcow2: [^\n]+\n$/);
    expect(message).toContain(problem);
  });
});
