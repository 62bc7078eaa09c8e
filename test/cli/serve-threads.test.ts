/** `qcow2 serve --threads`: more threads change nothing but the speed. */

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { CLI, servers } from './serve-process.ts';
import type { ServeProcess } from './serve-process.ts';

const DEMO = join(fileURLToPath(new URL('../../', import.meta.url)), 'images/demo.qcow2');
const THREADS = ['1', '2', '4'];
const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

/** Six clients, which are connected at the same time, do the same; prints what each of them saw. */
const SIX_CLIENTS = `
import hashlib, nbd, sys, threading
CLIENTS = 6
together = threading.Barrier(CLIENTS)
seen = [None] * CLIENTS
def work(index):
    h = nbd.NBD()
    h.add_meta_context('base:allocation')
    h.add_meta_context('qemu:allocation-depth')
    h.connect_uri(sys.argv[1])
    together.wait()
    size = h.get_size()
    digest = hashlib.sha256(h.pread(min(size, 4 << 20), 0))
    status = []
    def extents(context, offset, entries, error):
        status.append((context, offset, entries))
        return 0
    h.block_status(size, 0, extents)
    errors = []
    for offset, length in ((size, 512), (size - 512, 1024), (0, 65 << 20)):
        try:
            h.pread(length, offset)
        except nbd.Error as error:
            errors.append(error.errno)
    try:
        h.pwrite(b'x' * 512, 0)
    except nbd.Error as error:
        errors.append(error.errno)
    seen[index] = repr((size, digest.hexdigest(), sorted(status, key=repr), errors))
    together.wait()
    h.shutdown()
threads = [threading.Thread(target=work, args=(index,)) for index in range(CLIENTS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print('\\n'.join(map(str, seen)))
`;

/** Of how many clients the log says so. */
function clientsOf({ stderr }: ServeProcess, word: string): number {
  return stderr()
    .split('\n')
    .filter((line) => line.endsWith(`: ${word}`)).length;
}

describePeers(['nbdinfo', 'nbdcopy', 'qemu-img', 'python3-libnbd'], 'qcow2 serve --threads', () => {
  it('serves the same bytes, errors and block status with any number of threads', async () => {
    const overlay = join(directory(), 'top.qcow2');
    run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', DEMO, '-F', 'qcow2', overlay]);
    run('qemu-io', ['-c', 'write -P 7 64k 200k', '-c', 'write -z 1M 1M', overlay]);
    const results: string[] = [];
    for (const threads of THREADS) {
      const server = await serve('--socket', `nbd${threads}`, '--threads', threads, overlay);
      const copy = join(directory(), 'copy.raw');
      run('nbdcopy', ['--connections=4', '--requests=16', server.uri, copy]);
      const seen = run(SYSTEM_PYTHON, ['-c', SIX_CLIENTS, server.uri]).trim().split('\n');
      expect(new Set(seen).size).toBe(1);
      const bytes = createHash('sha256').update(readFileSync(copy)).digest('hex');
      const map = run('nbdinfo', ['--map', server.uri]);
      results.push(JSON.stringify([bytes, seen[0], map]));
      expect(await server.stop()).toBe(0);
      expect(server.stderr()).toBe('');
    }
    expect(results[0]).toContain('qemu:allocation-depth');
    expect(new Set(results).size).toBe(1);
  });

  it('counts clients over all threads: the most, their names, and the last one', async () => {
    const options = ['--threads=3', '--max-clients=3', '--until-last-client', '--verbose'];
    const server = await serve('--socket', 'nbd', ...options, DEMO);
    const program = `
import nbd, sys
def client():
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    return h
clients = [client() for _ in range(3)]
for _ in range(2):
    try:
        client()
        print('one too many')
    except nbd.Error:
        print('turned away')
for h in clients: h.pread(512, 0)
clients[1].shutdown()
for attempt in range(200):
    try:
        clients[1] = client()
        break
    except nbd.Error:
        pass
for h in clients: print(len(h.pread(4096, 0)))
for h in clients: h.shutdown()
`;
    const said = run(SYSTEM_PYTHON, ['-c', program, server.uri]).trim().split('\n');
    expect(said).toEqual(['turned away', 'turned away', '4096', '4096', '4096']);
    expect(await server.ended).toBe(0);
    expect(clientsOf(server, 'connected')).toBe(4);
    expect(clientsOf(server, "uses export 'demo'")).toBe(4);
    expect(clientsOf(server, 'disconnected')).toBe(4);
    expect(server.stderr()).toContain('client turned away: 3 are connected already');
  });

  it('drops clients that are idle, in every thread', async () => {
    const options = ['--threads=2', '--idle-timeout=1', '--verbose'];
    const server = await serve('--socket', 'nbd', ...options, DEMO);
    const program = `
import nbd, sys, time
clients = [nbd.NBD() for _ in range(4)]
for h in clients: h.connect_uri(sys.argv[1])
time.sleep(2.5)
for h in clients:
    try:
        h.pread(512, 0)
        print('still there')
    except nbd.Error:
        print('dropped')
`;
    const said = run(SYSTEM_PYTHON, ['-c', program, server.uri]).trim().split('\n');
    expect(said).toEqual(['dropped', 'dropped', 'dropped', 'dropped']);
    expect(await server.stop()).toBe(0);
    expect(server.stderr().match(/client [1-4]: client dropped: it was idle/g)).toHaveLength(4);
  });

  it('shares out the clients of a socket that was passed in', () => {
    const program = `
import os, socket, subprocess, sys
path, copy, node, *command = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(16)
fd = listening.fileno()
server = subprocess.Popen([node, *command, '--fd', str(fd)], pass_fds=[fd])
listening.close()
uri = 'nbd+unix:///?socket=' + path
subprocess.run(['nbdcopy', '--connections=4', uri, copy], check=True)
threads = len(os.listdir('/proc/%d/task' % server.pid))
server.terminate()
print(threads, server.wait())
`;
    const [path, copy] = [join(directory(), 'nbd'), join(directory(), 'copy.raw')];
    const threadsOf = (threads: string): number => {
      const command = [process.execPath, CLI, 'serve', `--threads=${threads}`, DEMO];
      const said = run(SYSTEM_PYTHON, ['-c', program, path, copy, ...command]);
      rmSync(path);
      expect(said).toMatch(/^\d+ 0\n$/);
      return Number.parseInt(said, 10);
    };
    const alone = threadsOf('1');
    const sum = createHash('sha256').update(readFileSync(copy)).digest('hex');
    expect(threadsOf('3')).toBeGreaterThanOrEqual(alone + 2);
    expect(createHash('sha256').update(readFileSync(copy)).digest('hex')).toBe(sum);
  });

  it('ends in good order while all threads are busy', async () => {
    const server = await serve('--socket', 'nbd', '--threads=3', '--pid-file=pid', DEMO);
    const program = `
import nbd, sys, threading
def work():
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    try:
        while True: h.pread(256 * 1024, 0)
    except nbd.Error: pass
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
print('busy', flush=True)
for thread in threads: thread.join()
`;
    const client = spawn(SYSTEM_PYTHON, ['-c', program, server.uri]);
    await new Promise((resolve) => client.stdout.once('data', resolve));
    const clientEnded = new Promise((resolve) => client.on('close', resolve));
    await sleep(200);
    const start = performance.now();
    expect(await server.stop()).toBe(0);
    expect(performance.now() - start).toBeLessThan(5000);
    expect(await clientEnded).toBe(0);
    expect(existsSync(join(directory(), 'nbd'))).toBe(false);
  });

  it('encrypts in every thread', async () => {
    writeFileSync(join(directory(), 'keys'), `alice:${'0123456789abcdef'.repeat(4)}\n`);
    const server = await serve('--socket', 'nbd', '--threads=3', '--tls-psk=keys', DEMO);
    const uri = `nbds+unix://alice@/?socket=${directory()}/nbd&tls-psk-file=${directory()}/keys`;
    run('nbdcopy', ['--connections=4', uri, join(directory(), 'copy.raw')]);
    run('qemu-img', ['convert', '-O', 'raw', DEMO, join(directory(), 'right.raw')]);
    const [copy, right] = ['copy.raw', 'right.raw'].map((name) =>
      readFileSync(join(directory(), name)),
    );
    expect(copy!.equals(right!)).toBe(true);
    expect(await server.stop()).toBe(0);
  });
});

describePeers(['qemu-img'], 'the number of threads', () => {
  it.each([
    [['--threads=0'], /--threads must be a number from 1 to 64, not '0'/],
    [['--threads=65'], /--threads must be a number from 1 to 64, not '65'/],
    [['--threads=two'], /--threads must be a number from 1 to 64, not 'two'/],
    [['--threads=2', '--temp'], /--threads is for images that are only read: one thread writes/],
  ])('%j is refused', (options, problem) => {
    const command = [CLI, 'serve', '--socket=nbd', ...options, DEMO];
    const { status, stderr } = spawnSync(process.execPath, command, {
      cwd: directory(),
      encoding: 'utf8',
      timeout: 20_000,
    });
    expect(status).toBe(1);
    expect(stderr).toMatch(problem);
  });
});
