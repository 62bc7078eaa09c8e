import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { FileDevice } from '../../../src/device/file.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { SliceDevice } from '../../../src/device/slice.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import type { NbdServer } from '../../../src/export/nbd/server.ts';
import { describePeers, SYSTEM_PYTHON } from '../../support/peers.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';
import { runProgram, runToEnd } from './programs.ts';
import { pattern } from './wire.ts';

const MiB = 1024 * 1024;
/** The file ends within a sector; the export has the rest of it as zeroes. */
const FILE_SIZE = 16 * MiB + 100;
const SIZE = 16 * MiB + 512;
const CONTENT = Buffer.concat([pattern(FILE_SIZE), Buffer.alloc(SIZE - FILE_SIZE)]);
/** Reads that touch this byte of the export `broken` fail. */
const BROKEN_AT = 8 * MiB + 1234;

class BrokenDevice extends MemoryDevice {
  override read(target: Uint8Array, offset: number): void {
    if (offset <= BROKEN_AT && BROKEN_AT < offset + target.length) {
      throw new Qcow2Error('CORRUPT', 'it is broken here');
    }
    super.read(target, offset);
  }
}

const directory = temporaryDirectoryPerTest();
let file: string;
let device: FileDevice;
let server: NbdServer;
let uri: string;

async function serve(content: Uint8Array): Promise<void> {
  writeFileSync(file, content);
  device = new FileDevice(file);
  const slice = new SliceDevice(device, { offset: 1000, length: 512_000 });
  server = await serveNbd(
    [
      { name: 'disk', description: 'a whole disk', device },
      { name: 'disk/1', device: slice },
      { name: 'broken', device: new BrokenDevice(CONTENT) },
    ],
    { socketPath: join(directory(), 'socket') },
  );
  uri = server.uris()[0]!;
}

beforeEach(async () => {
  file = join(directory(), 'disk.raw');
  await serve(CONTENT.subarray(0, FILE_SIZE));
});

afterEach(async () => {
  await server.close({ graceMs: 100 });
  device.close();
});

describePeers(['nbdinfo', 'nbdcopy'], 'libnbd programs', () => {
  it('nbdinfo lists the exports with what they can do', async () => {
    const text = (await runToEnd('nbdinfo', ['--list', '--json', uri])).toString();
    const { protocol, exports } = JSON.parse(text) as {
      protocol: string;
      exports: Record<string, unknown>[];
    };
    expect(protocol).toBe('newstyle-fixed');
    expect(exports.map((item) => item['export-name'])).toEqual(['disk', 'disk/1', 'broken']);
    expect(exports[0]).toMatchObject({
      description: 'a whole disk',
      'export-size': SIZE,
      is_read_only: true,
      can_multi_conn: true,
      can_flush: true,
      can_cache: true,
      can_trim: false,
      can_zero: false,
      can_fua: false,
      block_size_minimum: 1,
      block_size_maximum: 32 * MiB,
    });
  });

  it('nbdinfo tells sizes by name, and that a name is not there', async () => {
    expect((await runToEnd('nbdinfo', ['--size', uri])).toString()).toBe(`${SIZE}\n`);
    const part = server.uris('disk/1')[0]!;
    expect((await runToEnd('nbdinfo', ['--size', part])).toString()).toBe('512000\n');
    const { exitCode, stderr } = await runProgram('nbdinfo', [server.uris('nothing')[0]!]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('nothing');
  });

  it.each([1, 4])('nbdcopy copies over %i connections', async (connections) => {
    const copy = join(directory(), 'copy.raw');
    await runToEnd('nbdcopy', [`--connections=${connections}`, uri, copy]);
    expect(readFileSync(copy).equals(CONTENT)).toBe(true);
  });

  it('nbdcopy sends large requests', async () => {
    const copy = join(directory(), 'copy.raw');
    await runToEnd('nbdcopy', [`--request-size=${32 * MiB}`, uri, copy]);
    expect(readFileSync(copy).equals(CONTENT)).toBe(true);
  });

  it('nbdcopy of several clients at once, one of them killed, gets the right bytes', async () => {
    const victim = spawn('nbdcopy', [uri, 'null:'], { stdio: 'ignore' });
    const copies = ['a', 'b', 'c'].map((name) => join(directory(), name));
    const running = copies.map((copy) => runToEnd('nbdcopy', ['--connections=2', uri, copy]));
    victim.kill('SIGKILL');
    await Promise.all(running);
    for (const copy of copies) expect(readFileSync(copy).equals(CONTENT)).toBe(true);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'QEMU', () => {
  it('qemu-img info tells the size', async () => {
    const text = (await runToEnd('qemu-img', ['info', '--output=json', uri])).toString();
    expect(JSON.parse(text)).toMatchObject({ format: 'raw', 'virtual-size': SIZE });
  });

  it('qemu-img compare and convert find the same bytes', async () => {
    const { stdout } = await runProgram('qemu-img', [
      'compare',
      '-f',
      'raw',
      '-F',
      'raw',
      file,
      uri,
    ]);
    expect(stdout.toString()).toContain('Images are identical.');
    const copy = join(directory(), 'copy.raw');
    await runToEnd('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', '-m', '8', uri, copy]);
    expect(readFileSync(copy).equals(CONTENT)).toBe(true);
  });

  it('qemu-io reads good parts of a broken export, and cannot write', async () => {
    const broken = server.uris('broken')[0]!;
    const commands = ['read 0 64k', `read ${8 * MiB} 64k`, 'read 9M 64k', 'flush'];
    const args = commands.flatMap((command) => ['-c', command]);
    const { stdout } = await runProgram('qemu-io', ['-r', '-f', 'raw', ...args, broken]);
    expect(stdout.toString().match(/^(read 65536\/65536|read failed: .*)/gm)).toEqual([
      'read 65536/65536',
      'read failed: Input/output error',
      'read 65536/65536',
    ]);
    const writing = await runProgram('qemu-io', ['-f', 'raw', '-c', 'write 0 512', broken]);
    expect(writing.exitCode).toBe(1);
  });
});

describePeers(['python3-libnbd'], 'libnbd from Python', () => {
  async function python(script: string): Promise<string> {
    const preamble = `import nbd, sys\nuri = ${JSON.stringify(uri)}\n`;
    return (await runToEnd(SYSTEM_PYTHON, ['-c', preamble + script])).toString().trim();
  }

  it('reads pieces at odd places', async () => {
    const script = `
h = nbd.NBD(); h.connect_uri(uri)
want = open(${JSON.stringify(file)}, 'rb').read() + bytes(412)
for offset, count in [(0, 1), (511, 2), (12345, 67890), (${SIZE - 1}, 1), (0, ${SIZE})]:
    assert h.pread(count, offset) == want[offset:offset + count], offset
h.cache(4096, 0); h.flush()
print(h.get_size(), h.is_read_only(), h.can_multi_conn(), h.get_protocol()); h.shutdown()`;
    expect(await python(script)).toBe(`${SIZE} True True newstyle-fixed`);
  });

  it('speaks the old newstyle, without fixed options', async () => {
    const script = `
h = nbd.NBD(); h.set_handshake_flags(0); h.connect_uri(uri)
want = open(${JSON.stringify(file)}, 'rb').read() + bytes(412)
assert h.pread(70000, 99) == want[99:70099]
print(h.get_protocol(), h.get_size())`;
    expect(await python(script)).toBe(`newstyle ${SIZE}`);
  });

  it('gets many replies for many requests in flight', async () => {
    const script = `
h = nbd.NBD(); h.connect_uri(uri)
want = open(${JSON.stringify(file)}, 'rb').read() + bytes(412)
work = []
for n in range(2000):
    offset = n * 7919 % ${SIZE - 9000}; buffer = nbd.Buffer(n % 9000 + 1)
    work.append((h.aio_pread(buffer, offset), buffer, offset))
while h.aio_in_flight() > 0: h.poll(-1)
for cookie, buffer, offset in work:
    assert h.aio_command_completed(cookie)
    assert buffer.to_bytearray() == want[offset:offset + len(buffer.to_bytearray())], offset
print('good')`;
    expect(await python(script)).toBe('good');
  });

  it('is told the right errors for what it must not send', async () => {
    const script = `
import errno
h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri(uri)
def error(f):
    try: f(); return 'ok'
    except nbd.Error as e: return errno.errorcode[e.errnum]
print(error(lambda: h.pwrite(b'x' * 512, 0)), error(lambda: h.zero(512, 0)),
      error(lambda: h.trim(512, 0)), error(lambda: h.pread(512, ${SIZE - 511})),
      error(lambda: h.pread(512, 0)))`;
    expect(await python(script)).toBe('EPERM EPERM EPERM EINVAL ok');
  });
});

describePeers(['fio'], 'fio', () => {
  const job = [
    '--name=job',
    '--bs=4k',
    `--size=${8 * MiB}`,
    '--verify=crc32c',
    '--minimal',
    '--verify_state_save=0',
  ];

  it('verifies what it wrote, at depth 32', async () => {
    const written = join(directory(), 'written.raw');
    const place = `--filename=${written}`;
    await runToEnd('fio', [...job, place, '--rw=randwrite', '--do_verify=0', '--ioengine=psync']);
    await server.close();
    device.close();
    await serve(readFileSync(written));
    const args = [...job, '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--verify_only'];
    await runToEnd('fio', [...args, '--iodepth=32', '--randrepeat=1']);
    // One wrong bit must be found, or the run above said nothing.
    const changed = readFileSync(written);
    changed[4096 * 99 + 2000]! ^= 1;
    writeFileSync(file, changed);
    expect((await runProgram('fio', [...args, '--iodepth=32'])).exitCode).not.toBe(0);
  });
});

describePeers(['nbdfuse', '/dev/fuse', 'fusermount3'], 'nbdfuse', () => {
  it('shows the disk as a file', async () => {
    const mountPoint = join(directory(), 'mnt');
    mkdirSync(mountPoint);
    const daemon = spawn('nbdfuse', ['-r', mountPoint, uri], { stdio: 'ignore' });
    const ended = new Promise((resolve) => daemon.on('close', resolve));
    const shown = join(mountPoint, 'nbd');
    try {
      for (let tries = 0; !existsSync(shown) && tries < 500; tries++) await sleep(10);
      // Read by another program: this process must be free to serve.
      await runToEnd('cmp', [`--bytes=${FILE_SIZE}`, shown, file]);
    } finally {
      await runProgram('fusermount3', ['-u', mountPoint]);
      await ended;
    }
  });
});
