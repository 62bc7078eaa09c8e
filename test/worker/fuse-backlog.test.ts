import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Backlog } from '../../src/worker/fuse-backlog.ts';
import { Control } from '../../src/worker/fuse-request.ts';

describe('the worker of a mount', () => {
  const words = new Int32Array(new SharedArrayBuffer(4 * Object.keys(Control).length));
  let told = 0;
  let backlog: Backlog;

  beforeEach(() => {
    vi.useFakeTimers({ toFake: ['performance'] });
    vi.advanceTimersByTime(10_000);
    words.fill(0);
    told = 0;
    backlog = new Backlog(words, () => told++);
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  /** Requests one after the other, for so long. */
  function run(ms: number): void {
    for (let passed = 2; passed <= ms; passed += 2) {
      vi.advanceTimersByTime(2);
      backlog.note(passed);
    }
  }

  it('tells that it is busy while requests come without a pause, twice a second at most', () => {
    run(5000);
    expect(told).toBeGreaterThanOrEqual(8);
    expect(told).toBeLessThanOrEqual(10);
  });

  it('tells it also where the pauses are short', () => {
    for (let i = 0; i < 100; i++) {
      run(20);
      vi.advanceTimersByTime(2);
    }
    expect(told).toBeGreaterThanOrEqual(2);
  });

  it('does not tell it of bursts, or where it rests half of the time', () => {
    run(300);
    vi.advanceTimersByTime(60_000);
    run(300);
    expect(told).toBe(0);
    vi.advanceTimersByTime(60_000);
    for (let i = 0; i < 100; i++) {
      run(20);
      vi.advanceTimersByTime(20);
    }
    expect(told).toBe(0);
  });

  it('calls a thread that sleeps, and only such a one', () => {
    run(10);
    expect(words[Control.calls]).toBe(0);
    words[Control.asleep] = 1;
    run(2);
    expect(words[Control.calls]).toBe(1);
  });
});
