import { readFileSync } from 'node:fs';
import { relative } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { filesBelow, REPOSITORY } from './source-files.ts';

const MAX_FILE_LINES = 500;
/** A function fits a screen; a table of cases may take a little more. */
const MAX_FUNCTION_LINES = 75;

const OWN_CODE = ['src', 'test', 'bench', 'tools', 'images'].flatMap((directory) =>
  filesBelow(`${REPOSITORY}/${directory}`, ['.ts', '.mjs']),
);

function lineCount(text: string): number {
  return text.replace(/\n$/, '').split('\n').length;
}

/** Functions and methods of more than {@link MAX_FUNCTION_LINES} lines, by name. */
function longFunctions(file: string, text: string): string[] {
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
  const found: string[] = [];
  const visit = (node: ts.Node): void => {
    if (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined) {
      const lines = lineCount(node.getText(source));
      if (lines > MAX_FUNCTION_LINES) {
        const name = node.name?.getText(source) ?? 'a function without a name';
        found.push(`${file}: ${name} has ${lines} lines`);
      }
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

describe('source files', () => {
  it(`have ${MAX_FILE_LINES} lines at most`, () => {
    const long = OWN_CODE.map((file) => ({ file, lines: lineCount(readFileSync(file, 'utf8')) }))
      .filter(({ lines }) => lines > MAX_FILE_LINES)
      .map(({ file, lines }) => `${relative(REPOSITORY, file)}: ${lines} lines`);
    expect(OWN_CODE.length).toBeGreaterThan(20);
    expect(long).toEqual([]);
  });

  it(`have functions of ${MAX_FUNCTION_LINES} lines at most`, () => {
    const long = OWN_CODE.filter((file) => !file.endsWith('.test.ts')).flatMap((file) =>
      longFunctions(relative(REPOSITORY, file), readFileSync(file, 'utf8')),
    );
    expect(long).toEqual([]);
  });

  it('finds a function that is too long', () => {
    const body = '  work();\n'.repeat(MAX_FUNCTION_LINES - 1);
    const sample = `class A {\n  long() {\n${body}  }\n}\nfunction short() {}\n`;
    expect(longFunctions('sample.ts', sample)).toEqual([
      `sample.ts: long has ${MAX_FUNCTION_LINES + 1} lines`,
    ]);
  });

  it('begin with a comment that says what they are', () => {
    const bare = OWN_CODE.filter((file) => !file.endsWith('.test.ts')).filter(
      (file) => !/^(?:#!.*\n)?\/\*\*/.test(readFileSync(file, 'utf8')),
    );
    expect(bare.map((file) => relative(REPOSITORY, file))).toEqual([]);
  });
});
