/** Runs {@link reader-child.ts} and watches over it. */

import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import type { Report } from './reader-child.ts';

const TEST_DIRECTORY = join(import.meta.dirname, '..');

/** After this long without an answer the process is ended, and the image counts as a hang. */
const WATCHDOG_MS = 10_000;

/** An answer, or how the process ended without one. */
export type Outcome = Report | { died: string };

/** A process that reads one image after another, and is started anew when one kills it. */
export class ReaderProcess {
  readonly #program: string;
  #child: ChildProcess | undefined;

  private constructor(program: string) {
    this.#program = program;
  }

  /** Bundles the program, which is TypeScript, and gets ready to start it. */
  static async create(): Promise<ReaderProcess> {
    const directory = join(TEST_DIRECTORY, '.cache');
    mkdirSync(directory, { recursive: true });
    const program = join(directory, `reader-${process.pid}.mjs`);
    await build({
      entryPoints: [join(import.meta.dirname, 'reader-child.ts')],
      outfile: program,
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      packages: 'external',
      logLevel: 'silent',
    });
    return new ReaderProcess(program);
  }

  /** Has the process read an image. */
  async read(path: string): Promise<Outcome> {
    const child = (this.#child ??= fork(this.#program, {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    }));
    let said = '';
    const listen = (chunk: Buffer): void => {
      said = (said + chunk.toString()).slice(-4000);
    };
    child.stderr?.on('data', listen);
    const outcome = await new Promise<Outcome>((resolve) => {
      const timer = setTimeout(() => {
        child.kill('SIGKILL');
        finish({ died: `no answer within ${WATCHDOG_MS} ms` });
      }, WATCHDOG_MS);
      const onExit = (code: number | null, signal: string | null): void =>
        finish({ died: `exit ${code ?? signal}: ${said}` });
      const finish = (result: Outcome): void => {
        clearTimeout(timer);
        child.off('message', finish);
        child.off('exit', onExit);
        resolve(result);
      };
      child.on('message', finish);
      child.on('exit', onExit);
      child.send(path);
    });
    child.stderr?.off('data', listen);
    if ('died' in outcome) this.#child = undefined;
    return outcome;
  }

  /** Ends the process. */
  close(): void {
    this.#child?.kill();
    this.#child = undefined;
    rmSync(this.#program, { force: true });
  }
}
