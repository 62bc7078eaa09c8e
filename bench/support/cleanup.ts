/**
 * What must be undone however a run ends: mounts, servers, sockets and the temporary directory.
 *
 * Undone last in, first out, once, on a normal end, on an error and on SIGINT, SIGTERM and SIGHUP.
 */

type Undo = () => void | Promise<void>;

/** A stack of things to undo. */
export class Cleanup {
  readonly #entries: { what: string; undo: Undo }[] = [];
  #running: Promise<void> | undefined;

  /** Set once the run was interrupted; measurements that fail from then on are not news. */
  interrupted = false;

  /**
   * Registers `undo`.
   *
   * @param what names it in the message if it fails
   * @returns a function that undoes it now; later calls, and the end of the run, do nothing more
   */
  add(what: string, undo: Undo): () => Promise<void> {
    const entry = { what, undo };
    this.#entries.push(entry);
    return async () => {
      const index = this.#entries.indexOf(entry);
      if (index < 0) return;
      this.#entries.splice(index, 1);
      await undo();
    };
  }

  /** Undoes everything; what fails is reported on stderr and does not stop the rest. */
  run(): Promise<void> {
    this.#running ??= this.#undoAll();
    return this.#running;
  }

  async #undoAll(): Promise<void> {
    for (let entry = this.#entries.pop(); entry !== undefined; entry = this.#entries.pop()) {
      try {
        await entry.undo();
      } catch (error) {
        process.stderr.write(`bench: cleaning up ${entry.what}: ${String(error)}\n`);
      }
    }
  }

  /** Makes SIGINT, SIGTERM and SIGHUP undo everything and end the process. */
  handleSignals(): void {
    for (const [signal, number] of [
      ['SIGINT', 2],
      ['SIGTERM', 15],
      ['SIGHUP', 1],
    ] as const) {
      process.on(signal, () => {
        if (this.interrupted) return;
        this.interrupted = true;
        process.stderr.write(`\nbench: ${signal}, cleaning up\n`);
        void this.run().then(() => process.exit(128 + number));
      });
    }
  }
}
