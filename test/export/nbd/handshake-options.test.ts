import { describe, expect, it } from 'vitest';
import type { NbdExport } from '../../../src/export/nbd/exports.ts';
import { answer, EXPORTS, negotiate, TLS_STARTED } from './negotiation.ts';
import type { Outcome } from './negotiation.ts';
import {
  be,
  clientFlags,
  contextData,
  FLAGS,
  GREETING,
  infoData,
  OPT,
  option,
  optionReply,
  REP,
} from './wire.ts';

describe('NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS', () => {
  const go = option(OPT.GO, infoData('disk'));

  it.each([
    ['structured', OPT.STRUCTURED_REPLY],
    ['extended', OPT.EXTENDED_HEADERS],
  ])('agree on %s headers, and DF can be used then', (style, type) => {
    const outcome = negotiate([clientFlags(), option(type), go]);
    expect(outcome).toMatchObject({ state: 'transmission', style });
    const infoAt = GREETING.length + 20;
    expect(outcome.sent.subarray(GREETING.length, infoAt)).toEqual(optionReply(type, REP.ACK));
    const flags = outcome.sent.readUInt16BE(infoAt + 20 + 10);
    expect(flags).toBe(FLAGS | (1 << 7));
  });

  it('are not agreed on unless the client asks', () => {
    expect(negotiate([clientFlags(), go]).style).toBe('simple');
  });

  it('go from structured to extended headers, and not back', () => {
    const both = [option(OPT.STRUCTURED_REPLY), option(OPT.EXTENDED_HEADERS)];
    expect(negotiate([clientFlags(), ...both, go]).style).toBe('extended');
    const back = [option(OPT.EXTENDED_HEADERS), option(OPT.STRUCTURED_REPLY)];
    const outcome = negotiate([clientFlags(), ...back, go]);
    expect(outcome.style).toBe('extended');
    expect(outcome.sent.readUInt32BE(GREETING.length + 20 + 12)).toBe(REP.EXT_HEADER_REQD);
  });

  it.each([OPT.STRUCTURED_REPLY, OPT.EXTENDED_HEADERS])(
    'are invalid twice, and with data (%i)',
    (type) => {
      const twice = answer(option(type), option(type));
      expect(twice.readUInt32BE(20 + 12)).toBe(REP.INVALID);
      expect(answer(option(type, Buffer.from('x'))).readUInt32BE(12)).toBe(REP.INVALID);
    },
  );

  it('do not go with the export name of old clients, if headers are extended', () => {
    const options = [option(OPT.EXTENDED_HEADERS), option(OPT.EXPORT_NAME)];
    expect(negotiate([clientFlags(), ...options]).state).toBe('close');
    const structured = [option(OPT.STRUCTURED_REPLY), option(OPT.EXPORT_NAME)];
    expect(negotiate([clientFlags(), ...structured]).style).toBe('structured');
  });
});

describe('a filter of metadata contexts', () => {
  /** The transmission flags of the last export that is told of. */
  function flagsAfter(style: number, queries: readonly string[] | undefined, type: number): number {
    const name = 'disk';
    const choice =
      queries === undefined ? [] : [option(OPT.SET_META_CONTEXT, contextData(name, queries))];
    const sent = answer(option(style), ...choice, option(type, infoData(name)));
    const infoAt = sent.indexOf(be([32, type], [32, REP.INFO], [32, 12], [16, 0]));
    return sent.readUInt16BE(infoAt + 22);
  }
  const FILTER = 1 << 12;

  it.each([OPT.INFO, OPT.GO])('can be used where there are some to choose from (%i)', (type) => {
    const { EXTENDED_HEADERS, STRUCTURED_REPLY } = OPT;
    const some = ['base:allocation'];
    expect(flagsAfter(EXTENDED_HEADERS, some, type)).toBe(FLAGS | (1 << 7) | FILTER);
    expect(flagsAfter(EXTENDED_HEADERS, undefined, type)).toBe(FLAGS | (1 << 7));
    expect(flagsAfter(EXTENDED_HEADERS, ['no:such'], type)).toBe(FLAGS | (1 << 7));
    expect(flagsAfter(STRUCTURED_REPLY, some, type)).toBe(FLAGS | (1 << 7));
  });
});

describe('metadata contexts', () => {
  const bitmaps = ['one', 'two'].map((name) => ({ name, dirtyRanges: () => [] }));
  const exports: NbdExport[] = [{ ...EXPORTS[0]!, bitmaps }, EXPORTS[1]!];
  const structured = option(OPT.STRUCTURED_REPLY);
  const ALL = [
    'base:allocation',
    'qemu:allocation-depth',
    'qemu:dirty-bitmap:one',
    'qemu:dirty-bitmap:two',
  ];

  /** The contexts that are told, as id and name; undefined if that ended in an error. */
  function contextsIn(replies: Buffer): [number, string][] | undefined {
    const found: [number, string][] = [];
    for (let at = 0; at < replies.length;) {
      const type = replies.readUInt32BE(at + 12);
      const length = replies.readUInt32BE(at + 16);
      const data = replies.subarray(at + 20, at + 20 + length);
      if (type === REP.META_CONTEXT) found.push([data.readUInt32BE(0), data.toString('utf8', 4)]);
      else if (type !== REP.ACK) return undefined;
      at += 20 + length;
    }
    return found;
  }

  function list(name: string, ...queries: string[]): string[] | undefined {
    const data = contextData(name, queries);
    const { sent } = negotiate([clientFlags(), option(OPT.LIST_META_CONTEXT, data)], exports);
    const contexts = contextsIn(sent.subarray(GREETING.length));
    // Numbers mean nothing before a choice is made.
    expect(contexts?.every(([id]) => id === 0) ?? true).toBe(true);
    return contexts?.map(([, context]) => context);
  }

  function choose(name: string, queries: string[], ...more: Buffer[]): Outcome {
    const set = option(OPT.SET_META_CONTEXT, contextData(name, queries));
    return negotiate([clientFlags(), structured, set, ...more], exports);
  }

  it('are listed, all of them or those of a namespace', () => {
    expect(list('')).toEqual(ALL);
    expect(list('disk', 'base:')).toEqual(ALL.slice(0, 1));
    expect(list('disk', 'qemu:')).toEqual(ALL.slice(1));
    expect(list('disk', 'qemu:dirty-bitmap:')).toEqual(ALL.slice(2));
    expect(list('disk', 'qemu:dirty-bitmap:two', 'base:allocation')).toEqual([ALL[0], ALL[3]]);
    expect(list('disk', 'x-other:thing', 'base:nothing')).toEqual([]);
    expect(list('disk/1')).toEqual(ALL.slice(0, 2));
    expect(list('nothing')).toBeUndefined();
  });

  it('are chosen by whole names, for the export that is used then', () => {
    const outcome = choose(
      '',
      ['qemu:dirty-bitmap:two', 'base:', 'base:allocation'],
      option(OPT.GO, infoData('disk')),
    );
    expect(outcome.contexts).toEqual([ALL[0], ALL[3]]);
    const replies = outcome.sent.subarray(GREETING.length + 20, -(20 + 12 + 20));
    expect(contextsIn(replies)).toEqual([
      [1, ALL[0]],
      [4, ALL[3]],
    ]);
  });

  it('are not those of another export', () => {
    expect(
      choose('disk', ['base:allocation'], option(OPT.GO, infoData('disk/1'))).contexts,
    ).toEqual([]);
  });

  it('are those of the last choice, even of one that failed', () => {
    const none = option(OPT.SET_META_CONTEXT, contextData('disk', []));
    const wrong = option(OPT.SET_META_CONTEXT, contextData('nothing', ['base:allocation']));
    const go = option(OPT.GO, infoData('disk'));
    expect(choose('disk', ['base:allocation'], none, go).contexts).toEqual([]);
    expect(choose('disk', ['base:allocation'], wrong, go).contexts).toEqual([]);
  });

  it('cannot be chosen without structured replies', () => {
    const set = option(OPT.SET_META_CONTEXT, contextData('', ['base:allocation']));
    const { sent } = negotiate([clientFlags(), set], exports);
    expect(sent.readUInt32BE(GREETING.length + 12)).toBe(REP.INVALID);
  });

  it.each([
    ['no data', Buffer.alloc(0)],
    ['a name longer than the option', be([32, 5], [32, 0])],
    ['more queries than it holds', Buffer.concat([be([32, 0], [32, 2]), be([32, 0])])],
    ['fewer queries than it holds', Buffer.concat([be([32, 0], [32, 0]), be([32, 0])])],
    ['2^32 - 1 queries', be([32, 0], [32, 0xffffffff])],
    ['a query longer than the option', be([32, 0], [32, 1], [32, 0xffffffff])],
    ['bytes after the last query', Buffer.concat([contextData('', ['a']), Buffer.alloc(3)])],
    [
      'a query that is not UTF-8',
      Buffer.concat([be([32, 0], [32, 1], [32, 1]), Buffer.from([0xff])]),
    ],
    ['a query of 4097 bytes', contextData('', ['x'.repeat(4097)])],
  ])('are invalid with %s, and the negotiation goes on', (_, data) => {
    for (const type of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
      const outcome = negotiate(
        [clientFlags(), structured, option(type, data), option(OPT.LIST)],
        exports,
      );
      expect(outcome.sent.readUInt32BE(GREETING.length + 20 + 12)).toBe(REP.INVALID);
      expect(outcome.state).toBe('open');
    }
  });
});

describe('NBD_OPT_STARTTLS', () => {
  const start = option(OPT.STARTTLS);
  const go = option(OPT.GO, infoData('disk'));

  it('is answered, and what was agreed on before does not count', () => {
    const outcome = negotiate(
      [clientFlags(), option(OPT.STRUCTURED_REPLY), start, go],
      EXPORTS,
      'on',
    );
    expect(outcome).toMatchObject({ state: 'transmission', style: 'simple' });
    const acks = [optionReply(8, REP.ACK), optionReply(5, REP.ACK), TLS_STARTED];
    const sent = outcome.sent.subarray(GREETING.length, GREETING.length + 43);
    expect(sent).toEqual(Buffer.concat(acks));
  });

  it('is invalid twice, or with data', () => {
    for (const options of [[start, start], [option(OPT.STARTTLS, Buffer.from('x'))]]) {
      const { sent } = negotiate([clientFlags(), ...options], EXPORTS, 'require');
      const at = GREETING.length + (options.length - 1) * (20 + TLS_STARTED.length);
      expect(sent.readUInt32BE(at + 12)).toBe(REP.INVALID);
    }
  });

  it('need not come where TLS is only offered', () => {
    expect(negotiate([clientFlags(), go], EXPORTS, 'on').state).toBe('transmission');
  });

  it.each([OPT.LIST, OPT.INFO, OPT.GO, OPT.STRUCTURED_REPLY, OPT.SET_META_CONTEXT, 99])(
    'has to come before option %i where it is required',
    (type) => {
      const outcome = negotiate([clientFlags(), option(type), start, go], EXPORTS, 'require');
      expect(outcome.sent.readUInt32BE(GREETING.length + 12)).toBe(REP.TLS_REQD);
      expect(outcome.state).toBe('transmission');
    },
  );

  it('has to come before the export name of old clients, who cannot be told', () => {
    const outcome = negotiate([clientFlags(), option(OPT.EXPORT_NAME)], EXPORTS, 'require');
    expect(outcome).toMatchObject({ state: 'close', sent: GREETING });
  });

  it('need not come before goodbye', () => {
    const outcome = negotiate([clientFlags(), option(OPT.ABORT)], EXPORTS, 'require');
    expect(outcome).toMatchObject({ state: 'close', reason: '' });
    expect(outcome.sent.subarray(GREETING.length)).toEqual(optionReply(2, REP.ACK));
  });
});
