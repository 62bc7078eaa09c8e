/**
 * What a run was made with: the machine, Node, and the programs measured with and against.
 */

import { execFileSync, type StdioOptions } from 'node:child_process';
import os from 'node:os';
import { findProgram } from './process.ts';

/** Where and with what something was measured. */
export interface Environment {
  node: string;
  system: string;
  processor: string | undefined;
  cores: number;
  memoryBytes: number;
  loadAverage: number[];
  root: boolean;
  commit: string | undefined;
  tools: Record<string, string | undefined>;
}

/** @param root directory of the repository */
export function describeEnvironment(root: string): Environment {
  const cpus = os.cpus();
  return {
    node: process.version,
    system: `${os.type()} ${os.release()} ${os.arch()}`,
    processor: cpus[0]?.model.trim(),
    cores: cpus.length,
    memoryBytes: os.totalmem(),
    loadAverage: os.loadavg(),
    root: process.getuid?.() === 0,
    commit: firstLine('git', ['-C', root, 'describe', '--always', '--dirty']),
    tools: Object.fromEntries(
      ['qemu-img', 'nbdcopy', 'fio', 'guestmount'].map((tool) => [tool, toolVersion(tool)]),
    ),
  };
}

function toolVersion(tool: string): string | undefined {
  return findProgram(tool) === undefined ? undefined : firstLine(tool, ['--version']);
}

function firstLine(program: string, args: string[]): string | undefined {
  try {
    const stdio: StdioOptions = ['ignore', 'pipe', 'ignore'];
    return execFileSync(program, args, { encoding: 'utf8', stdio }).split('\n')[0];
  } catch {
    return undefined;
  }
}
