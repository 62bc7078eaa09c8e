import { createHash } from 'node:crypto';
import { expect, it } from 'vitest';
import { openImage as openImageSync } from '../../src/index.ts';
import { openImage } from '../../src/promises.ts';

const OVERLAY = 'images/demo-overlay.qcow2';

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

it('reads what the synchronous API reads, snapshots and extents included', async () => {
  const expected = openImageSync(OVERLAY);
  const image = await openImage(OVERLAY);
  try {
    const wanted = new Uint8Array(expected.size);
    expected.read(wanted, 0);
    const plain = new Uint8Array(image.size);
    await image.read(plain, 0);
    const shared = new Uint8Array(new SharedArrayBuffer(image.size));
    await image.read(shared, 0);
    expect([sha256(plain), sha256(shared)]).toEqual([sha256(wanted), sha256(wanted)]);
    expect(await image.extents(0, image.size)).toEqual([...expected.extents(0, image.size)]);
    expect((await image.partitionTable()).partitions).toHaveLength(2);
  } finally {
    await image.close();
    expected.close();
  }
});

it('opens snapshots, and closes them apart from the image', async () => {
  const image = await openImage('images/demo.qcow2');
  try {
    const [first] = await image.snapshots();
    const snapshot = await image.openSnapshot(first!.id);
    const bytes = new Uint8Array(4096);
    await snapshot.read(bytes, 0);
    await snapshot.close();
    await expect(snapshot.read(bytes, 0)).rejects.toMatchObject({ code: 'CLOSED' });
    await image.read(bytes, 0);
    await expect(image.openSnapshot('none')).rejects.toMatchObject({ code: 'NOT_FOUND' });
  } finally {
    await image.close();
  }
});

it('rejects with the typed error of the engine, and after close', async () => {
  await expect(openImage('no-such-file.qcow2')).rejects.toMatchObject({
    name: 'Qcow2Error',
    code: 'HOST',
    file: 'no-such-file.qcow2',
  });
  const image = await openImage('images/demo.qcow2');
  await expect(image.read(new Uint8Array(1), image.size)).rejects.toMatchObject({
    code: 'OUT_OF_RANGE',
  });
  await image.close();
  await expect(image.read(new Uint8Array(1), 0)).rejects.toMatchObject({ code: 'CLOSED' });
});
