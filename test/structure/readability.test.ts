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

/** What a file does that this project's files do not. */
function strayMarks(file: string, text: string): string[] {
  // Patterns to look for in other files; this one is not looked at.
  const marks: [name: string, pattern: RegExp][] = [
    // Rules are met or changed for all, in eslint.config.js and tsconfig.json.
    ['switches off the linter', /eslint-disable|@ts-(?:ignore|nocheck|expect-error)/],
    // Work that is left belongs to an issue, where somebody finds it.
    ['leaves something to be done', /\b(?:TODO|FIXME|XXX|HACK)\b/],
    ['leaves tests out', /\b(?:describe|it|test)\.(?:only|todo)\b/],
  ];
  return marks.filter(([, pattern]) => pattern.test(text)).map(([name]) => `${file} ${name}`);
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

  it('hide nothing from the linter and the tests', () => {
    const self = 'test/structure/readability.test.ts';
    const marks = OWN_CODE.map((file) => relative(REPOSITORY, file))
      .filter((file) => file !== self)
      .flatMap((file) => strayMarks(file, readFileSync(`${REPOSITORY}/${file}`, 'utf8')));
    expect(marks).toEqual([]);
  });

  it('finds what hides something', () => {
    expect(strayMarks('a.ts', '// TODO: finish\nit.only()')).toEqual([
      'a.ts leaves something to be done',
      'a.ts leaves tests out',
    ]);
    // The text of a file that does what it must not, to see that it is found.
    expect(strayMarks('b.ts', '// @ts-ignore')).toEqual(['b.ts switches off the linter']);
  });
});
