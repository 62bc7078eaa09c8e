/** A PC in software (QEMU without hardware acceleration) whose only disk is an NBD export. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { afterEach } from 'vitest';

/** How the disk is attached. */
const CONTROLLERS = {
  virtio: 'virtio-blk-pci,drive=disk',
  nvme: 'nvme,drive=disk,serial=1',
} as const;

/** How a machine ended. */
export interface MachineResult {
  /** QEMU's; the signal where it was killed. */
  exitCode: number | string;
  /** What came over the serial line, in lines; without the kernel's last words, which are always there. */
  console: string[];
  stderr: string;
}

/** A machine takes six seconds to boot and shut down, and many times that on a host that is busy. */
const TIMEOUT_MS = 200_000;

/** Machines for tests: those that run when a test ends are killed. */
export function machines(): (
  drive: string,
  controller: keyof typeof CONTROLLERS,
) => Promise<MachineResult> {
  const running = new Set<ChildProcess>();
  afterEach(async () => {
    for (const child of running) {
      child.kill('SIGKILL');
      await new Promise((resolve) => child.on('close', resolve));
    }
  });
  return (drive, controller) => {
    const hardware = ['-nodefaults', '-no-user-config', '-display', 'none', '-m', '256'];
    const disk = `file=${drive},format=raw,if=none,id=disk,discard=unmap,cache=none`;
    const child = spawn(
      'qemu-system-x86_64',
      [
        ...['-accel', 'tcg', ...hardware, '-no-reboot', '-serial', 'stdio'],
        ...['-drive', disk, '-device', CONTROLLERS[controller]],
      ],
      { stdio: ['ignore', 'pipe', 'pipe'], timeout: TIMEOUT_MS, killSignal: 'SIGKILL' },
    );
    running.add(child);
    let console = '';
    let stderr = '';
    child.stdout.on('data', (chunk: Buffer) => (console += chunk.toString('latin1')));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    return new Promise((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (code, signal) => {
        running.delete(child);
        resolve({ exitCode: code ?? signal ?? '', console: linesOf(console), stderr });
      });
    });
  };
}

function linesOf(text: string): string[] {
  const lines = text.split(/\r?\n/);
  return lines.filter((line) => line !== '' && !line.endsWith('reboot: Power down'));
}
