/** Images by their options (`--image-opts`) and by `json:` names, as qemu-img opens them. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CommandDefinition } from '../../src/cli/command.ts';
import { loadCommand } from '../../src/cli/commands.ts';
import { parseImageOptions, parseJsonName } from '../../src/cli/image-opts.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { makeTemporaryDirectory, removeTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

/** Bytes before the image in the file that holds one among others. */
const OFFSET = 1536;

function makeImages(directory: string): void {
  const at = (name: string): string => join(directory, name);
  qemuImg('create', '-q', '-f', 'qcow2', at('base.qcow2'), '4M');
  qemuIo(at('base.qcow2'), ['write -P 1 0 1M', 'write -P 2 3M 64k']);
  qemuImg('create', '-q', '-f', 'qcow2', at('other.qcow2'), '4M');
  qemuIo(at('other.qcow2'), ['write -P 3 1M 1M']);
  const overlay = ['-b', 'base.qcow2', '-F', 'qcow2', at('top.qcow2')];
  qemuImg('create', '-q', '-f', 'qcow2', ...overlay);
  qemuIo(at('top.qcow2'), ['write -P 4 2M 64k']);
  qemuImg('snapshot', '-c', 'one', at('base.qcow2'));
  const image = readFileSync(at('base.qcow2'));
  const padding = Buffer.alloc(OFFSET, 0x55);
  writeFileSync(at('holder.tar'), Buffer.concat([padding, image, Buffer.alloc(1024)]));
  writeFileSync(at('a,b.qcow2'), image);
  qemuImg(
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    `data_file=${at('split.raw')}`,
    at('split.qcow2'),
    '1M',
  );
  const disk = Buffer.alloc(2 * 1024 * 1024);
  disk.fill(6, 1024 * 1024, 1024 * 1024 + 8192);
  writeFileSync(at('disk.raw'), disk);
}

const HELD = `driver=qcow2,file.driver=raw,file.offset=${OFFSET},file.file.filename=DIR/holder.tar`;
const OTHER = 'driver=qcow2,file.filename=DIR/other.qcow2';
const json = (document: unknown): string => `json:${JSON.stringify(document)}`;

/** Calls of which both programs print the same; `DIR/` stands for the directory of the images. */
const CALLS: [command: string, ...args: string[]][] = [
  ['info', '--image-opts', 'driver=qcow2,file.filename=DIR/base.qcow2'],
  ['info', '--image-opts', 'driver=qcow2,file.driver=file,file.filename=DIR/base.qcow2'],
  ['info', '--image-opts', 'file.filename=DIR/base.qcow2'],
  ['info', '--image-opts', 'driver=qcow2,file.filename=DIR/a,,b.qcow2'],
  ['info', '--image-opts', 'driver=qcow2,file.filename=DIR/base.qcow2,lazy-refcounts=on,'],
  ['info', '--image-opts', HELD],
  ['info', '--image-opts', 'driver=raw,file.filename=DIR/disk.raw,offset=1M,size=512k'],
  ['info', '--image-opts', 'driver=raw,offset=1M,file.filename=DIR/disk.raw'],
  ['info', '--backing-chain', json({ driver: 'qcow2', 'file.filename': 'DIR/top.qcow2' })],
  ['info', json({ driver: 'qcow2', file: { driver: 'file', filename: 'DIR/base.qcow2' } })],
  ['info', '-f', 'raw', json({ driver: 'qcow2', file: { filename: 'DIR/base.qcow2' } })],
  ['info', json({ driver: 'raw', offset: 512, file: { filename: 'DIR/disk.raw' } })],
  ['info', 'file:DIR/base.qcow2'],
  ['map', '--image-opts', HELD],
  ['map', '--output=json', '--image-opts', HELD],
  ['map', '--image-opts', 'driver=raw,offset=512k,file.filename=DIR/disk.raw'],
  ['map', '--output=json', '--image-opts', 'driver=qcow2,file.filename=DIR/top.qcow2'],
  [
    'map',
    '--image-opts',
    'driver=qcow2,file.filename=DIR/top.qcow2,backing.driver=qcow2,' +
      'backing.file.filename=DIR/other.qcow2',
  ],
  ['map', '--image-opts', 'driver=qcow2,file.filename=DIR/top.qcow2,backing.driver=raw'],
  [
    'map',
    '--output=json',
    json({ driver: 'qcow2', file: { filename: 'DIR/top.qcow2' }, backing: null }),
  ],
  ['check', '--image-opts', 'driver=qcow2,file.filename=DIR/top.qcow2,cache.direct=off'],
  ['check', '--output=json', '--image-opts', 'driver=qcow2,file.filename=DIR/base.qcow2'],
  ['check', '--image-opts', 'driver=raw,file.filename=DIR/disk.raw'],
  [
    'compare',
    '--image-opts',
    HELD,
    'driver=qcow2,file.filename=DIR/base.qcow2,file.locking=off,force-share=on',
  ],
  ['compare', json({ file: { filename: 'DIR/base.qcow2' } }), 'DIR/other.qcow2'],
  ['measure', '-O', 'qcow2', '--image-opts', HELD],
  ['measure', '-O', 'qcow2', '-l', 'one', '--image-opts', HELD],
  ['snapshot', '-l', '--image-opts', HELD],
];

/** Calls that change an image, and the image. */
const CHANGES: [call: [string, ...string[]], changed: string][] = [
  [['resize', '--image-opts', 'driver=qcow2,file.filename=DIR/other.qcow2', '8M'], 'other.qcow2'],
  [['resize', '--image-opts', 'driver=raw,offset=1M,file.filename=DIR/disk.raw', '2M'], 'disk.raw'],
  [
    ['snapshot', '-c', 'new', '--image-opts', 'driver=qcow2,file.filename=DIR/other.qcow2'],
    'other.qcow2',
  ],
  [
    [
      'commit',
      '--image-opts',
      'driver=qcow2,file.filename=DIR/top.qcow2,backing.driver=qcow2,' +
        'backing.file.filename=DIR/other.qcow2',
    ],
    'other.qcow2',
  ],
  [['rebase', '-b', '', '--image-opts', 'driver=qcow2,file.filename=DIR/top.qcow2'], 'top.qcow2'],
  [['convert', '-O', 'qcow2', '-m', '8', '--image-opts', HELD, 'DIR/new.qcow2'], 'new.qcow2'],
  [['convert', 'file:DIR/top.qcow2', 'file:DIR/new.raw'], 'new.raw'],
  [['convert', '-l', 'one', '--image-opts', HELD, 'DIR/new.raw'], 'new.raw'],
  [['convert', '-n', '--target-image-opts', 'DIR/base.qcow2', OTHER], 'other.qcow2'],
  [
    [
      'convert',
      '-n',
      '-O',
      'qcow2',
      'DIR/base.qcow2',
      json({ file: { filename: 'DIR/other.qcow2' } }),
    ],
    'other.qcow2',
  ],
  [['dd', '--image-opts', '-O', 'qcow2', 'bs=64k', `if=${HELD}`, 'of=DIR/new.qcow2'], 'new.qcow2'],
  [['amend', '-o', 'lazy_refcounts=on', '--image-opts', OTHER], 'other.qcow2'],
  [['bitmap', '--add', '--image-opts', OTHER, 'b'], 'other.qcow2'],
  [['check', '-r', 'all', '--image-opts', 'driver=qcow2,file.filename=DIR/top.qcow2'], 'top.qcow2'],
];

/** Calls that both programs refuse, and what ours says of it. */
const REFUSALS: [message: string, command: string, ...args: string[]][] = [
  ["Cannot find device='DIR/base.qcow2'", 'info', '--image-opts', 'DIR/base.qcow2'],
  ['Must specify either driver or file', 'info', '--image-opts', 'filename=DIR/base.qcow2'],
  [
    'A block device must be specified for "file"',
    ...(['info', '--image-opts', 'driver=qcow2,filename=DIR/base.qcow2'] as const),
  ],
  [
    "Block format 'qcow2' does not support the option 'bogus'; it has driver, file.…, ",
    ...(['info', '--image-opts', 'driver=qcow2,file.filename=DIR/base.qcow2,bogus=1'] as const),
  ],
  [
    "Block protocol 'file' doesn't support the option 'bogus'; it has driver, node-name, ",
    ...(['info', '--image-opts', 'file.filename=DIR/base.qcow2,file.bogus=1'] as const),
  ],
  [
    "Unknown driver 'bogus'; qcow2, raw, file and host_device are",
    ...(['info', '--image-opts', 'driver=bogus,file.filename=DIR/base.qcow2'] as const),
  ],
  [
    "the driver 'vmdk' is not here; qcow2, raw, file and host_device are",
    ...(['info', '--image-opts', 'driver=vmdk,file.filename=DIR/base.qcow2'] as const),
  ],
  [
    "Parameter 'lazy-refcounts' expects 'on' or 'off'",
    ...(['info', '--image-opts', 'file.filename=DIR/base.qcow2,lazy-refcounts=x'] as const),
  ],
  [
    'Invalid discard option',
    ...(['info', '--image-opts', 'file.filename=DIR/base.qcow2,discard=x'] as const),
  ],
  [
    "Parameter 'l2-cache-size' expects a non-negative number below 2^64",
    ...(['info', '--image-opts', 'file.filename=DIR/base.qcow2,l2-cache-size=x'] as const),
  ],
  [
    'Specified size is not multiple of 512',
    ...(['info', '--image-opts', 'driver=raw,size=1000,file.filename=DIR/disk.raw'] as const),
  ],
  [
    'outside the file',
    ...([
      'info',
      '--image-opts',
      'driver=raw,offset=1M,size=9M,file.filename=DIR/disk.raw',
    ] as const),
  ],
  ['no such file', 'info', '--image-opts', 'driver=qcow2,file.filename=DIR/missing'],
  [
    'mutually exclusive',
    ...(['info', '-f', 'qcow2', '--image-opts', 'file.filename=DIR/base.qcow2'] as const),
  ],
  [
    '--target-image-opts requires use of -n flag',
    ...(['convert', '--target-image-opts', 'DIR/base.qcow2', OTHER] as const),
  ],
  [
    'mutually exclusive',
    ...(['convert', '-n', '-O', 'qcow2', '--target-image-opts', 'DIR/base.qcow2', OTHER] as const),
  ],
  [
    'Block node is read-only',
    ...([
      'convert',
      '-n',
      '--target-image-opts',
      'DIR/base.qcow2',
      `${OTHER},read-only=on`,
    ] as const),
  ],
  ['mutually exclusive', 'bench', '-f', 'qcow2', '--image-opts', OTHER],
  ["Unknown driver 'x'", 'bench', '--image-opts', 'driver=x,file.filename=DIR/base.qcow2'],
  ['Could not parse the JSON options', 'info', 'json:{"driver"'],
  ['Invalid JSON object given', 'info', 'json:[]'],
  ["The 'file' block driver requires a file name", 'info', json({ file: { driver: 'file' } })],
  ["Unknown protocol 'foo'", 'info', 'foo:bar'],
  ["the protocol 'nbd' is not supported", 'info', 'nbd:unix:/nowhere/socket'],
  [
    'for reading only',
    ...(['resize', '--image-opts', 'file.filename=DIR/base.qcow2,read-only=on', '8M'] as const),
  ],
  ...[
    'driver=qcow2,file.filename=DIR/other.qcow2,file.read-only=on',
    'driver=qcow2,file.driver=raw,file.read-only=on,file.file.filename=DIR/other.qcow2',
    'driver=qcow2,file.driver=raw,file.file.filename=DIR/other.qcow2,file.file.read-only=on',
    'driver=raw,file.filename=DIR/disk.raw,file.read-only=on',
    'driver=file,filename=DIR/disk.raw,read-only=on',
    'driver=qcow2,file.filename=DIR/split.qcow2,data-file.filename=DIR/split.raw,data-file.read-only=on',
  ].map((opts): [string, string, ...string[]] => [
    'for reading only',
    ...(['bench', '-w', '-c', '1', '--image-opts', opts] as const),
  ]),
  [
    'not with force-share',
    ...(['bench', '-w', '-c', '1', '--image-opts', `${OTHER},file.force-share=on`] as const),
  ],
  [
    'keeps it',
    ...(['resize', '--image-opts', 'driver=raw,size=1M,file.filename=DIR/disk.raw', '2M'] as const),
  ],
];

async function commandOf(name: string): Promise<CommandDefinition> {
  const command = await loadCommand(name);
  if (command === undefined) throw new Error(`there is no command ${name}`);
  return command;
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img', () => {
  const directory = makeTemporaryDirectory();
  let twins: Twins;
  beforeAll(() => {
    twins = makeTwins(makeImages, directory);
  });
  afterAll(() => removeTemporaryDirectory(directory));

  const calls = CALLS.map(([name, ...args]) => ({ title: [name, ...args].join(' '), name, args }));
  it.each(calls)('$title', async ({ name, args }) => {
    const { ours, theirs } = await runTwins(await commandOf(name), twins, args);
    const shown = theirs.stdout.replaceAll(twins.theirs, twins.ours);
    expect(ours.stdout, ours.stderr + theirs.stderr).toBe(shown);
    expect(ours.exitCode).toBe(theirs.exitCode);
  });

  it.each(CHANGES)('changes by %j', async ([name, ...args], changed) => {
    const own = makeTwins(makeImages);
    const { ours, theirs } = await runTwins(await commandOf(name), own, args);
    expect(ours, theirs.stderr).toMatchObject({ exitCode: 0, stdout: theirs.stdout });
    const [first, second] = [join(own.ours, changed), join(own.theirs, changed)];
    expect(tryRun('qemu-img', ['compare', first, second]).stdout).toContain('identical');
  });

  it.each(REFUSALS)('refuses: %s', async (message, name, ...args) => {
    const { ours, theirs } = await runTwins(await commandOf(name), twins, args);
    expect(ours.exitCode).toBe(theirs.exitCode);
    expect(ours.stderr).toMatch(/^qcow2: .+\n$/);
    expect(ours.stderr).toContain(message.replaceAll('DIR/', `${twins.ours}/`));
  });

  it('reads a disk behind another backing file, and writes it whole', async () => {
    const options =
      'driver=qcow2,file.filename=DIR/top.qcow2,backing.driver=raw,' +
      'backing.file.filename=DIR/disk.raw';
    const args = ['--image-opts', options, options];
    const { ours, theirs } = await runTwins(await commandOf('compare'), twins, args);
    expect(ours.stdout, ours.stderr).toBe(theirs.stdout);
  });

  it('does not open for writing what is only a part of a file', async () => {
    const options = HELD.replace('DIR/', `${twins.ours}/`);
    const before = readFileSync(join(twins.ours, 'holder.tar'));
    const args = ['-c', 'x', '--image-opts', options];
    const { exitCode, stderr } = await runCommand(await commandOf('snapshot'), args);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: expect.stringContaining('an image in a part of a file can only be read') as string,
    });
    expect(readFileSync(join(twins.ours, 'holder.tar')).equals(before)).toBe(true);
  });

  it('never writes into a file by one layer that it reads by another', async () => {
    const { ours } = makeTwins(makeImages);
    const path = join(ours, 'other.qcow2');
    const before = readFileSync(path);
    const options =
      `driver=qcow2,file.filename=${path},file.locking=off,backing.driver=raw,` +
      `backing.offset=1k,backing.file.filename=${path},backing.file.locking=off`;
    for (const args of [['commit'], ['bench', '-w', '-c', '1']] as const) {
      const [name, ...rest] = args;
      const result = await runCommand((await loadCommand(name))!, [
        ...rest,
        '--image-opts',
        options,
      ]);
      expect(result.stderr).toMatch(/the backing chain comes back to itself/);
      expect(result.exitCode).toBe(1);
    }
    expect(readFileSync(path).equals(before)).toBe(true);
    const parts =
      `driver=qcow2,file.filename=${path},backing.driver=qcow2,` +
      `backing.file.driver=raw,backing.file.offset=${OFFSET},` +
      `backing.file.file.filename=${join(ours, 'holder.tar')},backing.backing.driver=raw,` +
      `backing.backing.size=1k,backing.backing.file.filename=${join(ours, 'holder.tar')}`;
    const args = ['-w', '-c', '1', '--image-opts', parts];
    expect((await runCommand((await loadCommand('bench'))!, args)).exitCode).toBe(0);
  });

  it('leaves names inside images to the policy', async () => {
    const name = join(twins.ours, 'trap.qcow2');
    const backing = json({ driver: 'qcow2', file: { filename: join(twins.ours, 'base.qcow2') } });
    qemuImg('create', '-q', '-f', 'qcow2', '-b', backing, '-F', 'qcow2', name);
    const info = await commandOf('info');
    const options = ['--backing-chain', '--image-opts', `driver=qcow2,file.filename=${name}`];
    const { exitCode, stderr } = await runCommand(info, options);
    expect({ exitCode, stderr }).toMatchObject({ exitCode: 1 });
    expect(stderr).toContain('is not a plain file name and is not opened by default');
  });
});

describe('options', () => {
  it('of parts of parts come together', () => {
    const options =
      'driver=qcow2,file.driver=raw,file.offset=1k,file.file.driver=raw,file.file.offset=2k,' +
      'file.file.size=8k,file.file.file.filename=x';
    expect(parseImageOptions(options)).toMatchObject({
      path: 'x',
      format: 'qcow2',
      window: { offset: 3072, length: 7168 },
    });
    expect(() => parseImageOptions(options.replace('offset=1k', 'offset=9k'))).toThrow(
      'offset and size are outside of the file below',
    );
  });

  it('that say how to open a file are kept', () => {
    const options =
      'driver=qcow2,file.filename=x,file.locking=off,force-share=on,read-only=on,' +
      'l2-cache-size=2M,pass-discard-other=on,data-file.filename=d';
    expect(parseImageOptions(options)).toMatchObject({
      lock: false,
      forceShare: true,
      readOnly: true,
      metadataCacheBytes: 2 * 1024 * 1024,
      passDiscard: { other: true },
      dataFile: 'd',
    });
  });

  it.each([
    ['driver=qcow2,file.filename=x,encrypt.format=luks', 'encrypted images are neither read'],
    ['driver=qcow2,file.driver=qcow2,file.file.filename=x', 'inside of a qcow2 image'],
    ['driver=qcow2,file.driver=nbd,file.host=x', "the driver 'nbd' is not here"],
    ['driver=qcow2,file=x', "Cannot find device='x' nor node-name='x'"],
    ['driver=qcow2,file.filename=x,backing=y', "Cannot find device='y' nor node-name='y'"],
    ['driver=raw,offset=9E,file.filename=x', "Parameter 'offset' expects"],
  ])('%s is refused', (options, message) => {
    expect(() => parseImageOptions(options)).toThrow(message);
  });

  it.each(['__proto__', 'constructor', 'toString'])('have no %s', (key) => {
    expect(() => parseImageOptions(`file.filename=x,${key}=1`)).toThrow(
      `does not support the option '${key}'`,
    );
    expect(() => parseJsonName(`json:{"file.filename":"x","${key}":{"a":1}}`)).toThrow(
      `does not support the option '${key}.a'`,
    );
  });

  it('nested without end are refused', () => {
    const depth = 5000;
    const prefix = 'file.'.repeat(depth);
    const items = Array.from({ length: depth }, (_, level) => `${'file.'.repeat(level)}driver=raw`);
    expect(() =>
      parseImageOptions(`${prefix}filename=x,${items.slice(0, 2000).join(',')}`),
    ).toThrow('files in each other');
  });
});
