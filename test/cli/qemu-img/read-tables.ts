/** The options of the subcommands that only read: compare, info, map, measure. */

import { forceShareRow, imageOptsRow, objectRow } from './common-rows.ts';
import { better, call, notHere, onlyHere, same, wrong } from './model.ts';
import type { Subcommand } from './model.ts';

const CACHE = 'accepted: reading goes through the page cache of the host, whatever the mode';
const PROGRESS = 'a bar on a terminal; SIGUSR1 tells the state, as with qemu-img';
const FORMATS = 'qcow2 and raw; others are refused by name';
const STATED =
  'beside qcow2 and raw nothing is probed, and the format of a backing file never: one that is ' +
  'not declared is refused until --backing-format says it';

export const COMPARE: Subcommand = {
  name: 'compare',
  readOnly: true,
  rows: [
    same('FILENAME1', [
      call('@disk.qcow2 @disk.qcow2'),
      call('@base.qcow2 @other.qcow2', { exitCode: 1 }),
      call('@empty.qcow2 @large.qcow2'),
      call('@plain.qcow2 @small.qcow2', { exitCode: 1 }),
      call('@top.qcow2 @middle.qcow2', { exitCode: 1 }),
      wrong('@missing @disk.qcow2', { exitCode: 2 }),
    ]),
    same('FILENAME2', [wrong('@disk.qcow2 @missing', { exitCode: 2 })]),
    same(
      '-f',
      [
        call('-f qcow2 @plain.qcow2 @plain.qcow2'),
        call('-f raw @plain.qcow2 @plain.qcow2', { exitCode: 1 }),
        wrong('-f qcow2 @disk.raw @disk.raw', { exitCode: 2 }),
        wrong('-f nofmt @disk.raw @disk.raw', { exitCode: 2 }),
      ],
      FORMATS,
    ),
    same('-F', [
      call('-F qcow2 @plain.qcow2 @plain.qcow2'),
      call('-F raw @plain.qcow2 @plain.qcow2', { exitCode: 1 }),
      wrong('-F nofmt @disk.raw @disk.raw', { exitCode: 2 }),
    ]),
    same(
      '-T',
      [
        call('-T writethrough @plain.qcow2 @plain.qcow2'),
        wrong('-T foo @plain.qcow2 @plain.qcow2', { exitCode: 2 }),
      ],
      CACHE,
    ),
    better('-p', PROGRESS, [call('-p @plain.qcow2 @plain.qcow2')]),
    same('-q', [
      call('-q @plain.qcow2 @plain.qcow2'),
      call('-q @plain.qcow2 @disk.qcow2', { exitCode: 1 }),
      call('-q -p @plain.qcow2 @plain.qcow2'),
    ]),
    same('-s', [
      call('-s @plain.qcow2 @plain.qcow2'),
      call('-s @empty.qcow2 @large.qcow2', { exitCode: 1 }),
      call('-s @empty.qcow2 @space.raw', { exitCode: 1 }),
      call('-s @top.qcow2 @middle.qcow2', { exitCode: 1 }),
    ]),
    forceShareRow('@disk.qcow2 @disk.qcow2', { exitCode: 2 }),
    objectRow('@disk.qcow2 @disk.qcow2', { exitCode: 2 }),
    imageOptsRow({
      image: 'plain.qcow2',
      after: 'driver=qcow2,file.filename=@plain.qcow2',
      failure: 2,
    }),
    better('(a wrong call)', 'exits with 2: qemu-img has 1, which also means that images differ', [
      notHere('@disk.qcow2', 'expected IMAGE IMAGE', { exitCode: 2 }),
      notHere('@disk.qcow2 @disk.qcow2 @disk.qcow2', 'unexpected argument', { exitCode: 2 }),
      notHere('--foo @disk.qcow2 @disk.qcow2', 'unknown option --foo', { exitCode: 2 }),
    ]),
  ],
};

export const INFO: Subcommand = {
  name: 'info',
  readOnly: true,
  rows: [
    same('FILENAME', [
      call('@disk.qcow2'),
      call('@old.qcow2'),
      call('@marked.qcow2'),
      call('@broken.qcow2'),
      call('@top.qcow2'),
      call('@orphan.qcow2'),
      call('@disk.raw'),
      wrong('@missing'),
      wrong(''),
      wrong('@disk.qcow2 @disk.qcow2'),
    ]),
    same(
      '-f --format',
      [
        call('-f raw @disk.qcow2'),
        call('--format=qcow2 @disk.qcow2'),
        call('--format raw @disk.raw'),
        wrong('-f qcow2 @disk.raw'),
        wrong('-f nofmt @disk.raw'),
        notHere('-f vmdk @disk.raw', "not 'vmdk'"),
      ],
      FORMATS,
    ),
    same('--output', [
      ...['disk', 'old', 'marked', 'broken', 'top', 'orphan', 'packed'].map((name) =>
        call(`--output=json @${name}.qcow2`, { output: 'json' }),
      ),
      call('--output json @disk.raw', { output: 'json' }),
      call('--output=human @disk.qcow2'),
      wrong('--output=xml @disk.qcow2'),
    ]),
    better('--backing-chain', STATED, [
      call('--backing-chain @top.qcow2'),
      call('--backing-chain --output=json @top.qcow2', { output: 'json' }),
      call('--backing-chain --output=json @disk.qcow2', { output: 'json' }),
      call('--backing-chain @disk.raw'),
    ]),
    forceShareRow('@disk.qcow2'),
    objectRow('@disk.qcow2'),
    imageOptsRow({ image: 'plain.qcow2' }),
  ],
};

export const MAP: Subcommand = {
  name: 'map',
  readOnly: true,
  rows: [
    same('FILENAME', [
      call('@disk.qcow2'),
      call('@top.qcow2'),
      call('@empty.qcow2'),
      call('@disk.raw'),
      call('@short.raw'),
      wrong('@packed.qcow2', { output: 'own' }),
      wrong('@orphan.qcow2'),
      wrong('@missing'),
      wrong(''),
    ]),
    same(
      '-f --format',
      [
        call('-f raw @plain.qcow2'),
        call('--format=qcow2 @plain.qcow2'),
        wrong('-f qcow2 @disk.raw'),
        wrong('-f nofmt @disk.raw'),
      ],
      FORMATS,
    ),
    same('--output', [
      ...['disk', 'top', 'packed', 'empty', 'old', 'marked'].map((name) =>
        call(`--output=json @${name}.qcow2`, { output: 'json' }),
      ),
      call('--output=json @disk.raw', { output: 'json' }),
      call('--output=human @plain.qcow2'),
      wrong('--output=xml @plain.qcow2'),
    ]),
    same('-s --start-offset', [
      call('-s 64k @plain.qcow2'),
      call('--start-offset=1000 --output=json @plain.qcow2', { output: 'json' }),
      call('--start-offset=8M --output=json @plain.qcow2', { output: 'json' }),
      call('--start-offset=0x10000 @plain.qcow2'),
      wrong('--start-offset=foo @plain.qcow2'),
      wrong('--start-offset=-1 @plain.qcow2'),
    ]),
    same('-l --max-length', [
      call('-l 100k @plain.qcow2'),
      call('--max-length=1 --output=json @plain.qcow2', { output: 'json' }),
      call('--start-offset=1M --max-length=10G --output=json @plain.qcow2', { output: 'json' }),
      call('--max-length=0 --output=json @plain.qcow2', { output: 'json' }),
      wrong('--max-length=1Z @plain.qcow2'),
    ]),
    forceShareRow('@disk.qcow2'),
    objectRow('@disk.qcow2'),
    imageOptsRow({ image: 'plain.qcow2' }),
  ],
};

const EMPTY_DISK = '-O qcow2 --size 1G';

export const MEASURE: Subcommand = {
  name: 'measure',
  readOnly: true,
  rows: [
    better('FILENAME', 'bitmaps that are inconsistent, and not copied, are not counted', [
      onlyHere('-O qcow2 @broken.qcow2', { ours: { exitCode: 0, says: 'bitmaps size: 196608' } }),
      call('-O qcow2 @disk.qcow2'),
      call('-O qcow2 @top.qcow2'),
      call('-O qcow2 @marked.qcow2'),
      call('-O qcow2 @disk.raw'),
      call('@disk.raw'),
      wrong('@missing'),
      wrong(''),
      wrong('@disk.raw @disk.raw'),
    ]),
    same('--size', [
      call('--size 1000'),
      call('--size=1.5G -O qcow2'),
      wrong('--size foo'),
      wrong('--size 9E'),
      wrong('--size 1G @disk.raw'),
    ]),
    same('-f', [
      call('-f raw -O qcow2 @plain.qcow2'),
      wrong('-f nofmt -O qcow2 @plain.qcow2'),
      wrong('-f raw --size 1M'),
    ]),
    same(
      '-O',
      [
        call('-O raw @disk.qcow2'),
        call('-O qcow2 @disk.raw'),
        wrong('-O nofmt @disk.raw'),
        notHere('-O vhdx @disk.raw', "not 'vhdx'"),
      ],
      FORMATS,
    ),
    same('--output', [
      call('--output=json -O qcow2 @marked.qcow2', { output: 'json' }),
      call('--output json --size 1M', { output: 'json' }),
      wrong('--output=xml --size 1M'),
    ]),
    same(
      '-o',
      [
        ...[
          'cluster_size=4k',
          'extended_l2=on',
          'refcount_bits=1',
          'compat=0.10',
          'lazy_refcounts=on',
          'preallocation=full',
          'compression_type=zstd',
          'data_file=x,data_file_raw=on',
          'backing_file=x,backing_fmt=raw',
          'size=1M',
          'extent_size_hint=1M',
        ].map((list) => call([...EMPTY_DISK.split(' '), '-o', list])),
        call([...EMPTY_DISK.split(' '), '-o', 'cluster_size=4k', '-o', 'refcount_bits=64']),
        wrong([...EMPTY_DISK.split(' '), '-o', 'nope=1']),
        wrong([...EMPTY_DISK.split(' '), '-o', 'cluster_size=3']),
      ],
      'as for create',
    ),
    same('-l', [
      call('-l first -O qcow2 @disk.qcow2'),
      call('-l 1 -O qcow2 @disk.qcow2'),
      call('-l snapshot.id=1,snapshot.name=first -O qcow2 @disk.qcow2'),
      wrong('-l nope -O qcow2 @disk.qcow2'),
      wrong('-l snapshot.foo=1 -O qcow2 @disk.qcow2'),
      wrong('-l first --size 1M'),
    ]),
    forceShareRow('-O qcow2 @disk.qcow2'),
    objectRow('-O qcow2 @disk.qcow2'),
    imageOptsRow({ before: '-O qcow2', image: 'plain.qcow2' }),
  ],
};

export { CACHE, FORMATS, PROGRESS };
