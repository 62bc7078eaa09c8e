/** What QEMU says that a persistent bitmap marks. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, rmSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { DirtyRange } from '../../src/index.ts';
import { run } from '../support/qemu.ts';

interface NbdExtent {
  offset: number;
  length: number;
  type: number;
}

function endOf({ offset, length }: DirtyRange): number {
  return offset + length;
}

/** What qemu-nbd says that a bitmap marks, neighbours merged. */
export async function dirtyAccordingToQemu(image: string, bitmap: string): Promise<DirtyRange[]> {
  const socket = `${image}.sock`;
  const server = spawn('qemu-nbd', ['-r', '-t', '-f', 'qcow2', '-B', bitmap, '-k', socket, image]);
  try {
    while (!existsSync(socket) && server.exitCode === null) await delay(10);
    const uri = `nbd+unix:///?socket=${socket}`;
    const map = run('nbdinfo', ['--json', `--map=qemu:dirty-bitmap:${bitmap}`, uri]);
    const ranges: DirtyRange[] = [];
    for (const { offset, length, type } of JSON.parse(map) as NbdExtent[]) {
      if (type === 0) continue;
      const last = ranges.at(-1);
      if (last !== undefined && endOf(last) === offset) last.length += length;
      else ranges.push({ offset, length });
    }
    return ranges;
  } finally {
    server.kill();
    if (server.exitCode === null) await once(server, 'exit');
    rmSync(socket, { force: true });
  }
}
