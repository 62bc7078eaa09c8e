import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { ErrorLog } from '../../../src/export/fuse/error-log.ts';
import { FileTree } from '../../../src/export/fuse/file-tree.ts';
import { nativeOperations } from '../../../src/export/fuse/native-operations.ts';
import { directoryOf, fileOf, textFile, TREE_OPTIONS } from './wire.ts';

const broken = new MemoryDevice(new Uint8Array(100));
broken.read = () => {
  throw new Qcow2Error('CORRUPT', 'it is reserved', { structure: 'L2 entry 3' });
};

const log: string[] = [];
const tree = new FileTree(TREE_OPTIONS, () => [
  textFile('file', 'hello'),
  directoryOf('folder', [textFile('inner', 'x')]),
  fileOf('broken', broken),
]);
const operations = nativeOperations(tree, new ErrorLog((line) => log.push(line)));

/** What an operation gave its callback. */
function answer(ask: (callback: (errno: number, ...result: unknown[]) => void) => void): unknown[] {
  let result: unknown[] | undefined;
  ask((errno, ...rest) => {
    expect(result).toBeUndefined();
    result = [errno + 0, ...rest];
  });
  return result!;
}

function read(path: string, length: number, offset: number): [unknown, string] {
  const target = Buffer.alloc(length, '-');
  const [, handle] = answer((callback) => operations.open(path, 0, callback));
  const [count] = answer((callback) =>
    operations.read(path, handle as number, target, length, offset, callback),
  );
  return [count, target.toString()];
}

describe('nativeOperations', () => {
  it('getattr', () => {
    const [errno, stat] = answer((callback) => operations.getattr('/folder/inner', callback));
    expect(errno).toBe(0);
    expect(stat).toMatchObject({ size: 1, mode: 0o100444, uid: 1000, gid: 1001, nlink: 1 });
    expect(answer((callback) => operations.getattr('/folder/none', callback))).toEqual([-2]);
    expect(answer((callback) => operations.getattr('/file/none', callback))).toEqual([-2]);
  });

  it('readdir', () => {
    const [errno, names] = answer((callback) => operations.readdir('/', callback));
    expect([errno, names]).toEqual([0, ['.', '..', 'file', 'folder', 'broken']]);
    expect(answer((callback) => operations.readdir('/file', callback))[0]).toBe(-20);
  });

  it('open, for reading only', () => {
    expect(answer((callback) => operations.open('/file', 1, callback))).toEqual([-30]);
    expect(answer((callback) => operations.open('/none', 0, callback))).toEqual([-2]);
  });

  it('read, up to the end', () => {
    expect(read('/file', 5, 0)).toEqual([5, 'hello']);
    expect(read('/file', 5, 3)).toEqual([2, 'lo---']);
    expect(read('/file', 5, 99)).toEqual([0, '-----']);
    expect(read('/folder', 5, 0)[0]).toBe(-21);
  });

  it('tells a failure by its number and logs it once', () => {
    expect(read('/broken', 5, 0)[0]).toBe(-5);
    expect(read('/broken', 5, 0)[0]).toBe(-5);
    expect(log).toEqual(['broken: L2 entry 3: it is reserved']);
  });

  it('statfs', () => {
    const [errno, statfs] = answer((callback) => operations.statfs('/', callback));
    expect([errno, statfs]).toMatchObject([0, { bsize: 4096, blocks: 256, namemax: 255 }]);
  });
});
