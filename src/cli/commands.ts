/**
 * The commands by name, each loaded only when it is used.
 */

import type { CommandDefinition } from './command.ts';

interface CommandModule {
  command: CommandDefinition;
}

/** Literal imports: the bundler makes a chunk of each. */
const COMMANDS: Readonly<Record<string, () => Promise<CommandModule>>> = {
  amend: () => import('./commands/amend.ts'),
  bench: () => import('./commands/bench.ts'),
  bitmap: () => import('./commands/bitmap.ts'),
  check: () => import('./commands/check.ts'),
  commit: () => import('./commands/commit.ts'),
  compare: () => import('./commands/compare.ts'),
  convert: () => import('./commands/convert.ts'),
  create: () => import('./commands/create.ts'),
  dd: () => import('./commands/dd.ts'),
  info: () => import('./commands/info.ts'),
  map: () => import('./commands/map.ts'),
  rebase: () => import('./commands/rebase.ts'),
  measure: () => import('./commands/measure.ts'),
  resize: () => import('./commands/resize.ts'),
  snapshot: () => import('./commands/snapshot.ts'),
  mount: () => import('./commands/mount.ts'),
  unmount: () => import('./commands/unmount.ts'),
  mounts: () => import('./commands/mounts.ts'),
  serve: () => import('./commands/serve.ts'),
  completion: async () => {
    const { completionCommand } = await import('./commands/completion.ts');
    return { command: completionCommand(loadAllCommands) };
  },
};

/** The names of all commands, in the order in which the help lists them. */
export const COMMAND_NAMES: readonly string[] = Object.keys(COMMANDS);

/** Loads a command, or returns undefined if there is none of that name. */
export async function loadCommand(name: string): Promise<CommandDefinition | undefined> {
  if (!Object.hasOwn(COMMANDS, name)) return undefined;
  const load = COMMANDS[name];
  return load === undefined ? undefined : (await load()).command;
}

/** Loads every command. */
export function loadAllCommands(): Promise<CommandDefinition[]> {
  return Promise.all(Object.values(COMMANDS).map(async (load) => (await load()).command));
}
