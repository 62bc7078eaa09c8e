import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import type { NbdServer, NbdTlsOptions } from '../../../src/export/nbd/server.ts';
import { loadTls } from '../../../src/export/nbd/tls.ts';
import { makeCertificates } from '../../support/certificates.ts';
import { describePeers, SYSTEM_PYTHON } from '../../support/peers.ts';
import { run } from '../../support/qemu.ts';
import { sharedTemporaryDirectory } from '../../support/temp.ts';
import { TestClient } from './client.ts';
import { runProgram } from './programs.ts';
import type { ProgramResult } from './programs.ts';
import { clientFlags, GREETING, infoData, OPT, option, optionReply, pattern, REP } from './wire.ts';

const DISK = pattern(3 * 1024 * 1024);
const directory = sharedTemporaryDirectory();

let server: NbdServer | undefined;
let log: string[] = [];
let path: string;

afterEach(async () => {
  await server?.close({ graceMs: 100 });
  server = undefined;
});

async function serve(tls: NbdTlsOptions): Promise<void> {
  log = [];
  path = join(directory, `s${Math.random()}`);
  const device = new MemoryDevice(Buffer.from(DISK));
  server = await serveNbd(
    [{ name: 'disk', device, writable: true }],
    { socketPath: path },
    {
      tls,
      log: (message) => log.push(message),
    },
  );
}

/** Reads the disk, writes to it and reads that, with libnbd. */
function talk(setUp: string, scheme = 'nbds'): Promise<ProgramResult> {
  const script = `
import nbd
h = nbd.NBD(); h.set_uri_allow_local_file(True)
${setUp}
h.connect_uri('${scheme}+unix:///?socket=${path}')
data = h.pread(h.get_size(), 0); h.pwrite(data[:2000000], 1000000)
assert h.pread(2000000, 1000000) == data[:2000000]
import zlib; print(h.get_tls_negotiated(), h.get_structured_replies_negotiated(), zlib.crc32(data)); h.shutdown()`;
  return runProgram(SYSTEM_PYTHON, ['-c', script]);
}

const CRC = run(
  SYSTEM_PYTHON,
  ['-c', 'import sys, zlib; print(zlib.crc32(sys.stdin.buffer.read()))'],
  { input: DISK },
).trim();
const ENCRYPTED = `True True ${CRC}\n`;

describePeers(['python3-libnbd', 'openssl'], 'TLS with certificates', () => {
  let ours: string;
  let others: string;

  beforeAll(() => {
    ours = join(directory, 'ours');
    others = join(directory, 'others');
    makeCertificates(ours);
    makeCertificates(others);
  });

  const withCertificates = (place: string): string =>
    `h.set_tls(2); h.set_tls_certificates('${place}'); h.set_tls_verify_peer(True)`;

  it('serves clients that use it', async () => {
    await serve({ mode: 'require', certificates: ours });
    expect(server!.uris()[0]).toBe(`nbds+unix:///?socket=${path}`);
    const { stdout, stderr } = await talk(
      `${withCertificates(ours)}; h.set_tls_verify_peer(False)`,
    );
    expect({ stdout: stdout.toString(), stderr }).toEqual({ stdout: ENCRYPTED, stderr: '' });
    expect(log.some((line) => /uses TLSv1\.[23]/.test(line))).toBe(true);
  });

  it('refuses clients without it where it is required, in words', async () => {
    await serve({ mode: 'require', certificates: ours });
    const { exitCode, stderr } = await talk('', 'nbd');
    expect(exitCode).not.toBe(0);
    expect(stderr).toMatch(/TLS/i);
  });

  it('serves both where it is only allowed', async () => {
    await serve({ mode: 'on', certificates: ours });
    expect((await talk('', 'nbd')).stdout.toString()).toBe(`False True ${CRC}\n`);
    const secure = await talk(`${withCertificates(ours)}; h.set_tls_verify_peer(False)`);
    expect(secure.stdout.toString()).toMatch(/^True True /);
  });

  it('takes only clients of the authority if they are verified', async () => {
    await serve({ mode: 'require', certificates: ours, verifyPeer: true });
    const good = await talk(`${withCertificates(ours)}; h.set_tls_verify_peer(False)`);
    expect(good.stdout.toString()).toBe(ENCRYPTED);
    const bad = await talk(`${withCertificates(others)}; h.set_tls_verify_peer(False)`);
    expect(bad.exitCode).not.toBe(0);
    expect(server!.clientCount).toBeLessThanOrEqual(1);
  });

  it('goes on when a client speaks nonsense in place of TLS', async () => {
    await serve({ mode: 'require', certificates: ours });
    const client = await TestClient.connect({ path });
    client.send(clientFlags(), option(OPT.STARTTLS));
    expect(await client.take(GREETING.length + 20)).toEqual(
      Buffer.concat([GREETING, optionReply(OPT.STARTTLS, REP.ACK)]),
    );
    client.send(option(OPT.LIST));
    await client.closed;
    const { stdout } = await talk(`${withCertificates(ours)}; h.set_tls_verify_peer(False)`);
    expect(stdout.toString()).toBe(ENCRYPTED);
  });

  it('takes nothing that arrives in the clear behind the option', async () => {
    await serve({ mode: 'on', certificates: ours });
    const client = await TestClient.connect({ path });
    client.send(clientFlags(), Buffer.concat([option(OPT.STARTTLS), option(OPT.GO, infoData(''))]));
    await client.closed;
    expect(await client.take(1000)).toEqual(GREETING);
    expect(log.join()).toContain('more than NBD_OPT_STARTTLS arrived at once');
  });
});

describePeers(['python3-libnbd'], 'TLS with keys', () => {
  const key = 'c0ffee'.repeat(10);

  function keyFile(content = `# users\nalice:${key}\n`): string {
    const file = join(directory, `keys${Math.random()}.psk`);
    writeFileSync(file, content);
    return file;
  }

  it('serves users that have theirs, and nobody else', async () => {
    const pskFile = keyFile();
    await serve({ mode: 'require', pskFile });
    const setUp = (user: string, file: string): string =>
      `h.set_tls(2); h.set_tls_username('${user}'); h.set_tls_psk_file('${file}')`;
    const { stdout, stderr } = await talk(setUp('alice', pskFile));
    expect({ stdout: stdout.toString(), stderr }).toEqual({ stdout: ENCRYPTED, stderr: '' });
    const wrong = keyFile(`alice:${'00'.repeat(30)}\nmallory:${key}\n`);
    expect((await talk(setUp('alice', wrong))).exitCode).not.toBe(0);
    expect((await talk(setUp('mallory', wrong))).exitCode).not.toBe(0);
  });

  it.each(['', 'alice', 'alice:xyz', 'alice:abc', ':abcd', `alice:${'ab'.repeat(65)}`])(
    'says that a file of %j is none of keys',
    (content) => {
      expect(() => loadTls({ mode: 'on', pskFile: keyFile(content) })).toThrow(/keys|USER:HEXKEY/);
    },
  );
});

describe('TLS that cannot be', () => {
  it('is refused at once', () => {
    expect(() => loadTls({ mode: 'on' })).toThrow('either certificates or a file of keys');
    expect(() => loadTls({ mode: 'on', certificates: 'a', pskFile: 'b' })).toThrow('either');
    expect(() => loadTls({ mode: 'on', pskFile: 'b', verifyPeer: true })).toThrow('verified');
    expect(() => loadTls({ mode: 'on', certificates: join(directory, 'none') })).toThrow(
      'server-cert.pem: cannot read: no such file or directory',
    );
  });
});
