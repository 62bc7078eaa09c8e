import { describe, expect, it } from 'vitest';
import { platformErrno } from '../../../src/export/fuse/errno.ts';
import { missingFuse, nativeOptions } from '../../../src/export/fuse/native-options.ts';

const OPTIONS = {
  directory: '/mnt',
  source: '/images/a,b.qcow2',
  subtype: 'qcow2',
  flags: ['ro', 'nosuid', 'relatime', 'direct_io'],
  allowOther: false,
};

describe('the options for libfuse', () => {
  it('have the flags behind the type on Linux', () => {
    expect(nativeOptions(OPTIONS, 'linux')).toEqual({
      fsname: '/images/a\\,b.qcow2',
      subtype: 'qcow2,ro,nosuid,relatime,direct_io',
    });
  });

  it('have them behind the name on macOS, and only those that it knows', () => {
    expect(nativeOptions(OPTIONS, 'darwin')).toEqual({
      fsname: '/images/a\\,b.qcow2,volname=a\\,b.qcow2,noappledouble,ro,nosuid,direct_io',
    });
  });

  it.each(['linux', 'darwin'] as const)('stay within their bound on %s', (platform) => {
    const options = nativeOptions({ ...OPTIONS, source: `/${'x'.repeat(5000)}` }, platform);
    expect(Object.values(options).join(',').length).toBeLessThan(960);
  });
});

describe('where fuse-native does not mount', () => {
  const with_ = (...paths: string[]) => missingFuse((path) => paths.includes(path), 'darwin');

  it('it is told what to install', () => {
    expect(with_()?.problem).toBe('FUSE for macOS is not installed');
    expect(with_()?.hint).toContain('https://osxfuse.github.io');
    expect(with_('/Library/Filesystems/macfuse.fs')?.problem).toMatch(/not to macFUSE 4/);
  });

  it('nothing is, if that is not what is missing', () => {
    expect(with_('/Library/Filesystems/osxfuse.fs')).toBeUndefined();
    expect(missingFuse(() => false, 'linux')).toBeUndefined();
  });
});

it('error numbers are those of the platform', () => {
  expect([30, 38, 95, 122].map((errno) => platformErrno(errno, 'darwin'))).toEqual([
    30, 78, 102, 69,
  ]);
  expect(platformErrno(122, 'linux')).toBe(122);
});
