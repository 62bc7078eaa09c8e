import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { temporaryDirectory } from '../support/temp.ts';
import { loadEntryPoint, undocumented } from './public-api.ts';
import { SOURCE } from './source-files.ts';

describe.each(['index.ts', 'promises.ts'])('the public API in %s', (file) => {
  const entryPoint = loadEntryPoint(join(SOURCE, file));

  it('exports something', () => {
    expect(entryPoint.exports.map(({ name }) => name)).toContain('openImage');
  });

  it('is documented', () => {
    expect(undocumented(entryPoint)).toEqual([]);
  });
});

describe('undocumented', () => {
  it('names what has no description and what throws without saying so', () => {
    const file = join(temporaryDirectory(), 'sample.ts');
    writeFileSync(
      file,
      `/** Documented. */
       export function quiet(): void {}
       export function silent(): void {}
       /** Throws, and does not say so. */
       export function loud(): never { throw new Error(); }
       /** Says so. @throws {Error} always */
       export function honest(): never { throw new Error(); }
       /** A type. */
       export interface Shape {
         /** Bytes. */
         size: number;
         name: string;
       }
       /** A class. */
       export class Box {
         #hidden = 1;
         /** Throws. */
         open(): never { throw new Error(); }
         close(): number { return this.#hidden; }
       }
       export type { Shape as Other };
      `,
    );
    expect(undocumented(loadEntryPoint(file))).toEqual([
      'silent has no description',
      'loud throws without @throws',
      'Shape.name has no description',
      'Box.open throws without @throws',
      'Box.close has no description',
      'Shape.name has no description',
    ]);
  });
});
