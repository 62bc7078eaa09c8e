/** The options of the subcommands that make images: create, convert. */

import { forceShareRow, imageOptsRow, objectRow } from './common-rows.ts';
import { better, call, notHere, onlyHere, refused, same, wrong } from './model.ts';
import type { CaseDetails, OptionCase, OptionRow, Subcommand } from './model.ts';
import { CACHE, FORMATS, PROGRESS } from './read-tables.ts';

const NEW = { images: ['new.qcow2'], bytes: ['new.qcow2'] };
const NEW_RAW = { images: ['new.raw'] };

/** `create -f qcow2 -o LIST @new.qcow2 4M`. */
function made(list: string, details: CaseDetails = {}): OptionCase {
  return call(`-f qcow2 -o ${list} @new.qcow2 4M`, { ...NEW, ...details });
}

function notMade(list: string): OptionCase {
  return wrong(`-f qcow2 -o ${list} @new.qcow2 4M`);
}

const CREATION_ROWS: readonly OptionRow[] = [
  same('compat', [
    made('compat=0.10'),
    made('compat=1.1'),
    made('compat=v2'),
    made('compat=v3'),
    notMade('compat=2'),
  ]),
  same('cluster_size', [
    made('cluster_size=512'),
    made('cluster_size=2M'),
    notMade('cluster_size=256'),
    notMade('cluster_size=4M'),
    notMade('cluster_size=3000'),
  ]),
  same('refcount_bits', [
    ...[1, 2, 4, 8, 16, 32, 64].map((bits) => made(`refcount_bits=${bits}`)),
    notMade('refcount_bits=3'),
    notMade('compat=0.10,refcount_bits=8'),
  ]),
  same('lazy_refcounts', [
    made('lazy_refcounts=on'),
    notMade('lazy_refcounts=maybe'),
    notMade('lazy_refcounts=on,compat=0.10'),
  ]),
  same('extended_l2', [
    made('extended_l2=on'),
    notMade('extended_l2=on,cluster_size=8k'),
    notMade('extended_l2=on,compat=0.10'),
  ]),
  same(
    'compression_type',
    [made('compression_type=zstd'), made('compression_type=zlib'), notMade('compression_type=lz4')],
    'zstd needs Node 22.15, the system’s libzstd, or the package @bokuweb/zstd-wasm',
  ),
  same('preallocation', [
    ...['off', 'metadata', 'falloc', 'full'].map((mode) => made(`preallocation=${mode}`)),
    ...['off', 'falloc', 'full'].map((mode) =>
      call(`-f raw -o preallocation=${mode} @new.raw 2M`, { ...NEW_RAW, bytes: ['new.raw'] }),
    ),
    notMade('preallocation=some'),
    wrong('-f raw -o preallocation=metadata @new.raw 2M'),
  ]),
  better(
    'data_file',
    'a file that somebody has open is refused, and so is the image itself; a relative name is looked ' +
      'up beside the image, where qemu-img takes it from its working directory',
    [
      made('data_file=@data', { images: [], bytes: ['data'] }),
      notMade('data_file=@data,compat=0.10'),
      onlyHere('-f qcow2 -o data_file=@plain.qcow2 @new.qcow2 4M', {
        inUse: 'plain.qcow2',
        ours: { exitCode: 1, says: 'in use' },
      }),
    ],
  ),
  same('data_file_raw', [
    made('data_file=@data,data_file_raw=on', { images: [], bytes: ['data'] }),
    notMade('data_file_raw=on'),
  ]),
  same('backing_file', [
    call('-f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 @new.qcow2', NEW),
    notMade('backing_file=missing,backing_fmt=qcow2'),
  ]),
  same('backing_fmt', [
    call('-f qcow2 -o backing_file=disk.raw,backing_fmt=raw @new.qcow2', NEW),
    notMade('backing_fmt=qcow2'),
    notMade('backing_file=base.qcow2,backing_fmt=nofmt'),
  ]),
  same('size', [call('-f qcow2 -o size=3M @new.qcow2', NEW), notMade('size=3M')]),
  refused(
    'encryption',
    'AES encryption is retired as unsafe, and encrypted data is neither read nor written here',
    [
      made('encryption=off'),
      notHere('-f qcow2 -o encryption=on @new.qcow2 4M', 'encrypted images are neither'),
    ],
  ),
  refused(
    'encrypt.format encrypt.key-secret encrypt.cipher-alg encrypt.cipher-mode encrypt.ivgen-alg ' +
      'encrypt.ivgen-hash-alg encrypt.hash-alg encrypt.iter-time',
    'LUKS: the ciphers and the handling of keys are still to be written',
    [notHere('-f qcow2 -o encrypt.format=luks @new.qcow2 4M', 'encrypted images are neither')],
  ),
  refused('nocow', 'a matter of btrfs, and of directories: chattr +C. off is accepted', [
    made('nocow=off'),
    notHere('-o nocow=on @new.raw 1M', 'chattr +C'),
  ]),
  same(
    'extent_size_hint',
    [made('extent_size_hint=1M'), notMade('extent_size_hint=x')],
    'accepted: a hint, and only XFS knows it; none is given',
  ),
];

const NO_PROTOCOLS = 'only files of this host; a name with a colon is refused, ./NAME is a file';

export const CREATE: Subcommand = {
  name: 'create',
  readOnly: false,
  rows: [
    better(
      'FILENAME',
      `${NO_PROTOCOLS}. A file that somebody has open as an image, or that the new one refers to, is ` +
        'not overwritten',
      [
        call('-f qcow2 @new.qcow2 4M', NEW),
        call('@new.raw 4M', NEW_RAW),
        call('-f qcow2 @plain.qcow2 4M', { images: ['plain.qcow2'], bytes: ['plain.qcow2'] }),
        wrong('-f qcow2 @nowhere/new.qcow2 4M'),
        wrong('-f qcow2 @disk.qcow2 4M', { inUse: 'disk.qcow2' }),
        wrong(''),
        notHere('-f qcow2 nbd:localhost:1 4M', "the protocol 'nbd' is not supported", {
          exitCode: 1,
        }),
      ],
    ),
    same(
      'SIZE',
      [
        call('-f qcow2 @new.qcow2 0', NEW),
        call('-f qcow2 @new.qcow2 1000', NEW),
        call('-f qcow2 @new.qcow2 1.5G', NEW),
        call('-f qcow2 @new.qcow2 3T', NEW),
        wrong('-f qcow2 @new.qcow2 foo'),
        wrong('-f qcow2 @new.qcow2 -1'),
        wrong('-f qcow2 @new.qcow2 9E'),
        wrong('-f qcow2 @new.qcow2 1M 2M'),
        wrong('-f qcow2 @new.qcow2'),
      ],
      'less than 8 PiB',
    ),
    same(
      '-f',
      [
        call('-f raw @new.raw 1M', NEW_RAW),
        wrong('-f nofmt @new.raw 1M'),
        notHere('-f vdi @new.raw 1M', "not 'vdi'"),
      ],
      FORMATS,
    ),
    same('-b', [
      call('-f qcow2 -b base.qcow2 -F qcow2 @new.qcow2', NEW),
      call('-f qcow2 -b base.qcow2 -F qcow2 @new.qcow2 8M', NEW),
      call('-f qcow2 -b @base.qcow2 -F qcow2 @new.qcow2'),
      wrong('-f qcow2 -b missing -F qcow2 @new.qcow2'),
      wrong('-f qcow2 -b base.qcow2 @new.qcow2'),
      wrong('-f raw -b base.qcow2 -F qcow2 @new.raw 1M'),
      wrong('-f qcow2 -b new.qcow2 -F qcow2 @new.qcow2 1M'),
    ]),
    same('-F', [
      call('-f qcow2 -b disk.raw -F raw @new.qcow2', NEW),
      wrong('-f qcow2 -b disk.raw -F nofmt @new.qcow2'),
      wrong('-f qcow2 -b disk.raw -F qcow2 @new.qcow2'),
      wrong('-f qcow2 -F qcow2 @new.qcow2 1M'),
    ]),
    same('-u', [
      call('-f qcow2 -u -b missing -F qcow2 @new.qcow2 1M', { bytes: ['new.qcow2'] }),
      wrong('-f qcow2 -u -b missing -F qcow2 @new.qcow2'),
    ]),
    same('-q', [call('-q -f qcow2 @new.qcow2 1M', NEW), wrong('-q -f qcow2 @new.qcow2 foo')]),
    same(
      '-o',
      [
        call('-f qcow2 -o cluster_size=4k,refcount_bits=8 -o compat=1.1 @new.qcow2 1M', NEW),
        wrong('-f qcow2 -o nope=1 @new.qcow2 1M'),
        wrong('-f raw -o cluster_size=4k @new.raw 1M'),
        call('-f qcow2 -o help @new.qcow2', { output: 'own' }),
        call('-f raw -o help @new.raw'),
      ],
      'see below for what it takes',
    ),
    objectRow('@new.raw 1M'),
    better(
      '(an interrupt)',
      'what was not finished is removed; killed, it lacks the header that would make it an image',
      [],
    ),
  ],
};

export const CREATION: Subcommand = { name: 'create', readOnly: false, rows: CREATION_ROWS };

/** `-O qcow2 ARGS @new.qcow2`; the images have the same header, and the same allocated. */
function converted(args: string, details: CaseDetails = {}): OptionCase {
  return call(`-O qcow2 ${args} @new.qcow2`, { headers: ['new.qcow2'], ...details });
}

function notConverted(args: string): OptionCase {
  return wrong(`-O qcow2 ${args} @new.qcow2`);
}

const SAFE =
  'what is not finished is removed, or told to be incomplete; killed, a qcow2 output is marked so that ' +
  'nobody opens it (not with compat=0.10); an output that is an input, by whatever name, a block device ' +
  'in use, or an image that somebody has open is refused';

export const CONVERT: Subcommand = {
  name: 'convert',
  readOnly: false,
  rows: [
    same('FILENAME', [
      converted('@plain.qcow2'),
      converted('@disk.qcow2'),
      converted('@top.qcow2'),
      converted('@packed.qcow2'),
      converted('@marked.qcow2'),
      converted('@disk.raw'),
      call('@plain.qcow2 @new.raw', NEW_RAW),
      call('@empty.qcow2 @new.raw', NEW_RAW),
      notConverted('@missing'),
      notConverted('@orphan.qcow2'),
      wrong('@plain.qcow2'),
      wrong(''),
    ]),
    same('FILENAME2', [
      converted('@plain.qcow2 @disk.raw'),
      call('@short.raw @plain.qcow2 @new.raw', NEW_RAW),
      notConverted('@plain.qcow2 @missing'),
    ]),
    better('OUTPUT_FILENAME', SAFE, [
      call('-O qcow2 @plain.qcow2 @empty.qcow2', { headers: ['empty.qcow2'] }),
      call('@plain.qcow2 @disk.raw', { images: ['disk.raw'] }),
      wrong('-O qcow2 @plain.qcow2 @plain.qcow2'),
      wrong('-O qcow2 @plain.qcow2 @nowhere/new.qcow2'),
      wrong('-O qcow2 @plain.qcow2 @disk.qcow2', { inUse: 'disk.qcow2' }),
      notHere('-O qcow2 @top.qcow2 @base.qcow2', 'base.qcow2', { exitCode: 1 }),
    ]),
    same(
      '-f',
      [
        converted('-f qcow2 @plain.qcow2'),
        converted('-f raw @plain.qcow2'),
        notConverted('-f qcow2 @disk.raw'),
        notConverted('-f nofmt @disk.raw'),
        notHere('-f vmdk -O qcow2 @disk.raw @new.qcow2', "not 'vmdk'"),
      ],
      FORMATS,
    ),
    same(
      '-O',
      [
        call('-O raw @plain.qcow2 @new.raw', NEW_RAW),
        wrong('-O nofmt @plain.qcow2 @new.raw'),
        notHere('-O vmdk @plain.qcow2 @new.raw', "not 'vmdk'"),
      ],
      FORMATS,
    ),
    better('-c', 'on all cores; the same bytes whatever their number', [
      converted('-c @plain.qcow2', { headers: [] }),
      converted('-c -o compression_type=zstd @plain.qcow2', { headers: [] }),
      wrong('-c -O raw @plain.qcow2 @new.raw'),
      notConverted('-c -o preallocation=metadata @plain.qcow2'),
    ]),
    same(
      '-o',
      [
        ...[
          'cluster_size=4k',
          'compat=0.10',
          'extended_l2=on',
          'refcount_bits=8',
          'lazy_refcounts=on',
          'preallocation=metadata',
          'preallocation=full',
          'size=1M',
        ].map((list) => converted(`-o ${list} @plain.qcow2`)),
        call('-O raw -o preallocation=full @plain.qcow2 @new.raw', NEW_RAW),
        notConverted('-o nope=1 @plain.qcow2'),
        notConverted('-o cluster_size=3 @plain.qcow2'),
        call('-O qcow2 -o help', { output: 'own' }),
      ],
      'as for create',
    ),
    better('-B', 'zeroes past the end of a shorter backing file never show the new one', [
      converted('-B middle.qcow2 -F qcow2 @top.qcow2'),
      converted('-B base.qcow2 -F qcow2 @top.qcow2'),
      converted('-B base.qcow2 -F qcow2 @plain.qcow2'),
      converted('-B base.qcow2 -F qcow2 @longer.qcow2', {
        headers: [],
        contents: ['new.qcow2'],
      }),
      converted('-B base.qcow2 -F qcow2 @disk.raw'),
      converted('-B small.qcow2 -F qcow2 @plain.qcow2'),
      converted('-o backing_file=middle.qcow2,backing_fmt=qcow2 @top.qcow2'),
      notConverted('-B missing -F qcow2 @top.qcow2'),
      notConverted('-B middle.qcow2 @top.qcow2'),
      notConverted('-B middle.qcow2 -F qcow2 @top.qcow2 @top.qcow2'),
      wrong('-O raw -B middle.qcow2 -F qcow2 @top.qcow2 @new.raw'),
    ]),
    same('-F', [
      notConverted('-B middle.qcow2 -F nofmt @top.qcow2'),
      notConverted('-F qcow2 @plain.qcow2'),
      wrong('-O raw -F qcow2 @plain.qcow2 @new.raw'),
    ]),
    same('-l', [
      converted('-l first @disk.qcow2'),
      converted('-l 1 @disk.qcow2'),
      converted('-l snapshot.id=1 @disk.qcow2'),
      converted('-l snapshot.name=first @disk.qcow2'),
      notConverted('-l nope @disk.qcow2'),
      notConverted('-l snapshot.foo=1 @disk.qcow2'),
      notConverted('-l first @disk.qcow2 @plain.qcow2'),
      notConverted('-s first @disk.qcow2'),
      notConverted('-l first @disk.raw'),
    ]),
    same('-n', [
      call('-n -O qcow2 @plain.qcow2 @large.qcow2', { images: ['large.qcow2'] }),
      call('-n -O raw @plain.qcow2 @space.raw', { images: ['space.raw'] }),
      call('-n -O qcow2 @other.qcow2 @plain.qcow2', { images: ['plain.qcow2'] }),
      wrong('-n -O qcow2 @plain.qcow2 @small.qcow2'),
      wrong('-n -O qcow2 @plain.qcow2 @new.qcow2'),
      wrong('-n -O raw @plain.qcow2 @disk.raw'),
    ]),
    same('--target-is-zero', [
      call('-n --target-is-zero -O raw @plain.qcow2 @space.raw', { images: ['space.raw'] }),
      call('-n --target-is-zero -O qcow2 @plain.qcow2 @empty.qcow2', { images: ['empty.qcow2'] }),
      notConverted('--target-is-zero @plain.qcow2'),
    ]),
    same('-S', [
      converted('-S 0 @plain.qcow2'),
      converted('-S 64k @disk.raw'),
      converted('-S 512 @disk.raw'),
      call('-S 0 @plain.qcow2 @new.raw', NEW_RAW),
      notConverted('-S foo @plain.qcow2'),
      notConverted('-S 1000 @plain.qcow2'),
      notConverted('-S 32M @plain.qcow2'),
    ]),
    better('-m', 'threads, not coroutines: compressing and decompressing run on as many cores', [
      converted('-m 1 @plain.qcow2'),
      converted('-m 16 @plain.qcow2'),
      notConverted('-m 0 @plain.qcow2'),
      notConverted('-m 17 @plain.qcow2'),
      notConverted('-m foo @plain.qcow2'),
    ]),
    same(
      '-W',
      [converted('-W @plain.qcow2'), converted('-W -c @plain.qcow2', { headers: [] })],
      'accepted: all threads are used without it, and the output is the same each time',
    ),
    same(
      '-C',
      [
        converted('-C @plain.qcow2', { headers: [] }),
        notConverted('-C -S 4k @plain.qcow2'),
        notConverted('-C -c @plain.qcow2'),
        notConverted('-C --salvage @plain.qcow2'),
      ],
      'accepted: what is copied is the same',
    ),
    same('-r', [converted('-r 100M @plain.qcow2'), notConverted('-r foo @plain.qcow2')]),
    better('--salvage', 'the warning names the range and what is wrong with it', [
      converted('--salvage @plain.qcow2'),
    ]),
    better('--bitmaps', 'refused with -l: bitmaps speak of the disk as it is, not of a snapshot', [
      converted('--bitmaps @marked.qcow2'),
      converted('--bitmaps @plain.qcow2'),
      notConverted('--bitmaps @broken.qcow2'),
      notConverted('--bitmaps @disk.raw'),
      notConverted('--bitmaps @old.qcow2'),
      wrong('--bitmaps -O raw @marked.qcow2 @new.raw'),
      notHere('-O qcow2 --bitmaps -l 1 @disk.qcow2 @new.qcow2', '--bitmaps cannot be with -l'),
    ]),
    same('--skip-broken-bitmaps', [
      converted('--bitmaps --skip-broken-bitmaps @broken.qcow2'),
      notConverted('--skip-broken-bitmaps @broken.qcow2'),
    ]),
    better('-p', PROGRESS, [converted('-p @plain.qcow2')]),
    same('-q', [converted('-q -p @plain.qcow2')]),
    forceShareRow('-O qcow2 @disk.qcow2 @new.qcow2', { images: ['new.qcow2'] }),
    same(
      '-t',
      [converted('-t writethrough @plain.qcow2'), notConverted('-t foo @plain.qcow2')],
      'all but unsafe, the default, flush the output before the command ends',
    ),
    same(
      '-T',
      [converted('-T writethrough @plain.qcow2'), notConverted('-T foo @plain.qcow2')],
      CACHE,
    ),
    objectRow('-O qcow2 @plain.qcow2 @new.qcow2'),
    imageOptsRow({
      before: '-O qcow2',
      image: 'plain.qcow2',
      after: '@new.qcow2',
      details: { headers: ['new.qcow2'] },
    }),
    same('--target-image-opts', [
      call('-n --target-image-opts @plain.qcow2 driver=qcow2,file.filename=@large.qcow2', {
        images: ['large.qcow2'],
      }),
      call('-n --target-image-opts @plain.qcow2 driver=raw,file.filename=@space.raw', {
        images: ['space.raw'],
      }),
      wrong('--target-image-opts @plain.qcow2 driver=qcow2,file.filename=@large.qcow2'),
      wrong('-n --target-image-opts @plain.qcow2 driver=qcow2,file.filename=@missing'),
    ]),
  ],
};
