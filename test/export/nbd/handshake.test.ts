import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Qcow2Error } from '../../../src/errors.ts';
import type { NbdExport } from '../../../src/export/nbd/exports.ts';
import { answer, EXPORTS, negotiate } from './negotiation.ts';
import {
  be,
  clientFlags,
  FLAGS,
  GREETING,
  infoData,
  OPT,
  option,
  optionReply,
  REP,
} from './wire.ts';

const SIZE = 2 ** 40 + 512;
const INFO_EXPORT = be([16, 0], [64, SIZE], [16, FLAGS]);

describe('greeting and client flags', () => {
  it('greets with both magics, FIXED_NEWSTYLE and NO_ZEROES', () => {
    expect(negotiate([]).sent).toEqual(GREETING);
  });

  it.each([0, 1, 2, 3])('goes on with client flags %i', (flags) => {
    const outcome = negotiate([clientFlags(flags), option(OPT.LIST)]);
    expect(outcome.state).toBe('open');
    expect(outcome.sent.length).toBeGreaterThan(GREETING.length);
  });

  it.each([4, 0x80000000, 0xffffffff])('hangs up on unknown client flags %i', (flags) => {
    const outcome = negotiate([clientFlags(flags), option(OPT.LIST)]);
    expect(outcome).toMatchObject({ state: 'close', sent: GREETING });
    expect(outcome.reason).toContain(`0x${flags.toString(16)}`);
  });
});

describe('NBD_OPT_EXPORT_NAME', () => {
  it('answers size and flags, without zeroes as asked', () => {
    const outcome = negotiate([clientFlags(3), option(OPT.EXPORT_NAME, Buffer.from('disk'))]);
    expect(outcome).toMatchObject({ state: 'transmission', exportName: 'disk' });
    expect(outcome.sent.subarray(GREETING.length)).toEqual(be([64, SIZE], [16, FLAGS]));
  });

  it('pads with 124 zeroes for a client that did not ask for none', () => {
    const outcome = negotiate([clientFlags(1), option(OPT.EXPORT_NAME, Buffer.from('disk/1'))]);
    const expected = Buffer.concat([be([64, 1024], [16, FLAGS]), Buffer.alloc(124)]);
    expect(outcome.sent.subarray(GREETING.length)).toEqual(expected);
  });

  it('knows the empty name as the default export', () => {
    expect(negotiate([clientFlags(), option(OPT.EXPORT_NAME)]).exportName).toBe('disk');
  });

  it.each([
    ['unknown', Buffer.from('nothing')],
    ['not UTF-8', Buffer.from([0xff, 0xfe])],
    ['with NUL', Buffer.from('disk\0')],
    ['beginning with a BOM', Buffer.from('\ufeffdisk')],
    ['of 4097 bytes', Buffer.alloc(4097, 'x')],
  ])('hangs up without a word on a name that is %s', (_, name) => {
    const outcome = negotiate([clientFlags(), option(OPT.EXPORT_NAME, name)]);
    expect(outcome).toMatchObject({ state: 'close', sent: GREETING });
    expect(outcome.reason).not.toBe('');
  });
});

describe('NBD_OPT_LIST', () => {
  it('names every export with its description', () => {
    const expected = [
      optionReply(3, REP.SERVER, Buffer.concat([be([32, 4]), Buffer.from('diskthe disk')])),
      optionReply(3, REP.SERVER, Buffer.concat([be([32, 6]), Buffer.from('disk/1')])),
      optionReply(3, REP.ACK),
    ];
    expect(answer(option(OPT.LIST))).toEqual(Buffer.concat(expected));
  });

  it('is invalid with data, and the negotiation goes on', () => {
    const replies = answer(option(OPT.LIST, Buffer.from('x')), option(OPT.LIST));
    expect(replies.readUInt32BE(12)).toBe(REP.INVALID);
    expect(replies.subarray(-20)).toEqual(optionReply(3, REP.ACK));
  });
});

describe.each([
  ['NBD_OPT_INFO', OPT.INFO],
  ['NBD_OPT_GO', OPT.GO],
] as const)('%s', (_, type) => {
  it('sends the size and flags, and nothing that was not asked for', () => {
    const outcome = negotiate([clientFlags(), option(type, infoData('disk'))]);
    expect(outcome.sent.subarray(GREETING.length)).toEqual(
      Buffer.concat([optionReply(type, REP.INFO, INFO_EXPORT), optionReply(type, REP.ACK)]),
    );
    expect(outcome.state).toBe(type === OPT.GO ? 'transmission' : 'open');
  });

  it('sends name, description and block sizes when asked, each once', () => {
    const expected = [
      optionReply(type, REP.INFO, INFO_EXPORT),
      optionReply(type, REP.INFO, Buffer.concat([be([16, 1]), Buffer.from('disk')])),
      optionReply(type, REP.INFO, Buffer.concat([be([16, 2]), Buffer.from('the disk')])),
      optionReply(type, REP.INFO, be([16, 3], [32, 1], [32, 4096], [32, 32 * 1024 * 1024])),
      optionReply(type, REP.ACK),
    ];
    // 9 is no kind of information that there is.
    const kinds = [3, 3, 2, 9, 1, 0, 1];
    expect(answer(option(type, infoData('', kinds)))).toEqual(Buffer.concat(expected));
  });

  it('has no description to send for an export without one', () => {
    const info = be([16, 0], [64, 1024], [16, FLAGS]);
    const expected = [optionReply(type, REP.INFO, info), optionReply(type, REP.ACK)];
    expect(answer(option(type, infoData('disk/1', [2])))).toEqual(Buffer.concat(expected));
  });

  it('says which export is not there, in few words, and goes on', () => {
    const name = `\u0007${'x'.repeat(4000)}`;
    const replies = answer(option(type, infoData(name)), option(OPT.LIST));
    expect(replies.readUInt32BE(12)).toBe(REP.UNKNOWN);
    const text = replies.toString('utf8', 20, 20 + replies.readUInt32BE(16));
    expect(text).toMatch(/^there is no export "\\u0007x+…"$/);
    expect(text.length).toBeLessThan(100);
    expect(replies.subarray(-20)).toEqual(optionReply(3, REP.ACK));
  });

  it.each([
    ['no data', Buffer.alloc(0)],
    ['five bytes', Buffer.alloc(5)],
    [
      'a name longer than the option',
      Buffer.concat([be([32, 5]), Buffer.from('disk'), be([16, 0])]),
    ],
    ['a name of 2^32 - 1 bytes', be([32, 0xffffffff], [16, 0])],
    ['more kinds than it holds', be([32, 0], [16, 2], [16, 3])],
    ['fewer kinds than it holds', be([32, 0], [16, 1], [16, 3], [16, 3])],
    ['half a kind', Buffer.concat([be([32, 0], [16, 1]), Buffer.from([0])])],
    ['a name that is not UTF-8', Buffer.concat([be([32, 1]), Buffer.from([0xc3]), be([16, 0])])],
    ['a name of 4097 bytes', infoData('x'.repeat(4097))],
  ])('is invalid with %s, and the negotiation goes on', (_name, data) => {
    const outcome = negotiate([clientFlags(), option(type, data), option(OPT.LIST)]);
    expect(outcome.sent.readUInt32BE(GREETING.length + 12)).toBe(REP.INVALID);
    expect(outcome.sent.subarray(-20)).toEqual(optionReply(3, REP.ACK));
    expect(outcome.state).toBe('open');
  });

  it('does not tell a stranger why an export cannot be opened', () => {
    const exports: NbdExport[] = [
      ...EXPORTS,
      {
        name: 'broken',
        device: () => {
          throw new Qcow2Error('CORRUPT', 'its L1 table is odd', { file: '/secret/path' });
        },
      },
    ];
    const outcome = negotiate([clientFlags(), option(type, infoData('broken'))], exports);
    expect(outcome.sent.readUInt32BE(GREETING.length + 12)).toBe(REP.UNKNOWN);
    expect(outcome.sent.toString()).not.toContain('secret');
    expect(outcome.warnings).toEqual([
      'export "broken" cannot be opened: /secret/path: its L1 table is odd',
    ]);
    expect(outcome.state).toBe('open');
  });
});

describe('other options', () => {
  it('acknowledges NBD_OPT_ABORT and hangs up', () => {
    const outcome = negotiate([clientFlags(), option(OPT.ABORT)]);
    expect(outcome).toMatchObject({ state: 'close', reason: '' });
    expect(outcome.sent.subarray(GREETING.length)).toEqual(optionReply(2, REP.ACK));
  });

  it.each([0, 4, 5, 12, 13, 0xffffffff])('does not support option %i', (type) => {
    const replies = answer(option(type, Buffer.from('data')), option(OPT.LIST));
    expect(replies.readUInt32BE(8)).toBe(type);
    expect(replies.readUInt32BE(12)).toBe(REP.UNSUP);
    expect(replies.subarray(-20)).toEqual(optionReply(3, REP.ACK));
  });

  it('hangs up when an option does not begin with IHAVEOPT', () => {
    const wrong = option(OPT.LIST);
    wrong[7]! ^= 1;
    expect(negotiate([clientFlags(), wrong])).toMatchObject({ state: 'close', sent: GREETING });
  });

  it('skips an option of 32 MiB without keeping it, and says that it is too long', () => {
    const header = Buffer.concat([Buffer.from('IHAVEOPT'), be([32, 6], [32, 32 * 1024 * 1024])]);
    const chunk = Buffer.alloc(64 * 1024);
    const chunks = [clientFlags(), header, ...Array<Buffer>(512).fill(chunk), option(OPT.LIST)];
    const outcome = negotiate(chunks);
    expect(outcome.sent.readUInt32BE(GREETING.length + 12)).toBe(REP.TOO_BIG);
    expect(outcome.sent.subarray(-20)).toEqual(optionReply(3, REP.ACK));
    expect(outcome.mostKept).toBe(0);
  });

  it('hangs up when an option announces more than 32 MiB', () => {
    const header = Buffer.concat([
      Buffer.from('IHAVEOPT'),
      be([32, 6], [32, 32 * 1024 * 1024 + 1]),
    ]);
    expect(negotiate([clientFlags(), header]).state).toBe('close');
  });

  it('hangs up on a client that never comes to an end', () => {
    const options = Array<Buffer>(10_001).fill(option(OPT.INFO, infoData('disk')));
    expect(negotiate([clientFlags(), ...options.slice(1)]).state).toBe('open');
    const { state, reason } = negotiate([clientFlags(), ...options]);
    expect({ state, reason }).toEqual({ state: 'close', reason: 'more than 10000 options' });
  });
});

describe('delivery', () => {
  const optionArbitrary = fc.oneof(
    fc.constantFrom(option(OPT.LIST), option(OPT.ABORT), option(8), option(OPT.STARTTLS)),
    fc
      .tuple(fc.constantFrom(OPT.INFO, OPT.GO), fc.constantFrom('', 'disk', 'disk/1', 'no'))
      .map(([type, name]) => option(type, infoData(name, [0, 1, 2, 3]))),
    fc.uint8Array({ maxLength: 40 }).map((data) => option(OPT.INFO, data)),
    fc.constantFrom('', 'disk', 'no').map((name) => option(OPT.EXPORT_NAME, Buffer.from(name))),
    fc.constantFrom(20_000, 16_385).map((length) => option(OPT.GO, Buffer.alloc(length))),
  );

  it('does not matter: the same bytes in any pieces have the same outcome', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(0, 1, 3, 7),
        fc.array(optionArbitrary, { maxLength: 6 }),
        fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 20 }),
        (flags, options, cuts) => {
          const bytes = Buffer.concat([clientFlags(flags), ...options, Buffer.from('request')]);
          const chunks: Buffer[] = [];
          for (let at = 0, cut = 0; at < bytes.length; cut++) {
            const length = cuts[cut % cuts.length]!;
            chunks.push(bytes.subarray(at, at + length));
            at += length;
          }
          const whole = negotiate([bytes]);
          const pieces = negotiate(chunks);
          expect(pieces.sent).toEqual(whole.sent);
          expect(pieces.state).toBe(whole.state);
          if (whole.state === 'transmission') expect(pieces.rest).toEqual(whole.rest);
          expect(pieces.mostKept).toBeLessThan(16 * 1024 + 100);
        },
      ),
      { numRuns: 200 },
    );
  });

  it('does not matter byte by byte either', () => {
    const bytes = Buffer.concat([
      clientFlags(),
      option(OPT.LIST),
      option(OPT.INFO, infoData('disk', [3])),
      option(OPT.GO, infoData('disk/1')),
      Buffer.from('request'),
    ]);
    const single = Array.from(bytes, (_, index) => bytes.subarray(index, index + 1));
    const outcome = negotiate(single);
    expect(outcome.sent).toEqual(negotiate([bytes]).sent);
    expect(outcome).toMatchObject({ state: 'transmission', exportName: 'disk/1' });
    expect(outcome.rest.toString()).toBe('request');
  });
});
