import { relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import { importCycles, importGraph, importsOf, layerViolations } from './module-graph.ts';
import { filesBelow, SOURCE } from './source-files.ts';

const files = filesBelow(SOURCE, ['.ts']);
const imports = importGraph(SOURCE, files);

describe('the order of the layers', () => {
  it('is kept by every import of src/', () => {
    expect(imports.length).toBeGreaterThan(50);
    expect(layerViolations(imports)).toEqual([]);
  });

  it('is found broken by an import of a later layer, static, dynamic, of types, or passed on', () => {
    const sample = [
      `import { openImage } from '../chain/open.ts';`,
      `import type { Server } from '../export/nbd/server.ts';`,
      `export { run } from '../cli/main.ts';`,
      `const later = () => import('../worker/pool.ts');`,
      `import { limits } from '../limits.ts';`,
    ].join('\n');
    expect(layerViolations(importsOf('device/file.ts', sample))).toEqual([
      'device/file.ts imports chain/open.ts of a later layer',
      'device/file.ts imports export/nbd/server.ts of a later layer',
      'device/file.ts imports cli/main.ts of a later layer',
      'device/file.ts imports worker/pool.ts of a later layer',
    ]);
  });

  it('is found broken by files outside all layers and by neighbours that must not know each other', () => {
    const violations = [
      ...layerViolations(importsOf('misc/things.ts', `import '../errors.ts';`)),
      ...layerViolations(importsOf('export/fuse/a.ts', `import '../nbd/b.ts';`)),
      ...layerViolations(importsOf('index.ts', `import './cli/main.ts';`)),
    ];
    expect(violations).toEqual([
      'misc/things.ts is in no layer',
      'export/fuse/a.ts imports export/nbd/b.ts, which is beside it, not below',
      'index.ts imports cli/main.ts, which is beside it, not below',
    ]);
  });
});

describe('imports', () => {
  it('go to files that exist', () => {
    const known = new Set(files.map((file) => relative(SOURCE, file)));
    expect(imports.filter(({ to }) => !known.has(to))).toEqual([]);
  });

  it('have no cycle', () => {
    expect(importCycles(imports)).toEqual([]);
  });

  it('are found to have a cycle where there is one', () => {
    const sample = [
      ...importsOf('a.ts', `import './b.ts';`),
      ...importsOf('b.ts', `export * from './c.ts';`),
      ...importsOf('c.ts', `import type { A } from './a.ts'; import './b.ts';`),
    ];
    expect(importCycles(sample)).toEqual(['b.ts → c.ts → b.ts']);
  });
});
