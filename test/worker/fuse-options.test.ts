import { describe, expect, it } from 'vitest';
import { nearestName } from '../../src/cli/command.ts';
import { parseFuseOptions } from '../../src/worker/fuse-options.ts';

const parse = (...lists: string[]) => parseFuseOptions(lists, nearestName);

describe('parseFuseOptions', () => {
  it('gives what is so without any', () => {
    expect(parse()).toEqual({
      flags: ['ro', 'nosuid', 'nodev'],
      allowOther: false,
      nonempty: false,
      directIo: false,
      fileMode: 0o444,
      subtype: 'qcow2',
    });
  });

  it('reads lists, several of them, with values that hold commas', () => {
    expect(parse('allow_other,noexec', 'uid=0,gid=4294967294,fsname=a\\,b\\\\c')).toMatchObject({
      flags: ['ro', 'nosuid', 'nodev', 'noexec'],
      allowOther: true,
      uid: 0,
      gid: 4_294_967_294,
      source: 'a,b\\c',
    });
  });

  it('takes what is implied, and empty items', () => {
    expect(parse('ro,,defaults,default_permissions,nosuid,nodev,')).toEqual(parse());
  });

  it.each([
    ['umask=077', 0o400],
    ['umask=022', 0o444],
    ['mode=0640', 0o440],
    ['mode=777', 0o444],
  ])('%s leaves permissions for reading only', (option, fileMode) => {
    expect(parse(option).fileMode).toBe(fileMode);
  });

  it('lets a mount that accepts writes grant them', () => {
    const options = (list: string) => parseFuseOptions([list], nearestName, { writable: true });
    expect(options('')).toMatchObject({ flags: ['nosuid', 'nodev'], fileMode: 0o644 });
    expect(options('rw')).toEqual(options(''));
    expect(options('umask=002').fileMode).toBe(0o664);
    expect(options('mode=777').fileMode).toBe(0o666);
    expect(() => options('ro')).toThrow(/^-o ro: the image is mounted for writing too/);
  });

  it.each([
    ['allow_othr', 'unknown mount option -o allow_othr; did you mean allow_other?'],
    ['usd=5', 'unknown mount option -o usd; did you mean uid?'],
    ['xxxxxxxxxxx', 'unknown mount option -o xxxxxxxxxxx'],
    ['rw', '-o rw: the image is mounted for reading only; --rw makes it writable'],
    ['uid', '-o uid needs a value: uid=…'],
    ['uid=', '-o uid needs a value: uid=…'],
    ['uid=root', "-o uid must be a number, not 'root'"],
    ['uid=4294967295', "-o uid must be a number, not '4294967295'"],
    ['umask=8', "-o umask must be an octal number like 022, not '8'"],
    ['noexec=1', '-o noexec takes no value'],
    ['subtype=a b', "-o subtype must be letters, digits, '.', '_' and '-', not 'a b'"],
  ])('refuses %s', (option, message) => {
    expect(() => parse(option)).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION', message }),
    );
  });
});
