/**
 * Temporary directories of tests, removed when the test (or the file, or the `describe`) is over.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, onTestFinished } from 'vitest';

/** Makes a directory of which the caller takes care. */
export function makeTemporaryDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'qcow2-test-'));
}

/** Removes a directory and what is in it. */
export function removeTemporaryDirectory(path: string): void {
  rmSync(path, { recursive: true, force: true, maxRetries: 3 });
}

/** For use inside a test: a directory that is removed when the test has finished. */
export function temporaryDirectory(): string {
  const path = makeTemporaryDirectory();
  onTestFinished(() => removeTemporaryDirectory(path));
  return path;
}

/** For use inside a `describe` or at the top of a file: one directory for all its tests. */
export function sharedTemporaryDirectory(): string {
  const path = makeTemporaryDirectory();
  afterAll(() => removeTemporaryDirectory(path));
  return path;
}

/** For use inside a `describe`: a function that gives the directory of the test that is running. */
export function temporaryDirectoryPerTest(): () => string {
  let path = '';
  beforeEach(() => {
    path = makeTemporaryDirectory();
  });
  afterEach(() => removeTemporaryDirectory(path));
  return () => path;
}
