/**
 * lib-write: writing through the library, against QEMU's own engine.
 */

import type { Bench } from '../support/bench.ts';
import { writeCases } from '../support/write-patterns.ts';
import { ourWriter, qemuBench, qemuIo } from '../support/writers.ts';

export const bench: Bench = {
  name: 'lib-write',
  summary: 'writes of 1 MiB and 4 KiB by the library, allocating, rewriting, flushing',
  tools: ['qemu-img', 'qemu-io', 'stdbuf'],
  prepare(context) {
    const comparisons = writeCases().map((writeCase) => {
      const isSequential = writeCase.pattern.step === writeCase.pattern.bytes;
      const rivals = [qemuBench(context, writeCase)];
      if (!isSequential) rivals.push(qemuIo(context, writeCase));
      return {
        name: writeCase.name,
        unit: isSequential ? ('bytes/s' as const) : ('writes/s' as const),
        ours: ourWriter(context, writeCase),
        rivals,
      };
    });
    return Promise.resolve(comparisons);
  },
};
