/** The options of the subcommands amend, bench, bitmap and dd. */

import { forceShareRow, imageOptsRow, objectRow } from './common-rows.ts';
import { better, call, notHere, onlyHere, refused, same, wrong } from './model.ts';
import type { CaseDetails, OptionCase, Subcommand } from './model.ts';
import { CHANGED_CACHE } from './change-tables.ts';
import { FORMATS, PROGRESS } from './read-tables.ts';

const PLAIN = { images: ['plain.qcow2'] };

/** `amend -o LIST @IMAGE`. */
function amended(list: string, image = 'plain.qcow2', details: CaseDetails = {}): OptionCase {
  return call(`-o ${list} @${image}`, { images: [image], ...details });
}

export const AMEND: Subcommand = {
  name: 'amend',
  readOnly: false,
  rows: [
    same('FILENAME', [
      wrong('-o compat=0.10 @disk.raw'),
      wrong('-o compat=0.10 @missing'),
      wrong('-o compat=0.10'),
      wrong('-o compat=0.10 @disk.qcow2', { inUse: 'disk.qcow2' }),
    ]),
    better('-o', 'all but the size takes effect in one instant', [
      amended('lazy_refcounts=on'),
      call('-o lazy_refcounts=on -o size=5M @plain.qcow2', PLAIN),
      wrong('-o nope=1 @plain.qcow2'),
      wrong('-o cluster_size=4k @plain.qcow2'),
      wrong('@plain.qcow2'),
      call('-f qcow2 -o help @plain.qcow2', { output: 'own' }),
    ]),
    same('-f', [
      call('-f qcow2 -o lazy_refcounts=on @plain.qcow2', PLAIN),
      wrong('-f raw -o lazy_refcounts=on @plain.qcow2'),
      wrong('-f nofmt -o lazy_refcounts=on @plain.qcow2'),
    ]),
    same(
      '-t',
      [
        call('-t writethrough -o lazy_refcounts=on @plain.qcow2', PLAIN),
        wrong('-t foo -o lazy_refcounts=on @plain.qcow2'),
      ],
      CHANGED_CACHE,
    ),
    better('-p', PROGRESS, [call('-p -o lazy_refcounts=on @plain.qcow2', PLAIN)]),
    same('-q', [call('-q -p -o lazy_refcounts=on @plain.qcow2', PLAIN)]),
    better('--force', 'also allows a smaller size, which is refused without it: it deletes data', [
      call('--force -o lazy_refcounts=on @plain.qcow2', PLAIN),
    ]),
    objectRow('-o lazy_refcounts=on @plain.qcow2'),
    imageOptsRow({ before: '-o lazy_refcounts=on', image: 'plain.qcow2', details: PLAIN }),
    better('(an interrupt)', 'the image is not amended, and reads as before', []),
  ],
};

/** What `amend -o` takes. */
export const AMENDMENTS: Subcommand = {
  name: 'amend',
  readOnly: false,
  rows: [
    same('compat', [
      amended('compat=0.10'),
      amended('compat=1.1', 'old.qcow2'),
      amended('compat=0.10', 'packed.qcow2'),
      wrong('-o compat=2 @plain.qcow2'),
    ]),
    same('refcount_bits', [
      amended('refcount_bits=64'),
      amended('refcount_bits=1'),
      wrong('-o refcount_bits=3 @plain.qcow2'),
      wrong('-o refcount_bits=1 @disk.qcow2'),
      wrong('-o refcount_bits=8 @old.qcow2'),
    ]),
    same('lazy_refcounts', [
      amended('lazy_refcounts=on'),
      amended('lazy_refcounts=off'),
      wrong('-o lazy_refcounts=on @old.qcow2'),
      wrong('-o lazy_refcounts=x @plain.qcow2'),
    ]),
    better('size', 'a smaller one only with --force', [
      amended('size=8M'),
      wrong('-o size=foo @plain.qcow2'),
      notHere('-o size=1M @plain.qcow2', '--force'),
    ]),
    same('backing_file backing_fmt', [
      call('-o backing_file=other.qcow2,backing_fmt=qcow2 @top.qcow2', { exitCode: 1 }),
    ]),
    same('data_file data_file_raw', [
      wrong('-o data_file=other @plain.qcow2'),
      wrong('-o data_file_raw=on @plain.qcow2'),
    ]),
    refused(
      'encrypt.state encrypt.keyslot encrypt.old-secret encrypt.new-secret encrypt.iter-time',
      'keys of LUKS, which is not here',
      [wrong('-o encrypt.state=active @plain.qcow2')],
    ),
  ],
};

const MARKED = { images: ['marked.qcow2'] };

export const BITMAP: Subcommand = {
  name: 'bitmap',
  readOnly: false,
  rows: [
    same('FILENAME', [
      wrong('--add @missing new'),
      wrong('--add @disk.raw new'),
      wrong('--add @old.qcow2 new'),
      wrong('--add @disk.qcow2 new', { inUse: 'disk.qcow2' }),
      wrong('--add'),
    ]),
    same('BITMAP', [wrong('--add @marked.qcow2'), wrong('--add @marked.qcow2 a b')]),
    better('--add', 'each action takes effect in one instant', [
      call('--add @marked.qcow2 new', MARKED),
      call('--add @plain.qcow2 new', PLAIN),
      call('--add --disable @marked.qcow2 new', MARKED),
      wrong('--add @marked.qcow2 changes'),
    ]),
    same('--remove', [
      call('--remove @marked.qcow2 changes', MARKED),
      call('--remove @broken.qcow2 changes', { images: ['broken.qcow2'] }),
      wrong('--remove @marked.qcow2 nope'),
    ]),
    same('--clear', [
      call('--clear @marked.qcow2 changes', MARKED),
      wrong('--clear @broken.qcow2 changes'),
    ]),
    same('--enable', [
      call('--enable @marked.qcow2 stopped', MARKED),
      wrong('--enable @marked.qcow2 nope'),
    ]),
    same('--disable', [call('--disable @marked.qcow2 changes', MARKED)]),
    same('--merge', [
      call('--merge changes @marked.qcow2 stopped', MARKED),
      call('--add --merge changes --merge stopped @marked.qcow2 both', MARKED),
      wrong('--merge nope @marked.qcow2 stopped'),
      wrong('--merge'),
    ]),
    same('-g --granularity', [
      call('--add -g 512 @marked.qcow2 new', MARKED),
      call('--add --granularity=1M @marked.qcow2 new', MARKED),
      wrong('--add -g 1000 @marked.qcow2 new'),
      wrong('--add -g 256 @marked.qcow2 new'),
      wrong('--clear -g 64k @marked.qcow2 changes'),
    ]),
    same('-b --source-file', [
      call('--add --merge changes -b @marked.qcow2 @plain.qcow2 new', PLAIN),
      call('--add --merge changes --source-file=@marked.qcow2 @plain.qcow2 new', PLAIN),
      wrong('--merge changes -b @missing @marked.qcow2 stopped'),
      wrong('--clear -b @plain.qcow2 @marked.qcow2 changes'),
    ]),
    same('-F --source-format', [
      call('--add --merge changes -b @marked.qcow2 -F qcow2 @plain.qcow2 new', PLAIN),
      wrong('--add --merge changes -b @marked.qcow2 -F nofmt @plain.qcow2 new'),
      wrong('--merge changes -F qcow2 @marked.qcow2 stopped'),
    ]),
    same('-f', [
      call('-f qcow2 --add @marked.qcow2 new', MARKED),
      wrong('-f nofmt --add @marked.qcow2 new'),
    ]),
    objectRow('--add @marked.qcow2 new'),
    imageOptsRow({ before: '--add', image: 'plain.qcow2', after: 'new', details: PLAIN }),
  ],
};

/** `dd ARGS if=@plain.qcow2 of=@new.qcow2` to a qcow2 image. */
function copied(args: string, details: CaseDetails = {}): OptionCase {
  return call(`-O qcow2 ${args} if=@plain.qcow2 of=@new.qcow2`, {
    contents: ['new.qcow2'],
    ...details,
  });
}

export const DD: Subcommand = {
  name: 'dd',
  readOnly: false,
  rows: [
    same('if=', [
      call('if=@plain.qcow2 of=@new.raw', { contents: ['new.raw'] }),
      call('if=@disk.raw of=@new.raw', { contents: ['new.raw'] }),
      wrong('if=@missing of=@new.raw'),
      wrong('of=@new.raw'),
    ]),
    better(
      'of=',
      'zeroes are left out of it; as with convert, it is no input and no image in use, and is removed ' +
        'if it is not finished',
      [wrong('if=@plain.qcow2'), wrong('if=@plain.qcow2 of=@nowhere/new.raw')],
    ),
    same('bs=', [
      copied('bs=64k'),
      copied('bs=1000'),
      wrong('bs=0 if=@plain.qcow2 of=@new.raw'),
      wrong('bs=foo if=@plain.qcow2 of=@new.raw'),
    ]),
    same('count=', [
      copied('bs=64k count=20'),
      copied('bs=64k count=1000'),
      wrong('count=foo if=@plain.qcow2 of=@new.raw'),
    ]),
    same('skip=', [
      copied('bs=64k skip=2'),
      copied('bs=64k skip=2 count=3'),
      wrong('skip=foo if=@plain.qcow2 of=@new.raw'),
    ]),
    same(
      '-f',
      [
        call('-f raw if=@plain.qcow2 of=@new.raw', { contents: ['new.raw'] }),
        wrong('-f nofmt if=@plain.qcow2 of=@new.raw'),
        wrong('-f qcow2 if=@disk.raw of=@new.raw'),
      ],
      FORMATS,
    ),
    same('-O', [copied(''), wrong('-O nofmt if=@plain.qcow2 of=@new.raw')], FORMATS),
    forceShareRow('-O qcow2 if=@disk.qcow2 of=@new.qcow2', { contents: ['new.qcow2'] }),
    same(
      '--image-opts',
      [
        call('--image-opts if=driver=qcow2,file.filename=@plain.qcow2 of=@new.raw', {
          contents: ['new.raw'],
        }),
        wrong('--image-opts if=driver=qcow2,file.filename=@missing of=@new.raw'),
      ],
      'as for the others',
    ),
    better('--object', 'refused; qemu-img takes it here, and --help does not tell', [
      onlyHere('--object secret,id=a if=@plain.qcow2 of=@new.raw', { exitCode: 1 }),
    ]),
    better('-p', PROGRESS, [
      onlyHere('-p if=@plain.qcow2 of=@new.raw', { ours: { exitCode: 0, says: '100' } }),
    ]),
  ],
};

const OWN = { output: 'own' } as const;
const WRITTEN = { output: 'own', contents: ['plain.qcow2'] } as const;
const ASYNCHRONOUS = 'requests are made one after the other by one thread, through the page cache';

export const BENCH: Subcommand = {
  name: 'bench',
  readOnly: false,
  rows: [
    same('FILENAME', [
      call('-c 100 @plain.qcow2', OWN),
      call('-c 100 @disk.raw', OWN),
      wrong('@missing', OWN),
      wrong(''),
    ]),
    same('-c', [call('-c 10 @plain.qcow2', OWN), wrong('-c foo @plain.qcow2')]),
    same(
      '-d',
      [call('-c 10 -d 1 @plain.qcow2', OWN), wrong('-d foo @plain.qcow2')],
      `accepted: ${ASYNCHRONOUS}`,
    ),
    same('-f', [call('-c 10 -f raw @plain.qcow2', OWN), wrong('-f nofmt @plain.qcow2', OWN)]),
    same('-o', [call('-c 10 -o 64k @plain.qcow2', OWN), wrong('-o foo @plain.qcow2')]),
    same('-s', [call('-c 10 -s 64k @plain.qcow2', OWN), wrong('-s foo @plain.qcow2')]),
    same('-S', [call('-c 10 -S 64k @plain.qcow2', OWN), wrong('-S foo @plain.qcow2')]),
    same('-w', [call('-w -c 100 @plain.qcow2', WRITTEN)]),
    same('--pattern', [
      call('-w -c 100 --pattern=7 @plain.qcow2', WRITTEN),
      call('-w -c 100 --pattern=0xaa @plain.qcow2', WRITTEN),
      wrong('-w --pattern=256 @plain.qcow2'),
    ]),
    same('--flush-interval', [
      call('-w -c 100 -d 1 --flush-interval=10 @plain.qcow2', WRITTEN),
      wrong('--flush-interval=10 @plain.qcow2', OWN),
      wrong('-w --flush-interval=foo @plain.qcow2'),
    ]),
    same(
      '--no-drain',
      [call('-w -c 100 -d 1 --flush-interval=10 --no-drain @plain.qcow2', WRITTEN)],
      'accepted: there is nothing to wait for at a flush',
    ),
    refused('-i', `native and io_uring: ${ASYNCHRONOUS}; threads is accepted`, [
      call('-c 10 -i threads @plain.qcow2', OWN),
      notHere('-c 10 -i io_uring @plain.qcow2', 'io_uring'),
      wrong('-i foo @plain.qcow2'),
    ]),
    refused('-n', `as -i native: ${ASYNCHRONOUS}`, [
      notHere('-c 10 -n -t none @plain.qcow2', 'page cache'),
    ]),
    same(
      '-t',
      [call('-c 10 -t writethrough @plain.qcow2', OWN), wrong('-t foo @plain.qcow2')],
      'writeback, unsafe and writethrough; those without a cache are refused',
    ),
    same('-q', [call('-q -c 10 @plain.qcow2', OWN)]),
    forceShareRow('-c 10 @disk.qcow2', OWN),
    imageOptsRow({ before: '-c 10', image: 'plain.qcow2', details: OWN }),
  ],
};
