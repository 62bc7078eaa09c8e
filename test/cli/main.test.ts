import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { CLI_PATH, qcow2 } from '../support/cli.ts';
import { tryRun } from '../support/qemu.ts';

/** Runs a line of bash in which `$QCOW2` is the command. */
function bash(line: string) {
  const env = { ...process.env, QCOW2: `${process.execPath} ${CLI_PATH}` };
  return tryRun('bash', ['-c', line], { env });
}

describe('the built command', () => {
  it('has the version of package.json', () => {
    const { version } = JSON.parse(
      readFileSync(join(import.meta.dirname, '../../package.json'), 'utf8'),
    ) as { version: string };
    expect(qcow2(['--version'])).toEqual({ exitCode: 0, stdout: `qcow2 ${version}\n`, stderr: '' });
  });

  it('can be run by its path', () => {
    expect(tryRun(CLI_PATH, ['--version'])).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('tells an error in one line, with the stack only where it is asked for', () => {
    const plain = qcow2(['no-such-command']);
    expect(plain).toMatchObject({ exitCode: 1, stdout: '' });
    expect(plain.stderr).toMatch(/^qcow2: unknown command 'no-such-command'[^\n]*\n$/);
    const traced = qcow2(['no-such-command'], { env: { ...process.env, QCOW2_DEBUG: '1' } });
    expect(traced.stderr.slice(0, plain.stderr.length)).toBe(plain.stderr);
    expect(traced.stderr).toMatch(/\n {4}at /);
  });

  it('ends quietly when nobody reads its output', () => {
    const { stdout, stderr } = bash('{ sleep 0.3; $QCOW2 --help; echo $? >&2; } | true');
    expect({ stdout, stderr }).toEqual({ stdout: '', stderr: '141\n' });
  });

  it('fails when its output cannot be written', () => {
    const { exitCode, stderr } = bash('$QCOW2 --help > /dev/full');
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^qcow2: ENOSPC[^\n]*\n$/);
  });
});
