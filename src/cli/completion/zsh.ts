/** The completion script for zsh. */

import { quoted } from '../shell.ts';
import type { CompletionParts } from './bash.ts';
import type {
  CompletedCommand,
  CompletedCreationOption,
  CompletedOption,
  Values,
} from './model.ts';

/** A script that defines the completion of `qcow2`; also a file `_qcow2` of `fpath`. */
export function zshCompletion({
  commands,
  imageCommands,
  creationOptions,
}: CompletionParts): string {
  const described = commands.map(({ name, summary }) => quoted(`${name}:${escape(summary)}`));
  return `#compdef qcow2
# Completion of qcow2 for zsh. To use it: source <(qcow2 completion zsh)

_qcow2_creation() {
  _values -s , option \\
${creationOptions.map((option) => `    ${creationSpec(option)}`).join(' \\\n')}
}

_qcow2() {
  local -a commands
  commands=(
${[...described, quoted('qemu-img:the image commands, in place of qemu-img')].map((line) => `    ${line}`).join('\n')}
  )
  if (( CURRENT > 2 )) && [[ $words[2] == qemu-img ]]; then
    commands=(${imageCommands.join(' ')})
    shift words
    (( CURRENT-- ))
  fi
  if (( CURRENT == 2 )) || [[ $words[2] == help ]]; then
    _describe command commands
    return
  fi
  local name=$words[2]
  shift words
  (( CURRENT-- ))
  case $name in
${commands.map(commandCase).join('\n')}
  esac
}

if [[ $funcstack[1] == _qcow2 ]]; then
  _qcow2 "$@"
else
  compdef _qcow2 qcow2
fi
`;
}

function commandCase({ name, options, operands }: CompletedCommand): string {
  const specs = [
    ...options.map(optionSpec),
    ...(operands === undefined ? [] : [quoted(`*:operand:${action(operands)}`)]),
  ];
  const lines = specs.map((spec) => `        ${spec}`).join(' \\\n');
  return `    ${name})\n      _arguments -s \\\n${lines}\n      ;;`;
}

function optionSpec({ names, description, repeats, placeholder, values }: CompletedOption): string {
  const exclusion = repeats ? '*' : names.length > 1 ? `(${names.join(' ')})` : '';
  const spelled = names.map((name) => {
    if (values === undefined) return name;
    return name.startsWith('--') ? `${name}=` : `${name}+`;
  });
  const what = values === undefined ? '' : `:${escape(placeholder)}:${action(values)}`;
  const rest = `[${escape(description)}]${what}`;
  if (spelled.length === 1) return quoted(`${exclusion}${spelled[0]}${rest}`);
  const head = exclusion === '' ? '' : quoted(exclusion);
  return `${head}{${spelled.join(',')}}${quoted(rest)}`;
}

function action(values: Values): string {
  switch (values.kind) {
    case 'file':
      return '_files';
    case 'creation':
      return '_qcow2_creation';
    case 'any':
      return ' ';
    case 'words':
      return `(${values.words.join(' ')})`;
  }
}

function creationSpec({ name, description, words }: CompletedCreationOption): string {
  const values = words.length === 0 ? ' ' : `(${words.join(' ')})`;
  return quoted(`${name}[${escape(description)}]:value:${values}`);
}

/** Brackets and colons have a meaning in what describes an option. */
function escape(text: string): string {
  return text.replace(/[[\]:]/g, String.raw`\$&`);
}
