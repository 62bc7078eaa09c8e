import { expect, test, describe } from 'vitest';
import { formatSize, formatSizeWithBytes, parseSize } from '../../src/cli/size.ts';
import { describePeers } from '../support/peers.ts';
import { makeRaw, qemu, run, scratch } from '../operations/scratch.ts';

describe('parseSize', () => {
  test.each([
    ['0', 0],
    ['1', 1],
    ['512b', 512],
    ['1k', 1024],
    ['1K', 1024],
    ['1.5G', 1610612736],
    ['5.k', 5120],
    ['1.0', 1],
    ['0.0001k', 0],
    ['4.0005k', 4097],
    ['4.0004k', 4096],
    ['0x10', 16],
    ['0X1F', 31],
    ['0x10k', 16384],
    ['0x1b', 27],
    ['010', 10],
    ['+5', 5],
    [' 1k', 1024],
    ['1T', 2 ** 40],
    ['7P', 7 * 2 ** 50],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ])('%s', (text, bytes) => {
    expect(parseSize(text, 'the size')).toBe(bytes);
  });

  const malformed = ['', 'k', '.5k', '.k', '1.5', '1.5b', '1e3', '1kk', '1KiB', '1k ', '-1', 'inf'];
  test.each([...malformed, 'nan', '1..5k', '0x1.8k', '0x', '1,5k', '１'])('refuses %j', (text) => {
    expect(() => parseSize(text, 'the size')).toThrow(
      `the size '${text}' is not a size; give bytes, or a number with a suffix k, M, G, T, P or E`,
    );
  });

  test.each(['8P', '8E', '16E', '9007199254740992', '99999999999999999999', '0xffffffffffffffff'])(
    'refuses %s as too large',
    (text) => {
      expect(() => parseSize(text, 'the size')).toThrow(`the size '${text}' is too large`);
    },
  );
});

describePeers(['qemu-img'], 'parseSize beside qemu-img', () => {
  // -S takes multiples of 512 only, which shows what qemu-img made of a fraction.
  test.each([
    '4k',
    '4.0004k',
    '4.0005k',
    '0.5k',
    '.5k',
    '5.k',
    '1.0k',
    '0x200',
    '512',
    '512b',
    '1e3',
  ])('accepts %s where qemu-img does', (text) => {
    const source = makeRaw('size.raw', 4096);
    const args = ['convert', '-S', text, '-f', 'raw', '-O', 'raw', source, scratch('size.out')];
    const accepted = run('qemu-img', args).status === 0;
    let ours: boolean;
    try {
      ours = parseSize(text, 'the size') % 512 === 0;
    } catch {
      ours = false;
    }
    expect(ours).toBe(accepted);
  });
});

describePeers(['qemu-img'], 'formatSize beside qemu-img', () => {
  test.each([
    0,
    512,
    1024,
    1536,
    10240,
    102400,
    511488,
    1023488,
    1024000,
    1048064,
    1048576,
    1234568192,
    1072693248,
    1073217536,
    1610612736,
    2 ** 40,
    1.5 * 2 ** 40,
    1000 * 2 ** 30,
    1023 * 2 ** 20,
  ])('%i bytes as qemu-img prints them', (size) => {
    const path = makeRaw('size.raw', size);
    const line = /^virtual size: (.*)$/m.exec(qemu('qemu-img', 'info', '-f', 'raw', path))?.[1];
    expect(formatSizeWithBytes(size)).toBe(line);
  });
});

test('sizes that no file has here', () => {
  expect(formatSize(999)).toBe('999 B');
  expect(formatSize(1000)).toBe('0.977 KiB');
  expect(formatSize(2 ** 53)).toBe('8 PiB');
  expect(formatSize(2 ** 62)).toBe('4 EiB');
});
