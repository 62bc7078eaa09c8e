/** A qemu-io that keeps an image open, and the locks that are held on files. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync } from 'node:fs';

/** A qemu-io with an open image. */
export interface LockHolderProcess extends AsyncDisposable {
  pid: number;
}

/**
 * Starts qemu-io on an image and waits until it has opened it.
 * @throws {Error} if it cannot open it, with what it said
 */
export async function holdWithQemuIo(args: readonly string[]): Promise<LockHolderProcess> {
  const child = spawn('qemu-io', args, { stdio: 'pipe' });
  const exited = once(child, 'exit');
  await answerOf(child);
  return {
    pid: child.pid!,
    async [Symbol.asyncDispose]() {
      child.stdin.end('quit\n');
      await exited;
    },
  };
}

/** Asks for the disk's length: the answer comes once the image is open. */
function answerOf(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    let errors = '';
    child.stderr!.on('data', (data: Buffer) => (errors += data.toString()));
    child.stdout!.once('data', () => resolve());
    child.once('error', reject);
    child.once('exit', () => reject(new Error(errors)));
    child.stdin!.write('length\n');
  });
}

/** The bytes of a file that a process has locked, as in `[100, 201, 203]`. */
export function lockedBytes(pid: number | 'self', path: string): number[] {
  const { ino } = statSync(path);
  const bytes = new Set<number>();
  for (const fd of readdirSync(`/proc/${pid}/fdinfo`)) {
    for (const lock of locksOf(pid, fd)) {
      if (lock.ino !== ino) continue;
      for (let byte = lock.start; byte <= lock.end; byte++) bytes.add(byte);
    }
  }
  return [...bytes].sort((a, b) => a - b);
}

function locksOf(pid: number | 'self', fd: string): { ino: number; start: number; end: number }[] {
  try {
    const text = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8');
    return [...text.matchAll(/^lock:.* OFDLCK .*:(\d+) (\d+) (\d+)$/gm)].map((match) => ({
      ino: Number(match[1]),
      start: Number(match[2]),
      end: Number(match[3]),
    }));
  } catch {
    // The descriptor that listed the directory is closed by now.
    return [];
  }
}
