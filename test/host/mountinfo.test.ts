import { describe, expect, it } from 'vitest';
import { findMount, isFuse, parseMountinfo, parseMountOutput } from '../../src/host/mountinfo.ts';

describe('parseMountinfo', () => {
  it('reads directories with spaces, optional fields and options', () => {
    const text = [
      '22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw',
      '60 22 0:45 / /mnt/my\\040disk\\134x ro,nosuid shared:7 master:2 - fuse.qcow2 /a\\040b ro,user_id=0',
      '61 22 0:46 / /mnt/b ro - tmpfs none rw',
      'garbage',
      '',
    ].join('\n');
    expect(parseMountinfo(text)).toEqual([
      { device: '253:0', directory: '/', type: 'ext4', source: '/dev/vda', superOptions: ['rw'] },
      {
        device: '0:45',
        directory: '/mnt/my disk\\x',
        type: 'fuse.qcow2',
        source: '/a b',
        superOptions: ['ro', 'user_id=0'],
      },
      { device: '0:46', directory: '/mnt/b', type: 'tmpfs', source: 'none', superOptions: ['rw'] },
    ]);
  });
});

describe('parseMountOutput', () => {
  it("reads macOS's mount(8)", () => {
    const text =
      '/dev/disk1s1 on / (apfs, local, read-only)\nimg on /Volumes/a (b) (macfuse, nodev)\n';
    expect(parseMountOutput(text)).toEqual([
      {
        device: 'apfs /dev/disk1s1',
        directory: '/',
        type: 'apfs',
        source: '/dev/disk1s1',
        superOptions: ['local', 'read-only'],
      },
      {
        device: 'macfuse img',
        directory: '/Volumes/a (b)',
        type: 'macfuse',
        source: 'img',
        superOptions: ['nodev'],
      },
    ]);
  });
});

it.each([
  ['fuse', true],
  ['fuse.qcow2', true],
  ['macfuse', true],
  ['osxfuse', true],
  ['fuseblk', false],
  ['apfs', false],
])('the type %s is one of FUSE: %s', (type, is) => {
  expect(isFuse({ device: '', directory: '/', type, source: '', superOptions: [] })).toBe(is);
});

describe('findMount', () => {
  it('finds what the kernel has mounted', () => {
    if (process.platform !== 'linux') return;
    expect(findMount('/proc')?.type).toBe('proc');
    expect(findMount('/no/such/place')).toBeUndefined();
  });
});
