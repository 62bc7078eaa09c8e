import { expect, it } from 'vitest';
import { RateLimitedLog } from '../../../src/export/nbd/rate-limited-log.ts';

it('passes on ten lines in ten seconds and counts the others', () => {
  const lines: string[] = [];
  let now = 1000;
  const log = new RateLimitedLog(
    (line) => lines.push(line),
    () => now,
  );
  for (let index = 0; index < 1000; index++) log.write(`line ${index}`);
  expect(lines).toHaveLength(10);
  now += 9_999;
  log.write('too early');
  expect(lines).toHaveLength(10);
  now += 1;
  log.write('again');
  expect(lines.slice(10)).toEqual(['991 more messages were left out', 'again']);
  for (let index = 0; index < 10; index++) log.write('x');
  log.flush();
  log.flush();
  expect(lines.slice(21)).toEqual(['1 more message was left out']);
});
