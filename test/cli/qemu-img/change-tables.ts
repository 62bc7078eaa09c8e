/** The options of the subcommands that change images: check, commit, rebase, resize, snapshot. */

import { forceShareRow, imageOptsRow, objectRow } from './common-rows.ts';
import { better, call, notHere, onlyHere, same, wrong } from './model.ts';
import type { Subcommand } from './model.ts';
import { CACHE, FORMATS, PROGRESS } from './read-tables.ts';

export const CHANGED_CACHE =
  'accepted: an image is flushed before its command ends, whatever the mode';
const RAW_WARNING = 'an image that is probed as raw is warned of, as by qemu-img';

export const CHECK: Subcommand = {
  name: 'check',
  readOnly: false,
  rows: [
    same('FILENAME', [
      call('@plain.qcow2'),
      call('@top.qcow2'),
      call('@disk.qcow2'),
      call('@packed.qcow2'),
      call('@marked.qcow2'),
      call('@leaky.qcow2', { exitCode: 3 }),
      call('@corrupt.qcow2', { exitCode: 2 }),
      call('@disk.raw', { exitCode: 63 }),
      wrong('@missing'),
      wrong(''),
      wrong('@plain.qcow2 @plain.qcow2'),
    ]),
    same(
      '-f --format',
      [
        call('-f qcow2 @plain.qcow2'),
        call('--format=raw @plain.qcow2', { exitCode: 63 }),
        wrong('-f qcow2 @disk.raw'),
        wrong('-f nofmt @plain.qcow2'),
        notHere('-f vdi @plain.qcow2', "not 'vdi'"),
      ],
      FORMATS,
    ),
    same('--output', [
      call('--output=json @plain.qcow2', { output: 'json' }),
      call('--output=json @packed.qcow2', { output: 'json' }),
      call('--output=json @leaky.qcow2', { output: 'json', exitCode: 3 }),
      call('--output=json @corrupt.qcow2', { output: 'json', exitCode: 2 }),
      call('--output=json -r all @corrupt.qcow2', { output: 'json' }),
      call('--output=human @plain.qcow2'),
      wrong('--output=xml @plain.qcow2'),
    ]),
    better(
      '-r --repair',
      'what is repaired is the same; killed at any moment, the image is no worse than before',
      [
        call('-r leaks @leaky.qcow2', { images: ['leaky.qcow2'] }),
        call('-r all @leaky.qcow2', { images: ['leaky.qcow2'] }),
        call('--repair=all @corrupt.qcow2', { images: ['corrupt.qcow2'] }),
        wrong('-r leaks @corrupt.qcow2'),
        call('-r all @plain.qcow2', { bytes: ['plain.qcow2'] }),
        wrong('-r foo @plain.qcow2'),
      ],
    ),
    same('-q', [
      call('-q @plain.qcow2'),
      call('-q @leaky.qcow2', { exitCode: 3 }),
      call('-q -r all @leaky.qcow2', { images: ['leaky.qcow2'] }),
    ]),
    same('-T', [call('-T unsafe @plain.qcow2'), wrong('-T foo @plain.qcow2')], CACHE),
    forceShareRow('@disk.qcow2'),
    objectRow('@plain.qcow2'),
    imageOptsRow({ image: 'plain.qcow2' }),
    better('-p', PROGRESS, [onlyHere('-p @plain.qcow2', { ours: { exitCode: 0, says: '100%' } })]),
  ],
};

const COMMITTED = { images: ['top.qcow2', 'middle.qcow2', 'base.qcow2'] };

export const COMMIT: Subcommand = {
  name: 'commit',
  readOnly: false,
  rows: [
    same('FILENAME', [
      call('@top.qcow2', COMMITTED),
      call('@middle.qcow2', { images: ['middle.qcow2', 'base.qcow2'] }),
      wrong('@base.qcow2'),
      wrong('@disk.raw'),
      wrong('@orphan.qcow2'),
      wrong('@missing'),
      wrong(''),
      wrong('@top.qcow2 @middle.qcow2'),
    ]),
    same('-f', [
      call('-f qcow2 @top.qcow2', COMMITTED),
      wrong('-f raw @top.qcow2'),
      wrong('-f nofmt @top.qcow2'),
    ]),
    same(
      '-t',
      [
        call('-t writethrough @top.qcow2', COMMITTED),
        call('-t unsafe @top.qcow2', COMMITTED),
        wrong('-t foo @top.qcow2'),
      ],
      CHANGED_CACHE,
    ),
    same('-b', [
      call('-b base.qcow2 @top.qcow2', COMMITTED),
      call('-b @base.qcow2 @top.qcow2', COMMITTED),
      call('-b middle.qcow2 @top.qcow2', COMMITTED),
      wrong('-b other.qcow2 @top.qcow2'),
      wrong('-b top.qcow2 @top.qcow2'),
    ]),
    same('-r', [call('-r 100M @top.qcow2', COMMITTED), wrong('-r foo @top.qcow2')]),
    same('-d', [call('-d @top.qcow2', COMMITTED), call('-d -b base.qcow2 @top.qcow2', COMMITTED)]),
    better('-p', PROGRESS, [call('-p @top.qcow2', COMMITTED)]),
    same('-q', [call('-q @top.qcow2', COMMITTED), call('-q -p @top.qcow2', COMMITTED)]),
    objectRow('@top.qcow2'),
    imageOptsRow({ image: 'top.qcow2', details: COMMITTED }),
    better('(an interrupt)', 'the overlay has all its data still, and can be committed again', []),
  ],
};

const TOP = { images: ['top.qcow2'] };
const ZEROES_KEPT =
  'zeroes that hide the new backing file are zero clusters, which take no space; images with ' +
  'compat=0.10 keep theirs too, where qemu-img 7.2 loses them';
const TO_OTHER = '-b other.qcow2 -F qcow2';

export const REBASE: Subcommand = {
  name: 'rebase',
  readOnly: false,
  rows: [
    same('FILENAME', [
      wrong(`${TO_OTHER} @disk.raw`),
      wrong(`${TO_OTHER} @orphan.qcow2`),
      wrong(`${TO_OTHER} @missing`),
      wrong(TO_OTHER),
    ]),
    better('-b', ZEROES_KEPT, [
      onlyHere('-b other.qcow2 -F qcow2 @old.qcow2'),
      call(`${TO_OTHER} @top.qcow2`, TOP),
      call('-b disk.qcow2 -F qcow2 @top.qcow2', { contents: ['top.qcow2'] }),
      call('-b base.qcow2 -F qcow2 @top.qcow2', TOP),
      call(['-b', '', '@top.qcow2'], TOP),
      call('-b disk.raw -F raw @top.qcow2', TOP),
      call(`${TO_OTHER} @empty.qcow2`, { images: ['empty.qcow2'] }),
      wrong('-b missing -F qcow2 @top.qcow2'),
      wrong('-b top.qcow2 -F qcow2 @top.qcow2'),
      wrong('@top.qcow2'),
    ]),
    same('-F', [
      wrong('-b other.qcow2 -F nofmt @top.qcow2'),
      wrong('-b disk.raw -F qcow2 @top.qcow2'),
    ]),
    same('-u', [
      call('-u -b other.qcow2 -F qcow2 @top.qcow2', { headers: ['top.qcow2'] }),
      call('-u -b base.qcow2 -F qcow2 @orphan.qcow2', { headers: ['orphan.qcow2'] }),
      call(['-u', '-b', '', '@top.qcow2'], { headers: ['top.qcow2'] }),
      call('-u -b middle.qcow2 -F raw @top.qcow2', { headers: ['top.qcow2'] }),
    ]),
    same('-f', [
      call(`-f qcow2 ${TO_OTHER} @top.qcow2`, TOP),
      wrong(`-f raw ${TO_OTHER} @top.qcow2`),
      wrong(`-f nofmt ${TO_OTHER} @top.qcow2`),
    ]),
    same(
      '-t',
      [call(`-t writethrough ${TO_OTHER} @top.qcow2`, TOP), wrong(`-t foo ${TO_OTHER} @top.qcow2`)],
      CHANGED_CACHE,
    ),
    same(
      '-T',
      [call(`-T unsafe ${TO_OTHER} @top.qcow2`, TOP), wrong(`-T foo ${TO_OTHER} @top.qcow2`)],
      CACHE,
    ),
    better('-p', PROGRESS, [call(`-p ${TO_OTHER} @top.qcow2`, TOP)]),
    same('-q', [call(`-q -p ${TO_OTHER} @top.qcow2`, TOP)]),
    same('-U --force-share', [
      call(`-U ${TO_OTHER} @top.qcow2`, TOP),
      call(`--force-share ${TO_OTHER} @top.qcow2`, TOP),
      call('-b disk.qcow2 -F qcow2 -U @top.qcow2', {
        contents: ['top.qcow2'],
        inUse: 'disk.qcow2',
      }),
      wrong('-b disk.qcow2 -F qcow2 @top.qcow2', { inUse: 'disk.qcow2' }),
    ]),
    objectRow(`${TO_OTHER} @top.qcow2`),
    imageOptsRow({ before: '-b @other.qcow2 -F qcow2', image: 'top.qcow2' }),
    better('-c', 'compresses what the image is given, as from QEMU 9.0 on', [
      onlyHere(`-c ${TO_OTHER} @top.qcow2`),
    ]),
    better('(an interrupt)', 'the image has its old backing file still, and reads as before', []),
  ],
};

const PLAIN = { images: ['plain.qcow2'] };

export const RESIZE: Subcommand = {
  name: 'resize',
  readOnly: false,
  rows: [
    same(
      'FILENAME',
      [
        call('@disk.qcow2 8M', { images: ['disk.qcow2'] }),
        call('@marked.qcow2 8M', { images: ['marked.qcow2'] }),
        call('@top.qcow2 5M', TOP),
        call('@old.qcow2 5M', { images: ['old.qcow2'] }),
        call('-f raw @disk.raw 5M', { images: ['disk.raw'] }),
        call('@disk.raw 5M', { images: ['disk.raw'] }),
        wrong('@missing 5M'),
        wrong('5M'),
      ],
      RAW_WARNING,
    ),
    same('SIZE', [
      call('@plain.qcow2 +1G', PLAIN),
      call('@plain.qcow2 4M', PLAIN),
      call('@plain.qcow2 4.5M', PLAIN),
      call('@plain.qcow2 0x600000', PLAIN),
      call('--shrink @plain.qcow2 -1M', PLAIN),
      wrong('@plain.qcow2 foo'),
      wrong('@plain.qcow2 -8M'),
      wrong('@plain.qcow2 0'),
      wrong('@plain.qcow2 4194817'),
      wrong('@plain.qcow2 9E'),
      wrong('@plain.qcow2 1M 2M'),
    ]),
    same('--shrink', [
      call('--shrink @plain.qcow2 1M', PLAIN),
      call('--shrink @plain.qcow2 5M', PLAIN),
      call('--shrink -f raw @disk.raw 1M', { images: ['disk.raw'] }),
      wrong('@plain.qcow2 1M'),
      wrong('-f raw @disk.raw 1M'),
    ]),
    same('--preallocation', [
      call('--preallocation=off @plain.qcow2 5M', PLAIN),
      call('--preallocation=metadata @plain.qcow2 5M', PLAIN),
      call('--preallocation=falloc @plain.qcow2 5M', PLAIN),
      call('--preallocation=full @plain.qcow2 5M', PLAIN),
      call('--preallocation=falloc -f raw @disk.raw 5M', { images: ['disk.raw'] }),
      call('--preallocation=full -f raw @disk.raw 5M', { images: ['disk.raw'] }),
      wrong('--preallocation=metadata -f raw @disk.raw 5M'),
      wrong('--preallocation=foo @plain.qcow2 5M'),
      wrong('--preallocation=full --shrink @plain.qcow2 1M'),
    ]),
    same('-f', [
      call('-f qcow2 @plain.qcow2 5M', PLAIN),
      wrong('-f qcow2 @disk.raw 5M'),
      wrong('-f nofmt @plain.qcow2 5M'),
    ]),
    same('-q', [call('-q @plain.qcow2 5M', PLAIN), wrong('-q @plain.qcow2 1M')]),
    objectRow('@plain.qcow2 5M'),
    imageOptsRow({ image: 'plain.qcow2', after: '5M', details: PLAIN }),
    better('-p', PROGRESS, [
      onlyHere('-p --preallocation=full @plain.qcow2 5M', { ours: { exitCode: 0, says: '100%' } }),
    ]),
    better('(an interrupt)', 'the disk has its old size again', []),
  ],
};

const DISK = { images: ['disk.qcow2'] };

export const SNAPSHOT: Subcommand = {
  name: 'snapshot',
  readOnly: false,
  rows: [
    same('FILENAME', [
      call('@plain.qcow2'),
      call('@disk.qcow2', { output: 'own' }),
      wrong('@missing'),
      wrong(''),
      wrong('@disk.qcow2 @disk.qcow2'),
    ]),
    same('-l', [call('-l @plain.qcow2'), call('-l @disk.qcow2'), call('-l @disk.raw')]),
    better('-c', 'takes effect in one instant; an empty name is refused', [
      notHere(['-c', '', '@disk.qcow2'], "a snapshot's name has 1 to 255 bytes"),
      call('-c second @disk.qcow2', DISK),
      call('-c first @disk.qcow2', DISK),
      call('-c second @old.qcow2', { images: ['old.qcow2'] }),
      call('-c second @top.qcow2', TOP),
      wrong('-c second @disk.raw'),
      wrong('-c second -d first @disk.qcow2'),
    ]),
    better('-a', 'takes effect in one instant', [
      call('-a first @disk.qcow2', DISK),
      call('-a 1 @disk.qcow2', DISK),
      wrong('-a nope @disk.qcow2'),
      wrong('-a first @disk.raw'),
    ]),
    better('-d', 'takes effect in one instant', [
      call('-d first @disk.qcow2', DISK),
      wrong('-d 1 @disk.qcow2'),
      wrong('-d nope @disk.qcow2'),
    ]),
    same('-q', [call('-q -c second @disk.qcow2', DISK), call('-q -l @disk.qcow2')]),
    same('-U --force-share', [
      call('-U -l @disk.qcow2', { inUse: 'disk.qcow2' }),
      call('--force-share -l @disk.qcow2', { inUse: 'disk.qcow2' }),
      wrong('-l @disk.qcow2', { inUse: 'disk.qcow2' }),
      wrong('-U -c second @disk.qcow2', { inUse: 'disk.qcow2' }),
    ]),
    objectRow('-l @disk.qcow2'),
    imageOptsRow({ before: '-l', image: 'disk.qcow2' }),
    better('-f', 'says the format, as from QEMU 10.0 on', [onlyHere('-f qcow2 -l @disk.qcow2')]),
  ],
};
