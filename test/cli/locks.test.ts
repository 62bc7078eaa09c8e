import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { CommandDefinition } from '../../src/cli/command.ts';
import { command as check } from '../../src/cli/commands/check.ts';
import { command as compare } from '../../src/cli/commands/compare.ts';
import { command as convert } from '../../src/cli/commands/convert.ts';
import { command as info } from '../../src/cli/commands/info.ts';
import { command as map } from '../../src/cli/commands/map.ts';
import { command as serve } from '../../src/cli/commands/serve.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'an image that a virtual machine writes to', () => {
  const directory = sharedTemporaryDirectory();
  const image = join(directory, 'disk.qcow2');
  const commands: [string, CommandDefinition, string[]][] = [
    ['info', info, [image]],
    ['map', map, [image]],
    ['check', check, [image]],
    ['compare', compare, [image, image]],
    ['convert', convert, ['-O', 'raw', image, join(directory, 'out.raw')]],
  ];

  it.each(commands)('is read by %s with -U only', async (_name, command, args) => {
    qemuImg('create', '-q', '-f', 'qcow2', image, '1M');
    await using holder = await holdWithQemuIo(['-f', 'qcow2', image]);
    const refused = await runCommand(command, args);
    expect(refused.exitCode).not.toBe(0);
    expect(refused.stderr).toContain(
      `${image}: it is in use: process ${holder.pid} (qemu-io) writes to it; wait until it is ` +
        'closed there, or read it all the same with --force-share',
    );
    expect(await runCommand(command, ['-U', ...args])).toMatchObject({ exitCode: 0, stderr: '' });
  });

  it('is not served', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', image, '1M');
    await using holder = await holdWithQemuIo(['-f', 'qcow2', image]);
    const refused = await runCommand(serve, ['--socket', join(directory, 'socket'), image]);
    expect(refused.stderr).toContain(`process ${holder.pid} (qemu-io) writes to it`);
  });
});
