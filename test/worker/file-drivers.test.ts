/** Which driver is taken where, with kernels and programs that this machine need not have. */

import { describe, expect, it } from 'vitest';
import type { FilesystemType } from '../../src/format/filesystem/index.ts';
import { mountWithDrivers } from '../../src/host/kernel-mount.ts';
import type { KernelMounted } from '../../src/host/kernel-mount.ts';
import { kernelDriverFor, noDriver, userDriverFor } from '../../src/worker/file-drivers.ts';

/** What a kernel with these drivers mounts; `tried` takes down what it is asked. */
function mountOn(
  drivers: readonly string[],
  type: FilesystemType,
  { tried = [] as string[], hasJournal = false, version = '' } = {},
): KernelMounted {
  const driver = kernelDriverFor({ type, version })!;
  const request = { ...driver, device: '/dev/loop7', directory: '/mnt', flags: ['ro'] };
  return mountWithDrivers(request, (name, more) => {
    tried.push([name, ...more].join(','));
    if (!drivers.includes(name)) return 'ENODEV';
    return hasJournal && more.length === 0 ? 'EROFS' : undefined;
  });
}

describe('the driver of the kernel', () => {
  it.each<[FilesystemType, string[], string]>([
    ['vfat', ['vfat', 'msdos'], 'vfat'],
    ['exfat', ['exfat'], 'exfat'],
    ['ntfs', ['ntfs3', 'ntfs'], 'ntfs3'],
    ['ntfs', ['ntfs'], 'ntfs'],
    ['iso9660', ['iso9660', 'udf'], 'iso9660'],
    ['f2fs', ['f2fs'], 'f2fs'],
    ['ext3', ['ext4'], 'ext4'],
    ['ext2', ['ext2'], 'ext2'],
    ['erofs', ['erofs'], 'erofs'],
    ['hfsplus', ['hfsplus'], 'hfsplus'],
  ])('for %s, of %j, is %s', (type, drivers, chosen) => {
    expect(mountOn(drivers, type)).toEqual({ type: chosen, journalIgnored: false });
  });

  it.each<[FilesystemType, string]>([
    ['f2fs', 'norecovery'],
    ['ext4', 'noload'],
    ['xfs', 'norecovery'],
    ['btrfs', 'rescue=nologreplay'],
  ])('for %s leaves a journal alone that it may not write, by %s', (type, option) => {
    const tried: string[] = [];
    const mounted = mountOn([type], type, { tried, hasJournal: true });
    expect(mounted).toEqual({ type, journalIgnored: true });
    expect(tried).toEqual([type, `${type},${option}`]);
  });

  it.each<FilesystemType>(['vfat', 'exfat', 'ntfs', 'iso9660', 'f2fs'])(
    'for %s is not another that the kernel has',
    (type) => {
      const tried: string[] = [];
      const attempt = (): unknown => mountOn(['ext4', 'xfs', 'btrfs'], type, { tried });
      expect(attempt).toThrow(/this kernel has no driver for/);
      expect(tried).toEqual(kernelDriverFor({ type, version: '' })!.types);
    },
  );

  it('gives owners to the files of those without, and only reads what it must not write', () => {
    const lacking = (type: FilesystemType) => kernelDriverFor({ type, version: '' })!.lacksOwners;
    expect((['vfat', 'exfat', 'ntfs'] as const).map(lacking)).toEqual([true, true, true]);
    expect((['ext4', 'f2fs', 'iso9660'] as const).map(lacking)).toEqual([false, false, false]);
    expect(kernelDriverFor({ type: 'iso9660', version: '' })!.readsOnly).toBe(true);
    expect(kernelDriverFor({ type: 'f2fs', version: '' })!.readsOnly).toBe(false);
  });
});

describe('the program for those who may not mount', () => {
  const job = {
    file: '/m/disk.raw',
    directory: '/mnt',
    readOnly: true,
    allowOther: false,
    needsRecovery: false,
  };

  it.each<[FilesystemType, string, string]>([
    ['vfat', 'fusefat', '-f -o ro /m/disk.raw /mnt'],
    ['exfat', 'mount.exfat-fuse', '-o ro /m/disk.raw /mnt'],
    ['ntfs', 'ntfs-3g', '-o no_detach,ro /m/disk.raw /mnt'],
    ['iso9660', 'fuseiso', '-n /m/disk.raw /mnt -f -o ro'],
    ['ext4', 'fuse2fs', '-f -o ro,fakeroot /m/disk.raw /mnt'],
  ])('for %s is %s', (type, program, args) => {
    const find = (name: string) => (name === program ? `/usr/bin/${name}` : undefined);
    const found = userDriverFor(type, find)!;
    expect(found.path).toBe(`/usr/bin/${program}`);
    expect(found.driver.args(job).join(' ')).toBe(args);
  });

  it('is not known for f2fs', () => expect(userDriverFor('f2fs', () => '/x')).toBeUndefined());
});

describe('where there is neither', () => {
  it.each<[FilesystemType, string]>([
    ['vfat', 'modprobe vfat; or install the package fusefat'],
    ['exfat', 'modprobe exfat; or install the package exfat-fuse'],
    ['ntfs', 'modprobe ntfs3; or install the package ntfs-3g'],
    ['iso9660', 'modprobe iso9660; or install the package fuseiso'],
    ['f2fs', 'modprobe f2fs'],
    ['apfs', 'install the package apfs-fuse'],
  ])('for %s it is told what to load or install', (type, words) => {
    const error = noDriver(
      type,
      userDriverFor(type, () => undefined),
    );
    expect(error.message).toMatch(
      new RegExp(`^this kernel has no driver for ${type}; .*${words}$`),
    );
  });
});
