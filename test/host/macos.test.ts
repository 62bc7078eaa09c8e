import { describe, expect, it } from 'vitest';
import { macUnmountCommands, parseOpenFiles, parseProcessStart } from '../../src/host/macos.ts';

describe('unmounting', () => {
  it('is tried with umount(8), then with diskutil(8), by force if so asked', () => {
    expect(macUnmountCommands('/a b', false)).toEqual([
      ['umount', '/a b'],
      ['diskutil', 'unmount', '/a b'],
    ]);
    expect(macUnmountCommands('/a b', true)).toEqual([
      ['umount', '-f', '/a b'],
      ['diskutil', 'unmount', 'force', '/a b'],
    ]);
  });
});

describe('what ps(1) tells', () => {
  it.each([
    ['Ss   Mon Nov 23 19:28:56 2026\n', 'Mon Nov 23 19:28:56 2026'],
    ['S+   Sun Nov  1 09:01:02 2026    \n', 'Sun Nov 1 09:01:02 2026'],
    ['Z    Mon Nov 23 19:28:56 2026\n', ''],
    ['', undefined],
    [undefined, undefined],
  ])('%j is a start of %j', (text, start) => expect(parseProcessStart(text)).toBe(start));
});

describe('what lsof(8) tells', () => {
  it('is processes and their names', () => {
    expect(parseOpenFiles('p12\ncbash\nfcwd\np345\ncFinder Helper\nf3\nf4\n')).toEqual([
      { pid: 12, name: 'bash' },
      { pid: 345, name: 'Finder Helper' },
    ]);
    expect(parseOpenFiles(undefined)).toEqual([]);
    expect(parseOpenFiles('cnobody\n')).toEqual([]);
  });
});
