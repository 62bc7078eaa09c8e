import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { pattern } from '../export/nbd/wire.ts';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { CLI, servers } from './serve-process.ts';

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

function at(name: string): string {
  return join(directory(), name);
}

/** A qcow2 image that holds `pattern`. */
function image(name = 'disk.qcow2'): string {
  writeFileSync(at('pattern.raw'), pattern(SIZE));
  qemuImg('convert', '-O', 'qcow2', at('pattern.raw'), at(name));
  return at(name);
}

/** What QEMU reads from an image. */
function contentOf(path: string): Buffer {
  qemuImg('convert', '-O', 'raw', path, at('content.raw'));
  return readFileSync(at('content.raw'));
}

function python(script: string, uri: string): string {
  return run(SYSTEM_PYTHON, [
    '-c',
    `import nbd, errno, random\nuri = ${JSON.stringify(uri)}\n${script}`,
  ]).trim();
}

/** Bytes that begin and end the writes of the tests below. */
const WRITE = `
h = nbd.NBD(); h.connect_uri(uri)
h.pwrite(b'a' * 70000, 1000); h.pwrite(b'b' * 512, ${SIZE - 512}, nbd.CMD_FLAG_FUA)
`;
function written(): Buffer {
  const bytes = pattern(SIZE);
  bytes.fill('a', 1000, 71_000);
  bytes.fill('b', SIZE - 512);
  return bytes;
}

describePeers(['qemu-img', 'python3-libnbd'], 'qcow2 serve --rw', () => {
  it('stores what is written, once it stops', async () => {
    const path = image();
    const { uri, stop, stderr } = await serve('--socket=s', '--rw', path);
    python(`${WRITE}h.shutdown()`, uri);
    expect(await stop()).toBe(0);
    expect(stderr()).toBe('');
    expect(contentOf(path).equals(written())).toBe(true);
    qemuImg('check', path);
  });

  it('is locked as a writer: nobody else opens the image', async () => {
    const path = image();
    await serve('--socket=s', '--rw', path);
    expect(tryRun('qemu-img', ['info', path]).stderr).toContain(
      'Failed to get shared "write" lock',
    );
    const second = spawnSync(process.execPath, [CLI, 'serve', '--socket=t', '--rw', path]);
    expect(second.status).toBe(1);
    expect(second.stderr.toString()).toMatch(/disk.qcow2: .*in use|lock/i);
  });

  it('killed in the middle of writing leaves a valid image with all that was flushed', async () => {
    const path = image();
    const { uri, child, ended } = await serve('--socket=s', '--rw', path);
    const script = `
h = nbd.NBD(); h.connect_uri(uri)
h.pwrite(b'f' * 100000, 5000); h.flush(); print('flushed', flush=True)
try:
    while True:
        o = random.randrange(${8 * MiB}, ${SIZE - 70_000}); h.pwrite(b'x' * 70000, o); h.trim(65536, o)
except nbd.Error: pass`;
    const writer = spawn(SYSTEM_PYTHON, [
      '-c',
      `import nbd, random\nuri = ${JSON.stringify(uri)}${script}`,
    ]);
    await new Promise((resolve) => writer.stdout.once('data', resolve));
    // It may end before the server has.
    const writerEnded = new Promise((resolve) => writer.on('close', resolve));
    await sleep(200);
    child.kill('SIGKILL');
    await Promise.all([ended, writerEnded]);
    const { exitCode, stdout } = tryRun('qemu-img', ['check', path]);
    // 3: leaked clusters, which are no damage.
    expect([0, 3], stdout).toContain(exitCode);
    const content = contentOf(path);
    expect(content.subarray(5000, 105_000).equals(Buffer.alloc(100_000, 'f'))).toBe(true);
    expect(content.subarray(0, 5000).equals(pattern(SIZE).subarray(0, 5000))).toBe(true);
  });

  it('keeps writers of a partition within it', async () => {
    const raw = at('disk.raw');
    writeFileSync(raw, Buffer.alloc(SIZE));
    run('sfdisk', ['--quiet', raw], {
      input: 'label: dos\nstart=2048, size=4096, type=83\nsize=8192, type=83\n',
    });
    const before = readFileSync(raw);
    const { exports, stop } = await serve('--socket=s', '--rw', '--format=raw', raw);
    const part = exports.find(({ name }) => name === 'disk/1')!;
    const script = `
h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri(uri); size = h.get_size()
def error(f):
    try: f(); return 'ok'
    except nbd.Error as e: return errno.errorcode[e.errnum]
print(size, error(lambda: h.pwrite(b'p' * size, 0)), error(lambda: h.pwrite(b'p', size)),
      error(lambda: h.zero(512, size - 511)), error(lambda: h.trim(513, size - 512)))`;
    expect(python(script, part.uri)).toBe(`${2 * MiB} ok ENOSPC ENOSPC EINVAL`);
    expect(await stop()).toBe(0);
    before.fill('p', MiB, 3 * MiB);
    expect(readFileSync(raw).equals(before)).toBe(true);
  });

  it('warns of an image that was taken for raw because nobody said what it is', async () => {
    writeFileSync(at('disk.raw'), Buffer.alloc(MiB));
    const guessed = await serve('--socket=s', '--rw', at('disk.raw'));
    expect(await guessed.stop()).toBe(0);
    expect(guessed.stderr()).toBe(
      `qcow2: warning: ${at('disk.raw')}: no format was given, and it was taken for raw; ` +
        'say -f raw if it is\n',
    );
    const said = await serve('--socket=s', '--rw', '-f', 'raw', at('disk.raw'));
    expect(await said.stop()).toBe(0);
    expect(said.stderr()).toBe('');
  });

  it('tells clients of each other: what one wrote the other reads, and flushes', async () => {
    const { uri } = await serve('--socket=s', '--rw', image());
    const script = `
a = nbd.NBD(); a.connect_uri(uri); b = nbd.NBD(); b.connect_uri(uri)
assert a.can_multi_conn()
for n in range(100):
    a.pwrite(bytes([n]) * 5000, n * 4000); assert b.pread(5000, n * 4000) == bytes([n]) * 5000
b.flush(); print('good')`;
    expect(python(script, uri)).toBe('good');
  });
});

describePeers(['qemu-img', 'python3-libnbd'], 'qcow2 serve --temp', () => {
  it('takes writes and forgets them; the image is never opened for writing', async () => {
    const path = image();
    const before = readFileSync(path);
    const { uri, stop } = await serve('--socket=s', '--temp', path);
    const script = `${WRITE}assert h.pread(70000, 1000) == b'a' * 70000; h.zero(65536, 131072)
h.trim(65536, 0); h.flush(); h.shutdown()`;
    python(script, uri);
    // Others may read the image meanwhile.
    qemuImg('info', path);
    expect(await stop()).toBe(0);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(readdirSync(directory()).sort()).toEqual(['disk.qcow2', 'pattern.raw']);
  });
});

describePeers(['qemu-img', 'python3-libnbd'], 'qcow2 serve --overlay', () => {
  it('keeps writes in an overlay, makes it, and goes on with it', async () => {
    const path = image();
    const before = readFileSync(path);
    const first = await serve('--socket=s', '--overlay=o.qcow2', path);
    python(`${WRITE}h.shutdown()`, first.uri);
    expect(await first.stop()).toBe(0);
    const second = await serve('--socket=s', '--overlay=o.qcow2', path);
    python(
      `h = nbd.NBD(); h.connect_uri(uri)
assert h.pread(70000, 1000) == b'a' * 70000; h.shutdown()`,
      second.uri,
    );
    expect(await second.stop()).toBe(0);
    expect(readFileSync(path).equals(before)).toBe(true);
    expect(contentOf(at('o.qcow2')).equals(written())).toBe(true);
    qemuImg('check', at('o.qcow2'));
  });

  it('refuses a file that is something else', () => {
    const path = image();
    writeFileSync(at('notes.txt'), 'precious');
    const args = [CLI, 'serve', '--socket=s', '--overlay=notes.txt', path];
    const { status, stderr } = spawnSync(process.execPath, args, {
      cwd: directory(),
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr: expect.stringContaining('notes.txt: ') as string,
    });
    expect(readFileSync(at('notes.txt'), 'utf8')).toBe('precious');
    expect(existsSync(at('s'))).toBe(false);
  });
});

describePeers(
  ['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdcopy', 'nbdinfo', 'python3-libnbd'],
  'clients that write',
  () => {
    it('nbdcopy fills an image, several connections at once', async () => {
      const source = at('source.raw');
      const content = pattern(SIZE);
      content.fill(0, 3 * MiB, 9 * MiB);
      writeFileSync(source, content);
      qemuImg('create', '-f', 'qcow2', at('new.qcow2'), `${SIZE}`);
      const { uri, stop } = await serve('--socket=s', '--rw', at('new.qcow2'));
      run('nbdcopy', ['--flush', '--connections=4', source, uri]);
      run('nbdcopy', [uri, at('back.raw')]);
      expect(await stop()).toBe(0);
      expect(readFileSync(at('back.raw')).equals(content)).toBe(true);
      expect(contentOf(at('new.qcow2')).equals(content)).toBe(true);
      const { 'actual-size': space } = qemuImgJson('info', '--output=json', at('new.qcow2')) as {
        'actual-size': number;
      };
      expect(space).toBeLessThan(11 * MiB);
    });

    it('qemu-img convert -n and qemu-io write, zero and discard', async () => {
      const path = image();
      qemuImg('create', '-f', 'qcow2', at('new.qcow2'), `${SIZE}`);
      const { uri, stop } = await serve('--socket=s', '--rw', at('new.qcow2'));
      qemuImg('convert', '-n', '-W', '-m', '8', '-f', 'qcow2', '-O', 'raw', path, uri);
      expect(run('qemu-img', ['compare', path, uri])).toContain('Images are identical.');
      const commands = [
        'write -P 7 -f 1000 5000',
        'write -z 1M 1M',
        'write -z -u 3M 1M',
        'discard 5M 1M',
        'flush',
      ];
      expect(qemuIo(uri, commands, 'raw')).not.toContain('failed');
      const checks = ['read -P 7 1000 5000', 'read -P 0 1M 1M', 'read -P 0 3M 1M'];
      expect(qemuIo(uri, checks, 'raw')).not.toMatch(/failed|Pattern/);
      expect(await stop()).toBe(0);
      qemuImg('check', at('new.qcow2'));
    });

    it('see the same map, and the same depths, as from qemu-nbd', async () => {
      const path = image('base.qcow2');
      qemuImg(
        'create',
        '-f',
        'qcow2',
        '-F',
        'qcow2',
        '-b',
        path,
        at('top.qcow2'),
        `${SIZE + 4 * MiB}`,
      );
      qemuIo(at('top.qcow2'), ['write -P 1 1M 64k', 'write -z 2M 128k']);
      const { uri } = await serve('--socket=s', at('top.qcow2'));
      const rival = spawn('qemu-nbd', [
        '-r',
        '-t',
        '-A',
        '-f',
        'qcow2',
        '-k',
        at('q'),
        at('top.qcow2'),
      ]);
      try {
        for (let tries = 0; !existsSync(at('q')) && tries < 1000; tries++) await sleep(10);
        for (const context of ['base:allocation', 'qemu:allocation-depth']) {
          const [ours, theirs] = [uri, `nbd+unix:///?socket=${at('q')}`].map((address) =>
            run('nbdinfo', [`--map=${context}`, address]),
          );
          expect(ours).toBe(theirs);
          expect(ours!.split('\n').length).toBeGreaterThan(4);
        }
      } finally {
        rival.kill('SIGTERM');
        await new Promise((resolve) => rival.on('close', resolve));
      }
    });

    it('copy only what has changed, as a bitmap tells them', async () => {
      const path = image();
      qemuImg('bitmap', '--add', path, 'since-monday');
      run('cp', [path, at('full.qcow2')]);
      qemuIo(path, ['write -P 1 1M 64k', 'write -P 2 9M 200k']);
      const { uri } = await serve('--socket=s', '--bitmap=since-monday', path);
      const dirty = run('nbdinfo', ['--map=qemu:dirty-bitmap:since-monday', uri])
        .trim()
        .split('\n');
      const runs = dirty.map((line) => line.trim().split(/\s+/).slice(0, 3).map(Number));
      expect(runs.filter(([, , isDirty]) => isDirty === 1)).toEqual([
        [MiB, 65_536, 1],
        [9 * MiB, 262_144, 1],
      ]);
      // An incremental backup, as the README shows it: the base is Monday's, the overlay what changed.
      const options = `driver=nbd,server.type=unix,server.path=${at('s')},x-dirty-bitmap=qemu:dirty-bitmap:since-monday`;
      const map = qemuImgJson('map', '--output=json', '--image-opts', options) as {
        start: number;
        length: number;
        data: boolean;
      }[];
      const changed = map.filter(({ data }) => !data);
      qemuImg(
        'create',
        '-f',
        'qcow2',
        '-F',
        'qcow2',
        '-b',
        at('full.qcow2'),
        at('increment.qcow2'),
      );
      const overlay = await serve('--socket=t', '--rw', at('increment.qcow2'));
      for (const { start, length } of changed) {
        python(
          `a = nbd.NBD(); a.connect_uri(uri); b = nbd.NBD(); b.connect_uri(${JSON.stringify(overlay.uri)})
b.pwrite(a.pread(${length}, ${start}), ${start})`,
          uri,
        );
      }
      expect(await overlay.stop()).toBe(0);
      expect(run('qemu-img', ['compare', path, at('increment.qcow2')])).toContain('identical');
      const allocated = qemuImgJson('map', '--output=json', at('increment.qcow2')) as {
        depth: number;
        length: number;
      }[];
      const copied = allocated
        .filter(({ depth }) => depth === 0)
        .reduce((sum, { length }) => sum + length, 0);
      expect(copied).toBe(65_536 + 262_144);
    });
  },
);

describePeers(['fio', 'qemu-img'], 'fio', () => {
  it('verifies random writes at depth 32', async () => {
    qemuImg('create', '-f', 'qcow2', at('new.qcow2'), `${SIZE}`);
    const { uri, stop } = await serve('--socket=s', '--rw', at('new.qcow2'));
    const job = [
      '--name=job',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--rw=randwrite',
      '--bsrange=512-128k',
    ];
    run(
      'fio',
      [
        ...job,
        '--bs_unaligned=0',
        `--size=${SIZE}`,
        '--iodepth=32',
        '--verify=crc32c',
        '--minimal',
        '--verify_state_save=0',
      ],
      { cwd: directory() },
    );
    expect(await stop()).toBe(0);
    qemuImg('check', at('new.qcow2'));
  });
});

describePeers(['nbdkit', 'nbdcopy'], 'nbdkit', () => {
  it('passes requests on through its nbd plugin', async () => {
    const { uri, stop } = await serve('--socket=s', '--rw', image());
    const script = `nbdcopy "$uri" ${at('copy.raw')} && nbdcopy ${at('copy.raw')} "$uri"`;
    run('nbdkit', ['-U', '-', 'nbd', `uri=${uri}`, '--run', script]);
    expect(readFileSync(at('copy.raw')).equals(pattern(SIZE))).toBe(true);
    expect(await stop()).toBe(0);
    expect(contentOf(at('disk.qcow2')).equals(pattern(SIZE))).toBe(true);
  });
});

describePeers(['qemu-storage-daemon', 'nbdcopy'], 'qemu-storage-daemon', () => {
  it('attaches an export and writes through it', async () => {
    const { stop } = await serve('--socket=s', '--rw', image());
    const daemon = spawn('qemu-storage-daemon', [
      '--blockdev',
      `driver=nbd,node-name=disk,server.type=unix,server.path=${at('s')}`,
      '--nbd-server',
      `addr.type=unix,addr.path=${at('q')}`,
      '--export',
      'type=nbd,id=e,node-name=disk,name=e,writable=on',
    ]);
    for (let tries = 0; !existsSync(at('q')) && tries < 1000; tries++) await sleep(10);
    python(`${WRITE}h.shutdown()`, `nbd+unix:///e?socket=${at('q')}`);
    daemon.kill('SIGTERM');
    await new Promise((resolve) => daemon.on('close', resolve));
    expect(await stop()).toBe(0);
    expect(contentOf(at('disk.qcow2')).equals(written())).toBe(true);
  });
});
