import { describe, expect, it } from 'vitest';
import type { CommandIo } from '../../src/cli/command.ts';
import { COMMAND_NAMES } from '../../src/cli/commands.ts';
import { runProgram } from '../../src/cli/program.ts';
import { reportError } from '../../src/cli/report.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { AssertionError } from '../../src/util/assert.ts';

class RecordedIo implements CommandIo {
  out = '';
  err = '';
  isTerminal = false;

  stdout(text: string): void {
    this.out += text;
  }

  stderr(text: string): void {
    this.err += text;
  }
}

async function run(...argv: string[]) {
  const io = new RecordedIo();
  const exitCode = await runProgram(argv, io);
  return { exitCode, out: io.out, err: io.err };
}

describe('qcow2', () => {
  it('without a command says how it is used, and fails', async () => {
    const { exitCode, out, err } = await run();
    expect({ exitCode, out }).toEqual({ exitCode: 1, out: '' });
    expect(err).toMatch(/^usage: qcow2 COMMAND/);
  });

  it.each(['--help', '-h', 'help'])('%s lists all commands', async (option) => {
    const { exitCode, out, err } = await run(option);
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    for (const name of COMMAND_NAMES) expect(out).toMatch(new RegExp(`^  ${name} +\\S`, 'm'));
    expect(out).not.toContain('\x1b');
  });

  it('--help tells of qemu-img, and keeps its commands apart', async () => {
    const { out } = await run('--help');
    const [, images = '', use = ''] = /^Images [^]*?:\n([^]*?)\n\nUsing them:\n([^]*?)\n\n/m.exec(
      out,
    )!;
    expect(images).toMatch(/^ {2}convert /m);
    expect(use).toMatch(/^ {2}mount /m);
    expect(use).not.toMatch(/^ {2}convert /m);
    expect(out).toContain('qcow2 qemu-img ARGS…');
  });

  it('--version prints the version', async () => {
    expect(await run('--version')).toEqual({ exitCode: 0, out: 'qcow2 0.0.0-test\n', err: '' });
  });

  it('suggests the command that was meant', async () => {
    expect(await run('unmont')).toEqual({
      exitCode: 1,
      out: '',
      err: "qcow2: unknown command 'unmont'; did you mean unmount?\n",
    });
    const unlike = await run('frobnicate');
    expect(unlike.err).toBe("qcow2: unknown command 'frobnicate'; see: qcow2 --help\n");
  });

  it.each(['constructor', '__proto__', 'toString'])('has no command %s', async (name) => {
    const { exitCode, err } = await run(name);
    expect(exitCode).toBe(1);
    expect(err).toMatch(/^qcow2: unknown command /);
  });

  it('does not take an option for a command', async () => {
    expect((await run('--frob')).err).toBe('qcow2: unknown option --frob; see: qcow2 --help\n');
  });
});

describe.each(COMMAND_NAMES)('qcow2 %s', (name) => {
  it('--help shows usage, options and an example, in lines of 80 columns', async () => {
    const byOption = await run(name, '--help');
    expect(byOption).toEqual(await run('help', name));
    expect(byOption).toEqual(await run(name, 'operand', '-h'));
    expect(byOption).toMatchObject({ exitCode: 0, err: '' });
    expect(byOption.out).toMatch(new RegExp(`^Usage:\n  qcow2 ${name} `));
    expect(byOption.out).toMatch(/^Options:\n(?:.*\n)*? {2}-h, --help +show this help$/m);
    expect(byOption.out).toMatch(new RegExp(`^Examples:\n(?:.*\n)*?.*qcow2 ${name}`, 'm'));
    const wide = byOption.out.split('\n').filter((line) => line.length > 84);
    expect(wide).toEqual([]);
  });

  it('refuses an unknown option in one line', async () => {
    const { exitCode, out, err } = await run(name, '--no-such-option-at-all');
    expect({ out, failed: exitCode !== 0 }).toEqual({ out: '', failed: true });
    expect(err).toMatch(/^qcow2: unknown option --no-such-option-at-all[^\n]*\n$/);
  });
});

describe('reportError', () => {
  const report = (error: unknown): string => {
    const io = new RecordedIo();
    reportError(error, io);
    return io.err;
  };

  it('tells file, structure, offset and hint in one line', () => {
    const location = { file: 'a.qcow2', structure: 'header', offset: 4, hint: 'use another' };
    const error = new Qcow2Error('UNSUPPORTED', 'version 9 is not known', location);
    expect(report(error)).toBe(
      'qcow2: a.qcow2: header (at offset 4): version 9 is not known; use another\n',
    );
  });

  it('calls a broken invariant a bug', () => {
    expect(report(new AssertionError('a slice is loaded'))).toBe(
      'qcow2: internal error: a slice is loaded; this is a bug of this program, ' +
        'please report it with what QCOW2_DEBUG=1 shows\n',
    );
    expect(report(new TypeError('x is undefined'))).toMatch(/TypeError: x is undefined; this is a/);
  });

  it('does not call a failed system call a bug', () => {
    const error = Object.assign(new Error('EIO: i/o error, read'), {
      code: 'EIO',
      syscall: 'read',
    });
    expect(report(error)).toBe('qcow2: EIO: i/o error, read\n');
  });

  it('lets no control characters of a name reach the terminal', () => {
    const error = new Qcow2Error('HOST', 'gone', { file: 'a\n\x1b[2Jb' });
    expect(report(error)).toBe('qcow2: a\\n\\x1b[2Jb: gone\n');
  });
});
