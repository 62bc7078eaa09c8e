import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import {
  checkImage as checkImageSync,
  openForCheck,
  openForRepair,
  repairImage as repairImageSync,
} from '../../src/index.ts';
import type { CheckProblem, Image } from '../../src/index.ts';
import { checkImage, openImage, repairImage } from '../../src/promises.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

/** An image in which more clusters than fit into one message are counted and not used. */
function makeLeaks(count: number): string {
  const path = join(temporaryDirectory(), 'disk.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', path, '64M');
  // A new image has four clusters.
  const bytes = Buffer.alloc((4 + count) * 65_536);
  readFileSync(path).copy(bytes);
  const block = Number(bytes.readBigUInt64BE(65_536));
  for (let cluster = 4; cluster < 4 + count; cluster++) bytes.writeUInt16BE(1, block + cluster * 2);
  writeFileSync(path, bytes);
  return path;
}

function qcow2(image: Image): Image & { format: 'qcow2' } {
  if (image.format !== 'qcow2') throw new Error('it is qcow2');
  return image;
}

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'checks in a thread', () => {
  it('say what checks here say, and tell of each problem', async () => {
    const path = makeLeaks(200);
    const [there, here]: [CheckProblem[], CheckProblem[]] = [[], []];
    const result = await checkImage(path, { onProblem: (problem) => there.push(problem) });
    using image = openForCheck(path);
    expect(result).toEqual(
      checkImageSync(qcow2(image), { onProblem: (problem) => here.push(problem) }),
    );
    expect(result.leaks).toBe(200);
    expect(there).toEqual(here);
    expect(there).toHaveLength(200);
  });

  it('repair what repairs here repair', async () => {
    const path = makeLeaks(70);
    const twin = `${path}.twin`;
    copyFileSync(path, twin);
    const problems: CheckProblem[] = [];
    const onProblem = (problem: CheckProblem) => problems.push(problem);
    const result = await repairImage(path, { fix: 'leaks', onProblem });
    expect(result).toMatchObject({ 'leaks-fixed': 70, 'check-errors': 0 });
    expect(problems.filter(({ isRepaired }) => isRepaired)).toHaveLength(70);
    const image = openForRepair(twin);
    expect({ ...result, filename: twin }).toEqual(repairImageSync(qcow2(image), { fix: 'leaks' }));
    image.close();
    expect(readFileSync(path).equals(readFileSync(twin))).toBe(true);
    expect(qemuImgJson('check', path)).not.toHaveProperty('leaks');
    // The file is no longer locked.
    qemuIo(path, ['write -q 0 64k']);
  });

  it('fail as checks here fail', async () => {
    const directory = temporaryDirectory();
    await expect(checkImage(join(directory, 'none'))).rejects.toMatchObject({ code: 'HOST' });
    const raw = join(directory, 'disk.raw');
    writeFileSync(raw, 'x'.repeat(512));
    await expect(checkImage(raw)).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    const path = makeLeaks(1);
    const held = await openImage(path, { writable: true });
    await expect(repairImage(path, { fix: 'all' })).rejects.toMatchObject({ code: 'LOCKED' });
    await held.close();
  });
});

describePeers(['qemu-img', 'koffi'], 'bitmaps in a thread', () => {
  function makeDisk(size = '4M'): string {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, size);
    return path;
  }

  it('are added, changed, merged and removed', async () => {
    const image = await openImage(makeDisk(), { writable: true });
    await image.addBitmap('a', { granularity: 4096 });
    await image.addBitmap('b', { isEnabled: false });
    await image.write(new Uint8Array(5000), 10_000);
    await image.mergeBitmap('b', 'a');
    await image.disableBitmap('a');
    await image.markInBitmap('a', [{ offset: 1_000_000, length: 1 }]);
    await image.enableBitmap('b');
    await image.write(new Uint8Array(1), 2_000_000);
    expect(await image.dirtyRanges('a')).toEqual([
      { offset: 8192, length: 8192 },
      { offset: 999_424, length: 4096 },
    ]);
    expect(await image.dirtyRanges('b')).toEqual([
      { offset: 0, length: 65_536 },
      { offset: 1_966_080, length: 65_536 },
    ]);
    await image.clearBitmap('a');
    expect(await image.dirtyRanges('a')).toEqual([]);
    const other = await openImage(makeDisk(), { writable: true });
    await other.addBitmap('c', { granularity: 512 });
    await other.mergeBitmap('c', { image, name: 'b' });
    expect(await other.dirtyRanges('c')).toEqual(await image.dirtyRanges('b'));
    await image.removeBitmap('b');
    expect((await image.bitmaps()).map(({ name }) => name)).toEqual(['a']);
    await Promise.all([image.close(), other.close()]);
    for (const { path } of [image, other]) {
      expect(qemuImgJson('check', path)).not.toHaveProperty('leaks');
    }
  });

  it('are refused what cannot be', async () => {
    const image = await openImage(makeDisk(), { writable: true });
    const small = await openImage(makeDisk('1M'), { writable: true });
    await small.addBitmap('a');
    await image.addBitmap('a');
    for (const [code, refused] of [
      ['INVALID_OPTION', () => image.addBitmap('a')],
      ['INVALID_OPTION', () => image.addBitmap('b', { granularity: 7 })],
      ['INVALID_OPTION', () => image.mergeBitmap('a', { image: small, name: 'a' })],
      ['NOT_FOUND', () => image.mergeBitmap('a', { image: small, name: 'b' })],
      ['NOT_FOUND', () => image.removeBitmap('b')],
      ['OUT_OF_RANGE', () => image.markInBitmap('a', [{ offset: 0, length: 2 ** 30 }])],
    ] as const) {
      await expect(refused()).rejects.toMatchObject({ code });
    }
    await Promise.all([image.close(), small.close()]);
    const raw = join(temporaryDirectory(), 'disk.raw');
    writeFileSync(raw, 'x'.repeat(512));
    const rawImage = await openImage(raw, { format: 'raw', writable: true });
    await expect(rawImage.addBitmap('a')).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    await rawImage.close();
  });
});
