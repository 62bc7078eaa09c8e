/** TLS between `qcow2 serve` and QEMU, libnbd and nbdkit: where it works, and what is said if not. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, expect, it } from 'vitest';
import { pattern } from '../export/nbd/wire.ts';
import { makeCertificate, makeCertificates } from '../support/certificates.ts';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { qemuImg, run, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { sharedTemporaryDirectory, temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { CLI, servers } from './serve-process.ts';
import type { ServeProcess } from './serve-process.ts';

const MiB = 1024 * 1024;
const SIZE = 8 * MiB;
const KEY = 'c0ffee'.repeat(10);
const OTHER_KEY = 'facade'.repeat(10);

const pki = sharedTemporaryDirectory();
const directory = temporaryDirectoryPerTest();
const serve = servers(directory);
const daemons: ChildProcess[] = [];

afterEach(async () => {
  for (const child of daemons.splice(0)) {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) {
      await new Promise((resolve) => child.on('close', resolve));
    }
  }
});

function at(name: string): string {
  return join(directory(), name);
}

/** A directory of certificates or keys. */
function credentials(name: string): string {
  return join(pki, name);
}

function makePki(): void {
  makeCertificates(credentials('ours'));
  makeCertificates(credentials('others'));
  for (const name of ['expired', 'expired-server', 'anonymous']) {
    cpSync(credentials('ours'), credentials(name), { recursive: true });
  }
  makeCertificate(credentials('expired'), 'client', { days: -1 });
  makeCertificate(credentials('expired-server'), 'server', { days: -1 });
  for (const name of ['client-cert.pem', 'client-key.pem']) {
    rmSync(join(credentials('anonymous'), name));
  }
  const files = { alice: `alice:${KEY}\n`, wrong: `alice:${OTHER_KEY}\nmallory:${KEY}\n` };
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(credentials(name));
    writeFileSync(join(credentials(name), 'keys.psk'), content);
  }
}

const X509 = (): string[] => ['--tls-certificates', credentials('ours'), '--tls-verify-peer'];
const PSK = (): string[] => ['--tls-psk', join(credentials('alice'), 'keys.psk')];

/** An image that holds `content`, served for writing at a port of localhost. */
async function serveDisk(content: Buffer, ...args: string[]): Promise<ServeProcess> {
  const name = `disk${Math.random()}`;
  writeFileSync(at(`${name}.raw`), content);
  qemuImg('convert', '-O', 'qcow2', at(`${name}.raw`), at(`${name}.qcow2`));
  return serve('--port=0', '--rw', ...args, at(`${name}.qcow2`));
}

function portOf({ uri }: ServeProcess): string {
  return /:(\d+)\//.exec(uri)![1]!;
}

/** How QEMU's programs are told of credentials, as the object `tls`. */
function qemuObject(kind: 'x509' | 'psk', name: string, user = 'alice'): string {
  const object = `tls-creds-${kind},id=tls,endpoint=client,dir=${credentials(name)}`;
  return kind === 'psk' ? `${object},username=${user}` : object;
}

/** The export as QEMU opens it. */
function qemuNode(server: ServeProcess, host = 'localhost'): string {
  return `driver=nbd,server.type=inet,server.host=${host},server.port=${portOf(server)},tls-creds=tls`;
}

/** The export as libnbd opens it; a user makes it a key in place of a certificate. */
function libnbdUri(server: ServeProcess, name: string, user = ''): string {
  const place = `localhost:${portOf(server)}`;
  if (user === '') return `nbds://${place}/?tls-certificates=${credentials(name)}`;
  return `nbds://${user}@${place}/?tls-psk-file=${credentials(name)}/keys.psk`;
}

async function startDaemon(
  program: string,
  args: readonly string[],
  socket: string,
): Promise<void> {
  daemons.push(spawn(program, args, { cwd: directory(), stdio: 'ignore' }));
  await until(() => existsSync(at(socket)));
}

const NEEDED = ['openssl', 'qemu-img', 'qemu-io', 'qemu-storage-daemon', 'nbdinfo', 'nbdcopy'];

describePeers([...NEEDED, 'nbdkit', 'python3-libnbd'], 'qcow2 serve with TLS', () => {
  beforeAll(makePki);

  const CASES = [
    { kind: 'x509', name: 'ours', user: '', options: X509 },
    { kind: 'psk', name: 'alice', user: 'alice', options: PSK },
  ] as const;

  it.each(CASES)('serves QEMU ($kind)', async ({ kind, name, options }) => {
    const content = pattern(SIZE);
    const server = await serveDisk(Buffer.alloc(SIZE), ...options());
    writeFileSync(at('source.raw'), content);
    const object = ['--object', qemuObject(kind, name)];
    const node = qemuNode(server);
    const copying = ['convert', '-n', '-m', '8', '-W', '-f', 'raw', ...object];
    run('qemu-img', [...copying, '--target-image-opts', at('source.raw'), node]);
    const commands = ['write -P 7 1000 5000', 'write -z -u 2M 1M', 'discard 4M 1M', 'flush'];
    const checks = ['read -P 7 1000 5000', 'read -P 0 2M 1M', 'write -f -P 9 3M 64k'];
    const script = [...commands, ...checks].flatMap((command) => ['-c', command]);
    const said = run('qemu-io', [...object, ...script, '--image-opts', node]);
    expect(said).not.toMatch(/failed|verification/);

    // The daemon passes on to clients without TLS what it gets with it.
    const socket = `addr.type=unix,addr.path=${at('q')}`;
    const daemon = [
      ...[...object, '--blockdev', `${node},node-name=disk`],
      ...['--nbd-server', socket, '--export', 'type=nbd,id=e,node-name=disk,name=e,writable=on'],
    ];
    await startDaemon('qemu-storage-daemon', daemon, 'q');
    const through = `nbd+unix:///e?socket=${at('q')}`;
    const writing = `
import nbd; h = nbd.NBD(); h.connect_uri(${JSON.stringify(through)})
h.pwrite(b'd' * 100000, 6000000, nbd.CMD_FLAG_FUA); h.shutdown()`;
    run(SYSTEM_PYTHON, ['-c', writing]);
    run('nbdcopy', [through, at('back.raw')]);

    content
      .fill(7, 1000, 6000)
      .fill(0, 2 * MiB, 3 * MiB)
      .fill(9, 3 * MiB, 3 * MiB + 65_536);
    content.fill(0, 4 * MiB, 5 * MiB).fill('d', 6_000_000, 6_100_000);
    expect(readFileSync(at('back.raw')).equals(content)).toBe(true);
    expect(await server.stop()).toBe(0);
    expect(server.stderr()).toBe('');
  });

  it.each(CASES)('serves nbdkit, which serves others ($kind)', async ({ name, user, options }) => {
    const server = await serveDisk(pattern(SIZE), ...options());
    const place = ['hostname=localhost', `port=${portOf(server)}`, 'tls=require'];
    const login =
      user === ''
        ? [`tls-certificates=${credentials(name)}`]
        : [`tls-psk=${join(credentials(name), 'keys.psk')}`, `tls-username=${user}`];
    const changed = pattern(SIZE).reverse();
    writeFileSync(at('changed.raw'), changed);
    const script = `nbdcopy "$uri" ${at('copy.raw')} && nbdcopy --flush ${at('changed.raw')} "$uri"`;
    run('nbdkit', ['-U', '-', 'nbd', ...place, ...login, '--run', script]);
    expect(readFileSync(at('copy.raw')).equals(pattern(SIZE))).toBe(true);
    run('nbdcopy', [libnbdUri(server, name, user), at('back.raw')]);
    expect(readFileSync(at('back.raw')).equals(changed)).toBe(true);
    expect(server.stderr()).toBe('');
  });

  it('is at both ends of nbdcopy', async () => {
    const source = await serveDisk(pattern(SIZE), ...X509());
    const target = await serveDisk(Buffer.alloc(SIZE), ...PSK());
    const [from, to] = [libnbdUri(source, 'ours'), libnbdUri(target, 'alice', 'alice')];
    run('nbdcopy', ['--flush', '--connections=4', from, to]);
    run('nbdcopy', [to, at('back.raw')]);
    expect(readFileSync(at('back.raw')).equals(pattern(SIZE))).toBe(true);
  });

  const qemu =
    (kind: 'x509' | 'psk', name: string, { user = 'alice', host = 'localhost' } = {}) =>
    (server: ServeProcess): RunResult => {
      const object = qemuObject(kind, name, user);
      return tryRun('qemu-img', [
        'info',
        '--object',
        object,
        '--image-opts',
        qemuNode(server, host),
      ]);
    };
  const libnbd =
    (name: string, user = '') =>
    (server: ServeProcess): RunResult =>
      tryRun('nbdinfo', ['--size', libnbdUri(server, name, user)]);
  const plainly =
    (program: string, ...args: string[]) =>
    (server: ServeProcess): RunResult =>
      tryRun(program, [...args, `nbd://localhost:${portOf(server)}`]);

  const elsewhere = qemu('x509', 'ours', { host: '127.0.0.1' });

  const LEFT = 'client left as soon as TLS was agreed on: it may not trust the certificate';
  const UNTRUSTING = 'client dropped: no TLS: the client broke it off; it may not trust the cert';
  const NO_CERTIFICATE =
    'client dropped: no TLS: the client has no certificate, and has to show one';
  const STRANGER = "the client's certificate is of an authority not in ca-cert.pem";
  const WRONG_KEY = "client dropped: no TLS: the client's key is another than the one in the file";
  const NOBODY = 'client dropped: no TLS: there is no key for user "mallory"';
  const PLAIN = 'refused: it does not use TLS, which is required';
  const NO_TLS_HERE = 'asks for TLS, which this server was started without';

  it.each([
    [
      'certificates',
      X509,
      libnbd('ours'),
      [
        ['of another authority, by QEMU', qemu('x509', 'others'), /certificate/i, STRANGER],
        ['of another authority, by libnbd', libnbd('others'), /verification/, UNTRUSTING],
        ['for another host', elsewhere, /does not match the hostname 127.0.0.1/, LEFT],
        ['expired', libnbd('expired'), /gnutls/, 'certificate has expired'],
        ['none, of QEMU', qemu('x509', 'anonymous'), /TLS/, NO_CERTIFICATE],
        ['none, of libnbd', libnbd('anonymous'), /gnutls/, NO_CERTIFICATE],
        ['no TLS, of QEMU', plainly('qemu-img', 'info'), /TLS negotiation required/, PLAIN],
        ['no TLS, of libnbd', plainly('nbdinfo', '--size'), /opt_go|TLS/, PLAIN],
      ],
    ],
    [
      'keys',
      PSK,
      libnbd('alice', 'alice'),
      [
        ['wrong, of QEMU', qemu('psk', 'wrong'), /alert/, WRONG_KEY],
        ['wrong, of libnbd', libnbd('wrong', 'alice'), /alert/, WRONG_KEY],
        ['of nobody known', qemu('psk', 'wrong', { user: 'mallory' }), /alert/, NOBODY],
        ['no TLS', plainly('qemu-img', 'info'), /TLS negotiation required/, PLAIN],
      ],
    ],
    [
      'no TLS',
      () => [],
      plainly('nbdinfo', '--size'),
      [
        ['TLS, of QEMU', qemu('x509', 'ours'), /STARTTLS/, NO_TLS_HERE],
        ['TLS, of libnbd', libnbd('ours'), /refused TLS/, NO_TLS_HERE],
      ],
    ],
  ] as const)(
    'with %s tells both sides what is wrong, and lives on',
    async (_, options, good, cases) => {
      const server = await serveDisk(pattern(SIZE), ...options());
      for (const [name, client, told, logged] of cases) {
        const before = server.stderr().length;
        const { exitCode, stderr } = client(server);
        expect(exitCode, name).toBe(1);
        expect(stderr, name).toMatch(told);
        await until(() => server.stderr().length > before, 3000);
        // One line for one client, and none of OpenSSL's codes in it.
        const line = server.stderr().slice(before);
        expect(line, name).toMatch(/^qcow2: client \d+: [^\n]+\n$/);
        expect(line, name).toContain(logged);
        expect(line, name).not.toMatch(/error:|:SSL|\.c:/);
        expect(good(server), name).toMatchObject({ exitCode: 0, stdout: `${SIZE}\n` });
      }
      expect(await server.stop()).toBe(0);
    },
  );

  it('refuses to start with a certificate that has expired', () => {
    const args = ['serve', '--socket=s', '--tls-certificates', credentials('expired-server')];
    qemuImg('create', '-f', 'qcow2', at('disk.qcow2'), '1M');
    const { exitCode, stderr } = tryRun(process.execPath, [CLI, ...args, at('disk.qcow2')]);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^qcow2: .*server-cert\.pem: the certificate expired at [^\n]+\n$/);
  });
});
