/** The output of `qcow2 convert`: made or opened, and how it has to be written. */

import type { ChainedQcow2Image, Image, OpenImageOptions } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import type { ChunkSpec } from '../operations/convert-chunk.ts';
import { ImageOutput, ImageTarget } from '../operations/convert-image.ts';
import type { AbandonedOutput } from '../operations/convert-image.ts';
import type { PlanOptions } from '../operations/convert-plan.ts';
import { chunkBytesFor, RawTarget, sparseSpec } from '../operations/convert-raw.ts';
import type { ConvertTarget } from '../operations/convert.ts';
import { OutputFile } from '../operations/output-file.ts';
import type { NewBitmap } from '../qcow2/bitmap-changes.ts';
import type { Steps } from '../operations/progress.ts';
import { usageError } from './command.ts';
import type { ConvertChoices } from './convert-options.ts';

/** What the output is made of. */
export interface OutputRequest {
  choices: ConvertChoices;
  /** Bytes of the disk that will be written. */
  size: number;
  /** Files that are read. */
  inputs: readonly string[];
  /** How an output that exists is opened. */
  open: OpenImageOptions;
  /** Runs the steps of making an image. */
  run: (steps: Steps<ImageOutput>) => Promise<ImageOutput>;
}

/** An output, ready to be written. */
export interface ConvertOutput {
  target: ConvertTarget;
  spec: ChunkSpec;
  plan: PlanOptions;
  /** Gives the output bitmaps, once its data is written. */
  addBitmaps(bitmaps: readonly NewBitmap[]): void;
  /** Closes what was finished. */
  finish(): void;
  /** Gives it up. @returns what became of it */
  abandon(): AbandonedOutput;
}

/** Every file that reading an image reads. */
export function filesOf(image: Image): string[] {
  const files: string[] = [];
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    files.push(layer.path);
    if (layer.format === 'qcow2' && layer.dataFile !== undefined) files.push(layer.dataFile.path);
  }
  return files;
}

/** Gives an output up, and says what became of it. */
export function describeOutcome(output: Pick<ConvertOutput, 'abandon'>, path: string): string {
  const outcomes = {
    removed: `the incomplete ${path} was removed`,
    emptied: `${path}, which was incomplete, is empty now`,
    kept: `${path} is incomplete`,
  };
  return outcomes[output.abandon()];
}

/** The same error, saying what became of the output. */
export function withOutcome(error: unknown, outcome: string): unknown {
  if (!(error instanceof Qcow2Error)) return error;
  const { file, structure, offset, cause } = error;
  const hint = error.hint === undefined ? outcome : `${error.hint}; ${outcome}`;
  return new Qcow2Error(error.code, error.problem, { file, structure, offset, hint, cause });
}

/** Bytes that are read and written at a time. */
const CHUNK_BYTES = 4 * 1024 * 1024;
/** The same where they are compressed, which takes long. */
const COMPRESSED_CHUNK_BYTES = 1024 * 1024;

/**
 * Makes or opens an output.
 * @throws {Qcow2Error} if that is not possible
 */
export function openConvertOutput(path: string, request: OutputRequest): Promise<ConvertOutput> {
  return request.choices.outputFormat === 'raw'
    ? Promise.resolve(openRaw(path, request))
    : openQcow2(path, request);
}

function openRaw(path: string, { choices, size, inputs }: OutputRequest): ConvertOutput {
  const { sparseBytes, salvage, durable, creation } = choices;
  const preallocation = creation.preallocation === 'metadata' ? 'off' : creation.preallocation;
  const mode = choices.isCreated ? 'create' : 'existing';
  const output = new OutputFile(path, { size, mode, inputs, preallocation });
  try {
    const outputIsZero = choices.outputIsZero || output.isEmpty;
    const target = new RawTarget(output, { total: size, sparseBytes, outputIsZero });
    const chunkBytes = chunkBytesFor(sparseBytes, CHUNK_BYTES);
    const spec = { chunkBytes, sparse: sparseSpec(sparseBytes), compression: undefined, salvage };
    return {
      target,
      spec,
      plan: { salvage },
      addBitmaps: () => undefined,
      finish: () => output.finish({ flush: durable }),
      abandon: () => output.abandon(),
    };
  } catch (error) {
    throw withOutcome(error, describeOutcome(output, path));
  }
}

async function openQcow2(path: string, request: OutputRequest): Promise<ConvertOutput> {
  const { choices, size, inputs, open, run } = request;
  const { durable, creation, isCreated } = choices;
  const options = { open, size, inputs, durable, target: choices.target };
  const output = isCreated
    ? await create(ImageOutput.create(path, creation, options), run)
    : ImageOutput.open(path, options);
  try {
    return describe(output, request);
  } catch (error) {
    output.abandon();
    throw error;
  }
}

async function create(steps: Steps<ImageOutput>, run: OutputRequest['run']): Promise<ImageOutput> {
  try {
    return await run(steps);
  } finally {
    // What was not finished is removed.
    steps.return(undefined as never);
  }
}

function describe(output: ImageOutput, { choices }: OutputRequest): ConvertOutput {
  const { sparseBytes, isCreated, isCompressed, hasBacking, salvage } = choices;
  const { image } = output;
  const { header, backing } = image;
  if (choices.outputIsZero && backing !== undefined) {
    throw usageError('--target-is-zero cannot be: the output reads as its backing file');
  }
  if (hasBacking && backing === undefined) {
    throw new Qcow2Error('INVALID_OPTION', 'the output has no backing file, so -B cannot be', {
      file: image.path,
    });
  }
  if (isCompressed && header.hasExternalDataFile) {
    throw usageError('-c cannot be: compressed clusters cannot be in an external data file');
  }
  if (choices.bitmaps !== 'none') checkBitmaps(image);
  const isZero = choices.outputIsZero || (isCreated && backing === undefined);
  const { clusterSize, compressionType } = header;
  const compression = isCompressed ? { type: compressionType, clusterSize } : undefined;
  const minimum = isCompressed ? COMPRESSED_CHUNK_BYTES : CHUNK_BYTES;
  const chunkBytes = Math.max(chunkBytesFor(isCompressed ? 0 : sparseBytes, minimum), clusterSize);
  return {
    target: new ImageTarget(image, { isZero }),
    spec: { chunkBytes, sparse: sparseSpec(sparseBytes), compression, salvage },
    plan: {
      backingSize: hasBacking ? backing?.size : undefined,
      alignment: isCompressed ? clusterSize : 1,
      zeroIsData: sparseBytes === 0,
      salvage,
    },
    addBitmaps: (bitmaps) => output.addBitmaps(bitmaps),
    finish: () => output.finish(),
    abandon: () => output.abandon(),
  };
}

/** Before anything is written: they come last. */
function checkBitmaps({ header, path }: ChainedQcow2Image): void {
  if (header.version < 3) throw usageError('--bitmaps cannot be: bitmaps need compat=1.1');
  if (header.extensions.bitmaps === undefined) return;
  throw new Qcow2Error('UNSUPPORTED', 'the output has bitmaps of its own', {
    file: path,
    hint: 'convert without --bitmaps, or into an image without',
  });
}
