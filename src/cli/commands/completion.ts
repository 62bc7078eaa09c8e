/** `qcow2 completion`: what makes a shell complete the command's arguments. */

import { bashCompletion } from '../completion/bash.ts';
import { fishCompletion } from '../completion/fish.ts';
import { completedCommand, completedCreationOptions } from '../completion/model.ts';
import { zshCompletion } from '../completion/zsh.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition } from '../command.ts';
import { QEMU_IMG_COMMANDS } from '../qemu-img-commands.ts';

const SHELLS = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion } as const;

/**
 * The command.
 * @param loadCommands loads the definitions of all commands
 */
export function completionCommand(
  loadCommands: () => Promise<readonly CommandDefinition[]>,
): CommandDefinition {
  return {
    name: 'completion',
    summary: 'print what makes a shell complete commands and options',
    operands: 'bash|zsh|fish',
    operandCount: [1, 1],
    details:
      'The text is for the start-up file of the shell: commands, options, their values where they ' +
      'can be listed, the names and values of -o, and file names are completed.',
    examples: [
      'source <(qcow2 completion bash)',
      'qcow2 completion zsh > ~/.zfunc/_qcow2',
      'qcow2 completion fish > ~/.config/fish/completions/qcow2.fish',
    ],
    options: {},
    async run(args, io) {
      const [shell = ''] = args.operands;
      const make = Object.entries(SHELLS).find(([name]) => name === shell)?.[1];
      if (make === undefined) {
        const names = Object.keys(SHELLS).join(', ');
        throw usageError(`there is completion for ${names}, not for '${shell}'`);
      }
      const commands = await loadCommands();
      io.stdout(
        make({
          commands: commands.map(completedCommand),
          imageCommands: QEMU_IMG_COMMANDS,
          creationOptions: completedCreationOptions(),
        }),
      );
      return 0;
    },
  };
}
