/** Makes the images of a random chain with QEMU. */

import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { qemuImg, tryRun } from '../support/qemu.ts';
import type { Chain, Layer, RangeOperation } from './random-chain.ts';

/** The top image of a chain. */
export interface MadeChain {
  path: string;
  format: 'qcow2' | 'raw';
  /** Names of its snapshots, oldest first. */
  snapshots: string[];
}

/** Makes the images in a directory. */
export function makeChain(chain: Chain, directory: string): MadeChain {
  let made: MadeChain | undefined;
  chain.forEach((layer, index) => {
    const path = join(directory, `layer${index}`);
    made =
      layer.format === 'raw' && index === 0 ? makeRaw(path, layer) : makeQcow2(path, layer, made);
  });
  return made!;
}

function makeRaw(path: string, { size, operations }: Layer): MadeChain {
  writeFileSync(path, '');
  truncateSync(path, size);
  const commands = operations.flatMap((operation) =>
    'offset' in operation ? rangeCommands(operation, size) : [],
  );
  writeAll(path, 'raw', commands);
  return { path, format: 'raw', snapshots: [] };
}

function makeQcow2(path: string, layer: Layer, backing: MadeChain | undefined): MadeChain {
  const limits = traits(layer, backing !== undefined);
  const options = [
    `cluster_size=${2 ** limits.clusterBits}`,
    `compat=${layer.version === 2 ? '0.10' : '1.1'}`,
    `preallocation=${limits.preallocation}`,
  ];
  if (layer.version === 3) {
    options.push(
      `refcount_bits=${layer.refcountBits}`,
      `lazy_refcounts=${layer.lazyRefcounts ? 'on' : 'off'}`,
      `extended_l2=${limits.extendedL2 ? 'on' : 'off'}`,
      `compression_type=${layer.compression}`,
    );
  }
  if (limits.dataFile !== 'none') options.push(`data_file=${path}.data`);
  if (limits.dataFile === 'raw') options.push('data_file_raw=on');
  const backingOptions = backing === undefined ? [] : ['-b', backing.path, '-F', backing.format];
  const size = String(layer.size);
  qemuImg('create', '-q', '-f', 'qcow2', ...backingOptions, '-o', options.join(), path, size);

  const snapshots: string[] = [];
  let pending: string[] = [];
  const flush = (): void => {
    writeAll(path, 'qcow2', pending);
    pending = [];
  };
  for (const operation of layer.operations) {
    if (operation.kind === 'snapshot') {
      if (!limits.hasSnapshots || snapshots.length >= limits.maxSnapshots) continue;
      flush();
      // QEMU itself refuses where its counts are full.
      const name = `s${snapshots.length}`;
      const { exitCode } = tryRun('qemu-img', ['snapshot', '-c', name, path]);
      if (exitCode === 0) snapshots.push(name);
    } else if (operation.kind === 'compress') {
      if (limits.dataFile === 'none')
        pending.push(...compressCommands(operation, limits.clusterBits, layer.size));
    } else {
      pending.push(...rangeCommands(operation, layer.size));
    }
  }
  flush();
  return { path, format: 'qcow2', snapshots };
}

/**
 * Runs commands of qemu-io in one process. Compressed writes to clusters that have space fail, and
 * the rest is done all the same.
 */
function writeAll(path: string, format: string, commands: readonly string[]): void {
  if (commands.length === 0) return;
  const input = [...commands, 'quit', ''].join('\n');
  const { stdout, stderr } = tryRun('qemu-io', ['-f', format, path], { input });
  if (/can't open|invalid|not found/i.test(stdout + stderr)) throw new Error(stdout + stderr);
}

/** What a layer can have, given the rest of it. */
function traits(layer: Layer, hasBacking: boolean) {
  const extendedL2 = layer.extendedL2 && layer.version === 3;
  const wantsDataFile = layer.version === 3 ? layer.dataFile : 'none';
  const dataFile = hasBacking && wantsDataFile === 'raw' ? 'plain' : wantsDataFile;
  const clusterBits = extendedL2 ? Math.max(14, layer.clusterBits) : layer.clusterBits;
  const preallocation = hasBacking && !extendedL2 ? 'off' : layer.preallocation;
  const refcountBits = layer.version === 2 ? 16 : layer.refcountBits;
  return {
    extendedL2,
    dataFile,
    clusterBits,
    preallocation,
    hasSnapshots: dataFile === 'none' && refcountBits > 1,
    maxSnapshots: Math.min(5, 2 ** refcountBits - 2),
  };
}

function rangeCommands(operation: RangeOperation, size: number): string[] {
  const { kind, offset: wanted, length: most, pattern } = operation;
  const offset = wanted % size;
  const length = Math.min(most, size - offset);
  if (length === 0) return [];
  switch (kind) {
    case 'write':
      return [`write -q -P ${pattern} ${offset} ${length}`];
    case 'zero':
      return [`write -q -z ${offset} ${length}`];
    case 'unmap':
      return [`write -q -z -u ${offset} ${length}`];
    case 'discard':
      return [`discard -q ${offset} ${length}`];
  }
}

/** Compressed clusters can be written where nothing is yet; elsewhere QEMU refuses or rewrites. */
function compressCommands(
  { cluster, pattern }: { cluster: number; pattern: number },
  clusterBits: number,
  size: number,
): string[] {
  const clusterSize = 2 ** clusterBits;
  const count = Math.ceil(size / clusterSize);
  const offset = (cluster % count) * clusterSize;
  const length = Math.min(clusterSize, size - offset);
  return [`write -q -c -P ${pattern} ${offset} ${length}`];
}
