/**
 * Prints 'N passed, N failed, N skipped' from vitest's JSON results; fails unless all passed.
 *
 *     node tools/test-summary.mjs RESULTS.json
 */

import { readFileSync } from 'node:fs';

/** Counts of `results`; a file that could not even be loaded counts as one failure. */
export function summarize(results) {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  for (const file of results.testResults) {
    for (const { status } of file.assertionResults) {
      if (status === 'passed' || status === 'failed') counts[status] += 1;
      else counts.skipped += 1;
    }
    const hasFailedTest = file.assertionResults.some(({ status }) => status === 'failed');
    if (file.status === 'failed' && !hasFailedTest) counts.failed += 1;
  }
  return counts;
}

const { passed, failed, skipped } = summarize(readResults(process.argv[2]));
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exitCode = passed > 0 && failed === 0 && skipped === 0 ? 0 : 1;

/** The results; none if vitest did not get as far as writing them. */
function readResults(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return { testResults: [{ status: 'failed', assertionResults: [] }] };
  }
}
