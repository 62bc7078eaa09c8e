/**
 * Which source file imports which, and what is wrong with that: imports against the order of the
 * layers, and cycles.
 */

import { readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import ts from 'typescript';

/** One import, export-from or `import()` of a file in `src/`. Paths are relative to `src/`. */
export interface Import {
  from: string;
  to: string;
  /** Gone after compilation. */
  typeOnly: boolean;
}

/**
 * The layers, lowest first: a file may import from its own layer and those before it. A prefix
 * stands for all files below it; the longest that fits decides.
 */
export const LAYERS = [
  ['errors.ts', 'limits.ts'],
  ['util/'],
  ['host/'],
  ['device/'],
  ['compression/'],
  ['format/'],
  ['qcow2/'],
  ['chain/'],
  ['operations/'],
  ['export/fuse/', 'export/nbd/', 'export/'],
  ['worker/'],
  ['cli/', 'index.ts', 'promises.ts'],
] as const satisfies readonly (readonly string[])[];

/** The prefixes of one layer that must not know each other. */
const SEPARATE_WITHIN_LAYER = new Set(['export/fuse/', 'export/nbd/', 'cli/', 'index.ts']);

/** The imports of one file; `file` is relative to `root`. */
export function importsOf(file: string, text: string): Import[] {
  const imports: Import[] = [];
  const add = (specifier: ts.Node | undefined, typeOnly: boolean): void => {
    if (specifier === undefined || !ts.isStringLiteralLike(specifier)) return;
    if (!specifier.text.startsWith('.')) return;
    imports.push({ from: file, to: join(dirname(file), specifier.text), typeOnly });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) {
      add(node.moduleSpecifier, node.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword);
    } else if (ts.isExportDeclaration(node)) {
      add(node.moduleSpecifier, node.isTypeOnly);
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      add(node.arguments[0], false);
    }
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(file, text, ts.ScriptTarget.Latest));
  return imports;
}

/** The imports of all `files`, absolute paths below `root`. */
export function importGraph(root: string, files: readonly string[]): Import[] {
  return files.flatMap((file) => importsOf(relative(root, file), readFileSync(file, 'utf8')));
}

/** What breaks the order of the layers, a line each. */
export function layerViolations(imports: readonly Import[]): string[] {
  const violations: string[] = [];
  for (const { from, to } of imports) {
    const [source, target] = [layerOf(from), layerOf(to)];
    if (source === undefined) violations.push(`${from} is in no layer`);
    else if (target === undefined) violations.push(`${to} (imported by ${from}) is in no layer`);
    else if (target.index > source.index) violations.push(`${from} imports ${to} of a later layer`);
    else if (
      target.index === source.index &&
      target.prefix !== source.prefix &&
      SEPARATE_WITHIN_LAYER.has(target.prefix)
    ) {
      violations.push(`${from} imports ${to}, which is beside it, not below`);
    }
  }
  return violations;
}

function layerOf(file: string): { index: number; prefix: string } | undefined {
  for (const [index, prefixes] of LAYERS.entries()) {
    const prefix = prefixes.find((name) => file === name || file.startsWith(name));
    if (prefix !== undefined) return { index, prefix };
  }
  return undefined;
}

/** Cycles among the imports that are there at run time, each as `a → b → a`. */
export function importCycles(imports: readonly Import[]): string[] {
  const targets = new Map<string, string[]>();
  for (const { from, to, typeOnly } of imports) {
    if (!typeOnly) targets.set(from, [...(targets.get(from) ?? []), to]);
  }
  const cycles: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): void => {
    const start = path.indexOf(file);
    if (start !== -1) {
      cycles.push([...path.slice(start), file].join(' → '));
      return;
    }
    if (done.has(file)) return;
    for (const target of targets.get(file) ?? []) visit(target, [...path, file]);
    done.add(file);
  };
  for (const file of targets.keys()) visit(file, []);
  return cycles;
}
