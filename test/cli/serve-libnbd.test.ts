/**
 * Every command of libnbd with every flag, those that it should not send too: each row is a call,
 * and what comes of it. libnbd's own checks are off, so that it is the server that answers.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { servers } from './serve-process.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 128 * MiB;

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

/** What the rows may use; `connect` is for those that make a connection of their own. */
const PRELUDE = `
import errno, json, sys, nbd
from nbd import *
KiB = 1024; MiB = 1024 * KiB; SIZE = 128 * MiB
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_DF, CMD_FLAG_REQ_ONE, CMD_FLAG_FAST_ZERO
UNKNOWN = 0x8000
def connect(name='', contexts=(), **setting):
    h = nbd.NBD(); h.set_strict_mode(0); h.set_export_name(name)
    for context in contexts: h.add_meta_context(context)
    for key, value in setting.items(): getattr(h, 'set_' + key)(value)
    h.connect_unix('s'); return h
def chunks(h, count, offset, flags=0):
    found = []; kinds = {READ_DATA: 'data', READ_HOLE: 'hole', READ_ERROR: 'error'}
    h.pread_structured(count, offset, lambda data, at, kind, error: found.append([kinds[kind], at, len(data)]), flags)
    return found
def status(h, count, offset, flags=0):
    found = {}
    h.block_status(count, offset, lambda name, at, extents, error: found.update({name: extents}), flags)
    return found
def listed(call):
    found = []; call(lambda *item: found.append(list(item))); return found
def aio(h, *calls):
    cookies = [call() for call in calls]
    while h.aio_in_flight() > 0: h.poll(-1)
    return [result(lambda: h.aio_command_completed(cookie)) for cookie in cookies]
def result(call):
    try: value = call()
    except nbd.Error as error: return errno.errorcode.get(error.errnum, error.errnum)
    return value.decode('latin1') if isinstance(value, (bytes, bytearray)) else value
def table():
    # In one namespace, so that a row may leave something to those below it.
    names = globals()
    print(json.dumps([result(lambda: eval(row, names)) for row in json.load(sys.stdin)]))
`;

type Row = readonly [call: string, result: unknown];

/** Makes the calls one after the other, and holds each against what is expected of it. */
function expectResults(setUp: string, rows: readonly Row[]): void {
  const input = JSON.stringify(rows.map(([call]) => call));
  const script = `${PRELUDE}${setUp}\ntable()`;
  const output = run(SYSTEM_PYTHON, ['-c', script], { cwd: directory(), input });
  const results = JSON.parse(output) as unknown[];
  expect(rows.map(([call], index) => [call, results[index]])).toEqual(rows);
}

/** Serves an image with data, a cluster of zeroes, data, and nothing from 192 KiB on. */
async function serveImage(...args: string[]) {
  const path = join(directory(), 'disk.qcow2');
  qemuImg('create', '-f', 'qcow2', path, `${SIZE}`);
  qemuIo(path, ['write -P 0x61 0 64k', 'write -z 64k 64k', 'write -P 0x63 128k 64k']);
  qemuImg('snapshot', '-c', 'before', path);
  return serve('--socket=s', '--description=a disk', ...args, path);
}

describePeers(['qemu-img', 'qemu-io', 'python3-libnbd'], 'every command of libnbd', () => {
  it('that reads', async () => {
    await serveImage('--rw');
    const setUp = `
h = connect(contexts=['base:allocation', 'qemu:allocation-depth'])
simple = connect(contexts=['base:allocation'], request_structured_replies=False)`;
    const whole = 4 * 64 * KiB;
    const pieces = [
      ['data', 0, 64 * KiB],
      ['hole', 64 * KiB, 64 * KiB],
      ['data', 128 * KiB, 64 * KiB],
      ['hole', 192 * KiB, 64 * KiB],
    ];
    const hole = SIZE - 192 * KiB;
    expectResults(setUp, [
      ['h.pread(4, 64 * KiB - 2)', 'aa\0\0'],
      ['h.pread(3, 64 * KiB - 1, FUA)', 'a\0\0'],
      ['len(h.pread(32 * MiB, 1))', 32 * MiB],
      ['h.pread(1, SIZE - 1)', '\0'],
      ['h.pread(0, 0)', ''],
      ['h.pread(0, SIZE)', ''],
      ['h.pread(1, SIZE)', 'EINVAL'],
      ['h.pread(512, SIZE - 511)', 'EINVAL'],
      ['h.pread(1, 2**63)', 'EINVAL'],
      ['h.pread(32 * MiB + 1, 0)', 'EINVAL'],
      ['h.pread(1, 0, NO_HOLE)', 'EINVAL'],
      ['h.pread(1, 0, REQ_ONE)', 'EINVAL'],
      ['h.pread(1, 0, FAST_ZERO)', 'EINVAL'],
      ['h.pread(1, 0, UNKNOWN)', 'EINVAL'],
      ['chunks(h, 256 * KiB, 0)', pieces],
      ['chunks(h, 256 * KiB, 0, FUA)', pieces],
      ['chunks(h, 256 * KiB, 0, DF)', [['data', 0, whole]]],
      ['chunks(h, 3, SIZE - 2, DF)', 'EINVAL'],
      ['simple.can_df()', false],
      ['chunks(simple, 256 * KiB, 0)', [['data', 0, whole]]],
      ['chunks(simple, 256 * KiB, 0, DF)', 'EINVAL'],
      ['simple.pread(1, SIZE)', 'EINVAL'],
      ['h.cache(4096, 1)', null],
      ['h.cache(SIZE, 0)', null],
      ['h.cache(0, 0)', null],
      ['h.cache(1, SIZE)', 'EINVAL'],
      ['h.cache(1, 0, DF)', 'EINVAL'],
      [
        'status(h, SIZE, 0)',
        {
          'base:allocation': [64 * KiB, 0, 64 * KiB, 3, 64 * KiB, 0, hole, 3],
          'qemu:allocation-depth': [192 * KiB, 1, hole, 0],
        },
      ],
      [
        'status(h, SIZE, 0, REQ_ONE)',
        { 'base:allocation': [64 * KiB, 0], 'qemu:allocation-depth': [192 * KiB, 1] },
      ],
      [
        'status(h, 3, 64 * KiB - 1)',
        { 'base:allocation': [1, 0, 2, 3], 'qemu:allocation-depth': [3, 1] },
      ],
      ['status(h, 0, 0)', 'EINVAL'],
      ['status(h, 1, SIZE)', 'EINVAL'],
      ['status(h, 1, 0, FUA)', { 'base:allocation': [1, 0], 'qemu:allocation-depth': [1, 1] }],
      ['status(h, 1, 0, DF)', 'EINVAL'],
      ['status(simple, 1, 0)', 'EINVAL'],
      ['h.pread(1, 0)', 'a'],
      ['simple.pread(1, 0)', 'a'],
    ]);
  });

  it('that writes', async () => {
    const { stop, stderr } = await serveImage('--rw');
    expectResults('h = connect()', [
      ["h.pwrite(b'b' * 513, 999)", null],
      ["h.pwrite(b'c' * 513, 1999, FUA)", null],
      ["h.pwrite(b'd', SIZE - 1)", null],
      ["h.pwrite(b'', 0)", null],
      ["h.pwrite(b'', SIZE)", null],
      ["h.pwrite(b'x', SIZE)", 'ENOSPC'],
      ["h.pwrite(b'xx', SIZE - 1)", 'ENOSPC'],
      ["h.pwrite(b'x', 2**63)", 'ENOSPC'],
      ["h.pwrite(b'x', 0, NO_HOLE)", 'EINVAL'],
      ["h.pwrite(b'x', 0, DF)", 'EINVAL'],
      ["h.pwrite(b'x', 0, REQ_ONE)", 'EINVAL'],
      ["h.pwrite(b'x', 0, FAST_ZERO)", 'EINVAL'],
      ["h.pwrite(b'x', 0, UNKNOWN)", 'EINVAL'],
      ['h.zero(100, 70)', null],
      ['h.zero(100, 2100, FUA)', null],
      ['h.zero(64 * KiB, 128 * KiB, NO_HOLE)', null],
      ['h.zero(100, 70, FAST_ZERO)', null],
      ['h.zero(64 * KiB, MiB, FUA | NO_HOLE | FAST_ZERO)', null],
      ['h.zero(0, 0)', null],
      ['h.zero(1, SIZE)', 'ENOSPC'],
      ['h.zero(2, SIZE - 1)', 'ENOSPC'],
      ['h.zero(1, 0, DF)', 'EINVAL'],
      ['h.zero(1, 0, REQ_ONE)', 'EINVAL'],
      ['h.zero(1, 0, UNKNOWN)', 'EINVAL'],
      ["h.pwrite(b'e' * MiB, 2 * MiB)", null],
      ['h.trim(64 * KiB, 2 * MiB)', null],
      ['h.trim(64 * KiB, 3 * MiB - 64 * KiB, FUA)', null],
      ['h.trim(0, 0)', null],
      ['h.trim(1, SIZE)', 'EINVAL'],
      ['h.trim(2, SIZE - 1)', 'EINVAL'],
      ['h.trim(1, 0, NO_HOLE)', 'EINVAL'],
      ['h.trim(1, 0, FAST_ZERO)', 'EINVAL'],
      ['h.trim(1, 0, UNKNOWN)', 'EINVAL'],
      ['h.flush()', null],
      ['h.flush(FUA)', null],
      ['h.flush(DF)', 'EINVAL'],
      ['h.flush(UNKNOWN)', 'EINVAL'],
      [
        "aio(h, lambda: h.aio_pwrite(b'f' * 4096, 4 * MiB), lambda: h.aio_zero(512, 4 * MiB), " +
          'lambda: h.aio_trim(4096, SIZE), lambda: h.aio_flush(), lambda: h.aio_cache(1, 0), ' +
          'lambda: h.aio_pread(nbd.Buffer(1), SIZE), lambda: h.aio_pwrite(b"x", SIZE, flags=FUA))',
        [true, true, 'EINVAL', true, true, 'EINVAL', 'ENOSPC'],
      ],
      ['h.shutdown()', null],
      ['h.aio_is_closed()', true],
    ]);
    expect(await stop()).toBe(0);
    expect(stderr()).toBe('');
    // With NO_HOLE, zeroes keep the space that there was, and what had none gets none.
    const map = qemuImgJson('map', join(directory(), 'disk.qcow2')) as Record<string, unknown>[];
    const where = { start: 128 * KiB, length: 64 * KiB, depth: 0 };
    const offset = expect.any(Number) as number;
    expect(map).toContainEqual({ ...where, present: true, zero: true, data: false, offset });
    const rest = map.find(({ start }) => start === 192 * KiB);
    expect(rest).toMatchObject({ present: false, length: 2 * MiB - 192 * KiB });
    const model = Buffer.alloc(SIZE);
    model
      .fill('a', 0, 64 * KiB)
      .fill('b', 999, 1512)
      .fill('c', 1999, 2512)
      .fill('d', SIZE - 1);
    model.fill(0, 70, 170).fill(0, 2100, 2200);
    model
      .fill('e', 2 * MiB + 64 * KiB, 3 * MiB - 64 * KiB)
      .fill('f', 4 * MiB + 512, 4 * MiB + 4096);
    const [disk, copy] = ['disk.qcow2', 'copy.raw'].map((name) => join(directory(), name));
    qemuImg('check', disk!);
    qemuImg('convert', '-O', 'raw', disk!, copy!);
    expect(readFileSync(copy!).equals(model)).toBe(true);
  });

  it('on an export that is only read, and writes that are too long for any', async () => {
    const { stderr } = await serveImage('--rw');
    expectResults("h = connect(); ro = connect('disk@before')", [
      [
        '(ro.is_read_only(), ro.can_trim(), ro.can_zero(), ro.can_fua())',
        [true, false, false, false],
      ],
      ["ro.pwrite(b'x', 0)", 'EPERM'],
      ["ro.pwrite(b'x', SIZE)", 'EPERM'],
      ["ro.pwrite(b'x' * MiB, 0, FUA)", 'EPERM'],
      ['ro.zero(1, 0)', 'EPERM'],
      ['ro.zero(1, 0, NO_HOLE | FAST_ZERO)', 'EPERM'],
      ['ro.trim(1, 0)', 'EPERM'],
      ['ro.flush()', null],
      ['ro.cache(1, 0)', null],
      ['ro.pread(1, 0)', 'a'],
      // What cannot be skipped ends the connection, and no other.
      ["ro.pwrite(b'x' * (32 * MiB + 1), 0)", 'ENOTCONN'],
      ['ro.aio_is_dead() or ro.aio_is_closed()', true],
      ['h.pread(1, 0)', 'a'],
    ]);
    await until(() => stderr() !== '');
    expect(stderr()).toMatch(
      /^qcow2: client \d: client dropped: a request announces 33554433 bytes\n$/,
    );
  });

  it('that negotiates', async () => {
    await serveImage('--rw');
    const setUp = `
h = connect(opt_mode=True, full_info=True); a = connect(opt_mode=True)
def old(flags): h = connect(handshake_flags=flags); return [h.get_protocol(), h.get_size(), h.pread(1, 0).decode()]`;
    expectResults(setUp, [
      ['h.get_protocol()', 'newstyle-fixed'],
      ['h.get_structured_replies_negotiated()', true],
      [
        'listed(h.opt_list)',
        [
          ['disk', 'a disk'],
          ['disk@before', 'snapshot 1 of disk'],
        ],
      ],
      ['h.opt_info()', null],
      ['(h.get_size(), h.is_read_only(), h.can_multi_conn())', [SIZE, false, true]],
      ['(h.get_canonical_export_name(), h.get_export_description())', ['disk', 'a disk']],
      [
        '[h.get_block_size(size) for size in (SIZE_MINIMUM, SIZE_PREFERRED, SIZE_MAXIMUM)]',
        [1, 4096, 32 * MiB],
      ],
      ["h.set_export_name('disk@before')", null],
      ['h.opt_info()', null],
      ['(h.is_read_only(), h.get_canonical_export_name())', [true, 'disk@before']],
      ["h.set_export_name('nothing')", null],
      ['h.opt_info()', 'ENOENT'],
      // libnbd's word for every refusal of this option.
      ['listed(h.opt_list_meta_context)', 'ENOTSUP'],
      ['h.opt_go()', 'ENOENT'],
      ['h.aio_is_negotiating()', true],
      ["h.set_export_name('disk')", null],
      ['listed(h.opt_list_meta_context)', [['base:allocation'], ['qemu:allocation-depth']]],
      ["h.add_meta_context('qemu:')", null],
      ['listed(h.opt_list_meta_context)', [['qemu:allocation-depth']]],
      ['h.clear_meta_contexts()', null],
      ["h.add_meta_context('x:y')", null],
      ['listed(h.opt_list_meta_context)', []],
      ["h.add_meta_context('base:allocation')", null],
      ['h.opt_go()', null],
      ["(h.can_meta_context('x:y'), h.can_meta_context('base:allocation'))", [false, true]],
      [
        '(h.can_df(), h.can_fua(), h.can_trim(), h.can_zero(), h.can_fast_zero())',
        Array<boolean>(5).fill(true),
      ],
      ['(h.can_cache(), h.can_flush(), h.is_rotational())', [true, true, false]],
      ['h.pread(1, 0)', 'a'],
      ['a.opt_abort()', null],
      ['a.aio_is_closed()', true],
      ['old(0)', ['newstyle', SIZE, 'a']],
      ['old(HANDSHAKE_FLAG_FIXED_NEWSTYLE)', ['newstyle-fixed', SIZE, 'a']],
      ['old(HANDSHAKE_FLAG_NO_ZEROES)', ['newstyle', SIZE, 'a']],
      ['old(HANDSHAKE_FLAG_MASK)', ['newstyle-fixed', SIZE, 'a']],
      ['connect(request_block_size=False).get_block_size(SIZE_MAXIMUM)', 0],
    ]);
  });
});
