/** Runs a command ({@link command-child.ts}) as a process of its own, and kills it at any moment. */

import { spawn } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { build } from 'esbuild';

/** How a run ended. */
export interface Ending {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  /** Milliseconds from its start to its end. */
  duration: number;
}

/** When a process is sent a signal: at most one of the two. */
export interface Kill {
  killAfterMs?: number;
  killWhen?: () => boolean;
  /** Default SIGKILL. */
  signal?: NodeJS.Signals;
}

/** The program, bundled so that Node can run it. */
export class ProgramFile {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Bundles it. Dispose of it when done. */
  static async create(): Promise<ProgramFile> {
    // Inside the repository, where packages are found that are loaded when they are needed.
    const directory = join(import.meta.dirname, '../.cache');
    mkdirSync(directory, { recursive: true });
    const outfile = join(directory, `program-${process.pid}.mjs`);
    await build({
      entryPoints: [join(import.meta.dirname, 'command-child.ts')],
      outfile,
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      packages: 'external',
      logLevel: 'silent',
    });
    return new ProgramFile(outfile);
  }

  /** Runs `qcow2 ARGS…`, and sends it a signal at a time, or once something is so. */
  async run(
    args: readonly string[],
    { killAfterMs, killWhen, signal = 'SIGKILL' }: Kill = {},
  ): Promise<Ending> {
    const start = performance.now();
    const child = spawn(process.execPath, [this.#path, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const ended = new Promise<Pick<Ending, 'exitCode' | 'signal'>>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (exitCode, endSignal) => resolve({ exitCode, signal: endSignal }));
    });
    if (killAfterMs !== undefined) {
      await Promise.race([sleep(killAfterMs), ended]);
      child.kill(signal);
    }
    if (killWhen !== undefined) {
      while (child.exitCode === null && !killWhen()) await Promise.race([sleep(5), ended]);
      child.kill(signal);
    }
    return { ...(await ended), stdout, stderr, duration: performance.now() - start };
  }

  /** Removes the bundle. */
  dispose(): void {
    rmSync(this.#path, { force: true });
  }
}
