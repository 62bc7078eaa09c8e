import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SCRIPT = join(import.meta.dirname, '../../tools/test-summary.mjs');

function summaryOf(testResults: { status: string; tests: string[] }[]) {
  const path = join(temporaryDirectory(), 'results.json');
  const results = testResults.map(({ status, tests }) => ({
    status,
    assertionResults: tests.map((test) => ({ status: test })),
  }));
  writeFileSync(path, JSON.stringify({ testResults: results }));
  const { exitCode, stdout } = tryRun(process.execPath, [SCRIPT, path]);
  return { exitCode, stdout };
}

describe('the summary of a test run', () => {
  it('is good if all tests passed', () => {
    const results = [
      { status: 'passed', tests: ['passed', 'passed'] },
      { status: 'passed', tests: ['passed'] },
    ];
    expect(summaryOf(results)).toEqual({ exitCode: 0, stdout: '3 passed, 0 failed, 0 skipped\n' });
  });

  it('is bad if a test failed', () => {
    const results = [{ status: 'failed', tests: ['passed', 'failed'] }];
    expect(summaryOf(results)).toEqual({ exitCode: 1, stdout: '1 passed, 1 failed, 0 skipped\n' });
  });

  it('is bad if a test was skipped', () => {
    const results = [{ status: 'passed', tests: ['passed', 'pending', 'todo'] }];
    expect(summaryOf(results)).toEqual({ exitCode: 1, stdout: '1 passed, 0 failed, 2 skipped\n' });
  });

  it('counts a file that could not be loaded as a failure', () => {
    const results = [
      { status: 'passed', tests: ['passed'] },
      { status: 'failed', tests: [] },
    ];
    expect(summaryOf(results)).toEqual({ exitCode: 1, stdout: '1 passed, 1 failed, 0 skipped\n' });
  });

  it('is bad if nothing ran or there are no results', () => {
    expect(summaryOf([])).toEqual({ exitCode: 1, stdout: '0 passed, 0 failed, 0 skipped\n' });
    const missing = tryRun(process.execPath, [SCRIPT, '/no/such/file']);
    expect(missing).toMatchObject({ exitCode: 1, stdout: '0 passed, 1 failed, 0 skipped\n' });
  });
});
