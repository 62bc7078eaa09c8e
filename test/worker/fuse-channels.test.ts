import { describe, expect, it } from 'vitest';
import {
  channelsToTry,
  checkFilesPossible,
  checkLazyPossible,
} from '../../src/worker/fuse-channels.ts';
import { placesOnMac } from '../../src/worker/fuse-state.ts';

describe('channels', () => {
  it('on Linux are the kernel first', () => {
    expect(channelsToTry('auto', 'linux')).toEqual(['kernel', 'fuse-native']);
    expect(channelsToTry('kernel', 'linux')).toEqual(['kernel']);
    expect(channelsToTry('fuse-native', 'linux')).toEqual(['fuse-native']);
  });

  it.each(['darwin', 'freebsd'] as const)('on %s are fuse-native alone', (platform) => {
    expect(channelsToTry('auto', platform)).toEqual(['fuse-native']);
    expect(channelsToTry('fuse-native', platform)).toEqual(['fuse-native']);
    expect(() => channelsToTry('kernel', platform)).toThrow('the channel kernel needs Linux');
  });
});

it('what only Linux can is refused elsewhere', () => {
  checkFilesPossible('linux');
  checkLazyPossible('linux');
  expect(() => checkFilesPossible('darwin')).toThrow(/mount --fs needs Linux; .*hdiutil attach/);
  expect(() => checkFilesPossible('freebsd')).toThrow(/mount --fs needs Linux; .*partitions/);
  expect(() => checkLazyPossible('darwin')).toThrow(/--lazy needs Linux; .*--force/);
});

it('records are where macOS does not remove them', () => {
  expect(placesOnMac(0, '/var/root')).toEqual(['/var/run/qcow2']);
  expect(placesOnMac(501, '/Users/ada')).toEqual(['/Users/ada/Library/Application Support/qcow2']);
});
