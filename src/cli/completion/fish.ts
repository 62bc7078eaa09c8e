/** The completion script for fish. */

import type { CompletionParts } from './bash.ts';
import type { CompletedCommand, CompletedOption, Values } from './model.ts';

/** A script that defines the completion of `qcow2`; also `~/.config/fish/completions/qcow2.fish`. */
export function fishCompletion({
  commands,
  imageCommands,
  creationOptions,
}: CompletionParts): string {
  const keys = creationOptions.flatMap(({ name, words }) =>
    words.length === 0 ? [`${name}=`] : words.map((word) => `${name}=${word}`),
  );
  const lines = commands.flatMap(({ name, summary }) => {
    const isImage = imageCommands.includes(name);
    return [
      `complete -c qcow2 -n '__qcow2_needs_command' -f -a ${name} -d ${fishQuoted(summary)}`,
      ...(isImage ? [`complete -c qcow2 -n '__qcow2_needs_image_command' -f -a ${name}`] : []),
    ];
  });
  return `# Completion of qcow2 for fish. To use it: qcow2 completion fish | source

# The words of the line up to here, without the drop-in's name.
function __qcow2_words
    set -l words (commandline -opc)
    if test (count $words) -gt 1; and test $words[2] = qemu-img
        set -e words[2]
    end
    printf '%s\\n' $words
end

function __qcow2_needs_command
    set -l words (commandline -opc)
    test (count $words) -eq 1
    or test (count $words) -eq 2 -a "$words[2]" = help
end

function __qcow2_needs_image_command
    set -l words (commandline -opc)
    test (count $words) -eq 2 -a "$words[2]" = qemu-img
end

function __qcow2_in
    set -l words (__qcow2_words)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end

# What -o can go on with: a list with commas.
function __qcow2_creation
    set -l list (string match -r '^.*,' -- (commandline -ct | string replace -r '^--option=' ''))
    printf '%s\\n' "$list"{${keys.join(',')}}
end

${lines.join('\n')}
complete -c qcow2 -n '__qcow2_needs_command' -f -a qemu-img -d 'the image commands, in place of qemu-img'
complete -c qcow2 -n '__qcow2_needs_command' -f -a help -d 'show how a command is used'

${commands.flatMap(commandLines).join('\n')}
`;
}

function commandLines({ name, options, operands }: CompletedCommand): string[] {
  const condition = `complete -c qcow2 -n '__qcow2_in ${name}'`;
  const operand =
    operands?.kind === 'words'
      ? [`${condition} -f -a ${fishQuoted(operands.words.join(' '))}`]
      : operands === undefined
        ? [`${condition} -f`]
        : [];
  return [...operand, ...options.map((option) => `${condition} ${optionParts(option)}`)];
}

function optionParts({ names, description, values }: CompletedOption): string {
  const spelled = names.map((name) =>
    name.startsWith('--') ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`,
  );
  const value = values === undefined ? [] : [valueParts(values)];
  return [...spelled, ...value, `-d ${fishQuoted(description)}`].join(' ');
}

function valueParts(values: Values): string {
  switch (values.kind) {
    case 'file':
      return '-r -F';
    case 'creation':
      return "-x -a '(__qcow2_creation)'";
    case 'any':
      return '-x';
    case 'words':
      return `-x -a ${fishQuoted(values.words.join(' '))}`;
  }
}

/** In single quotes fish knows backslashes. */
function fishQuoted(text: string): string {
  return `'${text.replace(/[\\']/g, String.raw`\$&`)}'`;
}
