import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { COMMAND_NAMES, loadCommand } from '../../src/cli/commands.ts';
import { filesBelow, REPOSITORY, SOURCE } from './source-files.ts';

const read = (file: string): string => readFileSync(join(REPOSITORY, file), 'utf8');

/** Names that stand behind `qcow2 ` in code of a Markdown text, and are no command. */
function unknownCommands(markdown: string, known: readonly string[]): string[] {
  const code = markdown.match(/```[^]*?```|`[^`\n]+`/g) ?? [];
  const names = code.flatMap((text) =>
    [...text.matchAll(/(?:^|[\s`$(])qcow2 ([a-z][a-z-]*)(?![\w./-])/gm)].map(([, name]) => name!),
  );
  return [...new Set(names)].filter((name) => ![...known, 'help', 'qemu-img'].includes(name));
}

/** Scripts that `npm run NAME` in code of a Markdown text asks for, and that do not exist. */
function unknownScripts(markdown: string, known: readonly string[]): string[] {
  const names = [...markdown.matchAll(/npm run ([a-z][\w:-]*)/g)].map(([, name]) => name!);
  return [...new Set(names)].filter((name) => !known.includes(name));
}

describe('package.json', () => {
  const manifest = JSON.parse(read('package.json')) as {
    scripts: Record<string, string>;
    files: string[];
  };

  it('has scripts whose files exist', () => {
    const files = Object.values(manifest.scripts).flatMap((line) =>
      [...line.matchAll(/node (\S+\.mjs)/g)].map(([, file]) => file!),
    );
    expect(files).toContain('test/run.mjs');
    expect(files.filter((file) => !existsSync(join(REPOSITORY, file)))).toEqual([]);
  });

  it('publishes files that exist', () => {
    const missing = manifest.files
      .filter((file) => !file.startsWith('!'))
      .filter((file) => !existsSync(join(REPOSITORY, file)));
    expect(missing).toEqual([]);
  });

  it('has a lock file without addresses of a registry', () => {
    expect(read('package-lock.json')).not.toMatch(/https?:\/\/[^"]*\.tgz|"resolved"/);
  });
});

describe('the commands', () => {
  it('are those of src/cli/commands, each under its own name', async () => {
    const files = filesBelow(join(SOURCE, 'cli/commands'), ['.ts']);
    const definitions = await Promise.all(COMMAND_NAMES.map(loadCommand));
    expect(definitions.map((command) => command?.name)).toEqual(COMMAND_NAMES);
    const withCommand = files.filter((file) =>
      /^export (?:const command: |function \w+Command\()/m.test(readFileSync(file, 'utf8')),
    );
    expect(withCommand).toHaveLength(COMMAND_NAMES.length);
  });

  it('each have an example that names them', async () => {
    for (const name of COMMAND_NAMES) {
      const command = await loadCommand(name);
      expect(
        command?.examples.some((line) => line.includes(`qcow2 ${name}`)),
        name,
      ).toBe(true);
    }
  });

  it('and the scripts that README.md speaks of exist', () => {
    const readme = read('README.md');
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    expect(unknownCommands(readme, COMMAND_NAMES)).toEqual([]);
    expect(unknownScripts(readme, Object.keys(scripts))).toEqual([]);
  });

  it('are found missing when a text names others', () => {
    const text =
      'Run `qcow2 frobnicate a.qcow2`, `$ qcow2 info x` or `npm run nothing`; qcow2 prose is fine.\n' +
      '```\nqcow2 teleport\nimport { x } from "qcow2"\n```';
    expect(unknownCommands(text, ['info'])).toEqual(['frobnicate', 'teleport']);
    expect(unknownScripts(text, ['build'])).toEqual(['nothing']);
  });
});
