import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { processStartTime } from '../../src/host/processes.ts';
import { cleanStale, listReports, unmount } from '../../src/worker/fuse-mounts.ts';
import { listStates, stateDirectory, writeState } from '../../src/worker/fuse-state.ts';
import type { MountState } from '../../src/worker/fuse-state.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
const state = (): string => join(directory(), 'state');

/** No process has this number: it is above the kernel's largest. */
const NO_PROCESS = 4_194_305;

function record(changes: Partial<MountState> = {}): MountState {
  return {
    id: 'abc123',
    directory: join(directory(), 'm'),
    image: '/images/disk.qcow2',
    pid: NO_PROCESS,
    startTime: '1',
    uid: process.geteuid!(),
    user: 'somebody',
    since: '2026-01-01T00:00:00.000Z',
    channel: 'kernel',
    access: 'ro',
    device: '0:999',
    madeDirectory: true,
    log: null,
    ...changes,
  };
}

beforeEach(() => {
  process.env.QCOW2_STATE_DIR = state();
});
afterEach(() => {
  delete process.env.QCOW2_STATE_DIR;
});

describe('the directory of records', () => {
  it('is made for its owner alone', () => {
    expect(stateDirectory()).toBe(state());
    expect(statSync(state()).mode & 0o777).toBe(0o700);
    expect(stateDirectory()).toBe(state());
  });

  it('is refused if others can use it, or if it is a link', () => {
    mkdirSync(state());
    chmodSync(state(), 0o777);
    expect(() => stateDirectory()).toThrow(/it is not a private directory of this user/);
    symlinkSync('/root', join(directory(), 'link'));
    process.env.QCOW2_STATE_DIR = join(directory(), 'link');
    expect(() => stateDirectory()).toThrow(expect.objectContaining({ code: 'REFUSED' }));
  });
});

describe('records', () => {
  it('come back as they were written, the oldest first', () => {
    const newer = record({ id: 'aa', since: '2026-02-01T00:00:00.000Z' });
    writeState(newer);
    writeState(record());
    expect(listStates().map(({ id }) => id)).toEqual(['abc123', 'aa']);
    expect(listStates()[1]).toMatchObject(newer);
    expect(readdirSync(state()).sort()).toEqual(['aa.json', 'abc123.json']);
  });

  it('of processes that are gone and not mounted are no mounts, and are cleared away', () => {
    mkdirSync(join(directory(), 'm'));
    writeState(record());
    writeFileSync(join(state(), 'abc123.log'), 'the last words');
    expect(listReports().filter((report) => report.state?.id === 'abc123')).toEqual([]);
    expect(cleanStale()).toEqual([]);
    expect(readdirSync(state())).toEqual([]);
    expect(existsSync(join(directory(), 'm'))).toBe(false);
  });

  it('of versions without writable mounts are those of mounts for reading', () => {
    const older: Partial<MountState> = record();
    delete older.access;
    writeState(older as MountState);
    expect(listStates()).toMatchObject([{ id: 'abc123', access: 'ro' }]);
  });

  it('of a failure that nobody was told of leave the log', () => {
    writeState(record({ failure: 'no space left on the device' }));
    writeFileSync(join(state(), 'abc123.log'), 'the last words');
    cleanStale();
    expect(readdirSync(state())).toEqual(['abc123.log']);
  });

  it('never cost a directory that was there before, or that has something in it', () => {
    for (const name of ['a', 'b']) mkdirSync(join(directory(), name));
    writeFileSync(join(directory(), 'b', 'file'), '');
    writeState(record({ id: 'aa', directory: join(directory(), 'a'), madeDirectory: false }));
    writeState(record({ id: 'bb', directory: join(directory(), 'b') }));
    cleanStale();
    expect(existsSync(join(directory(), 'a'))).toBe(true);
    expect(existsSync(join(directory(), 'b', 'file'))).toBe(true);
    expect(readdirSync(state())).toEqual([]);
  });

  it('of a process whose number was given to another are not taken for alive', () => {
    const startTime = `${Number(processStartTime(process.pid)) - 1}`;
    writeState(record({ pid: process.pid, startTime }));
    expect(listReports()).toEqual([]);
  });

  it('of a running process count as a mount wherever it is', () => {
    writeState(record({ pid: process.pid, startTime: processStartTime(process.pid)! }));
    expect(listReports()).toMatchObject([{ status: 'alive', image: '/images/disk.qcow2' }]);
    expect(cleanStale()).toEqual([]);
    expect(readdirSync(state())).toEqual(['abc123.json']);
  });
});

describe('unmount', () => {
  it('names what is in the way', async () => {
    const nothing = unmount(join(directory(), 'm'), { lazy: false, force: false });
    await expect(nothing).rejects.toThrow(/no image is mounted there; qcow2 mounts lists/);
    const other = unmount('/proc', { lazy: false, force: true });
    await expect(other).rejects.toThrow(/something else is mounted there \(proc\)/);
  });
});
