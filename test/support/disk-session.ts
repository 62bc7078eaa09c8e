/** An image that is written to, beside the model of what it has to hold. */

import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { commitImage } from '../../src/operations/commit.ts';
import type { Qcow2Image } from '../../src/qcow2/image.ts';
import type { DiskModel } from './disk-model.ts';
import { performOn } from './guest-operations.ts';
import type { GuestOperation } from './guest-operations.ts';

/** Opens the image anew. */
export type Opener = () => Qcow2Image;

/** An open image and its model, to which the same is done. */
export class DiskSession {
  readonly model: DiskModel;
  /** How many operations there have been; the next one's data bears this number. */
  sequence = 1;
  #image: Qcow2Image | undefined;
  readonly #open: Opener;

  constructor(model: DiskModel, open: Opener) {
    this.model = model;
    this.#open = open;
  }

  /** The open image. It is opened when it is wanted, for opening may fail. */
  get image(): Qcow2Image {
    return (this.#image ??= this.#open());
  }

  /**
   * Does an operation to the image and the model.
   * @returns whether it was done; see {@link isRefusal}
   */
  perform(operation: GuestOperation): boolean {
    const sequence = this.sequence++;
    try {
      this.#performOnImage(operation, sequence);
    } catch (error) {
      if (isRefusal(operation, error)) return false;
      throw error;
    }
    this.model.perform(operation, sequence);
    return true;
  }

  /** Does an operation that failed before, with the same data. */
  retry(operation: GuestOperation): boolean {
    this.sequence--;
    return this.perform(operation);
  }

  close(): void {
    const image = this.#image;
    image?.close();
    this.#image = undefined;
  }

  #performOnImage(operation: GuestOperation, sequence: number): void {
    if (operation.kind === 'reopen') {
      this.close();
      this.#image = this.#open();
    } else if (operation.kind === 'commit') {
      commitImage(this.image as ChainedQcow2Image);
    } else {
      performOn(this.image, operation, sequence);
    }
  }
}

/**
 * What images may refuse: compressed writes, more sharing than their counts can hold, and another
 * size while a bitmap is inconsistent, as a crash leaves it.
 */
function isRefusal({ kind }: GuestOperation, error: unknown): boolean {
  if (!(error instanceof Qcow2Error) || error.code !== 'UNSUPPORTED') return false;
  if (kind === 'resize') return error.problem.includes('it is inconsistent');
  return kind === 'compress' || kind === 'snapshot' || kind === 'apply';
}
