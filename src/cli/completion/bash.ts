/** The completion script for bash. */

import { quoted } from '../shell.ts';
import type { CompletedCommand, CompletedCreationOption, Values } from './model.ts';

/** What a script is made from. */
export interface CompletionParts {
  commands: readonly CompletedCommand[];
  /** Names of those that `qcow2 qemu-img` has too. */
  imageCommands: readonly string[];
  creationOptions: readonly CompletedCreationOption[];
}

/**
 * A script that defines the completion of `qcow2`, for bash 3.2 and later. It splits the line by
 * itself: bash would cut words at `=`.
 */
export function bashCompletion(parts: CompletionParts): string {
  const { commands, imageCommands, creationOptions } = parts;
  const names = [...commands.map(({ name }) => name), 'qemu-img', 'help', '--help', '--version'];
  return `${HEAD}
_qcow2_options() {
  case $1 in
${commands.map(optionsCase).join('\n')}
  esac
}

# What the value of an option can be: words, or one of @file, @any, @creation; nothing for a flag.
_qcow2_values() {
  case "$1 $2" in
${commands.flatMap(valueCases).join('\n')}
  esac
}

_qcow2_operands() {
  case $1 in
${commands.map(operandsCase).join('\n')}
  esac
}

_qcow2_creation_values() {
  case $1 in
${creationOptions.flatMap(creationCase).join('\n')}
  esac
}

_qcow2_commands=${quoted(names.join(' '))}
_qcow2_image_commands=${quoted([...imageCommands, '--help', '--version'].join(' '))}
_qcow2_creation=${quoted(creationOptions.map(({ name }) => `${name}=`).join(' '))}

${MAIN}`;
}

const HEAD = `# Completion of qcow2 for bash. To use it: source <(qcow2 completion bash)
`;

const MAIN = String.raw`# Offers those of the words in $1 that begin with $2.
_qcow2_offer() {
  local IFS=$' \t\n'
  COMPREPLY=($(compgen -W "$1" -- "$2"))
}

# Offers what a value that begins with $2 can go on with, as $1 says; $3 stands before it.
_qcow2_offer_value() {
  local item key list
  case $1 in
    @file)
      # One by one: without quotes bash would take the name of a file for a pattern.
      while IFS= read -r item; do
        COMPREPLY+=("$item")
      done < <(compgen -f -- "$2")
      compopt -o filenames 2> /dev/null
      return
      ;;
    @any) return ;;
    @creation)
      item=\${2##*,}
      list=\${2%"$item"}
      if [[ $item == *=* ]]; then
        key=\${item%%=*}
        _qcow2_offer "$(_qcow2_creation_values "$key")" "\${item#*=}"
        COMPREPLY=("\${COMPREPLY[@]/#/$3$list$key=}")
      else
        _qcow2_offer "$_qcow2_creation" "$item"
        COMPREPLY=("\${COMPREPLY[@]/#/$3$list}")
      fi
      ;;
    *)
      _qcow2_offer "$1" "$2"
      COMPREPLY=("\${COMPREPLY[@]/#/$3}")
      ;;
  esac
}

_qcow2() {
  local line=\${COMP_LINE:0:COMP_POINT} word previous command values cut
  local -a words
  word=\${line##*[[:space:]]}
  read -ra words <<< "\${line%"$word"}"
  COMPREPLY=()
  values=$_qcow2_commands
  if [[ \${words[1]} == qemu-img ]]; then
    words=("\${words[@]:1}")
    values=$_qcow2_image_commands
  fi
  command=\${words[1]}
  previous=\${words[\${#words[@]} - 1]}
  if ((\${#words[@]} == 1)) || { [[ $command == help ]] && ((\${#words[@]} == 2)); }; then
    _qcow2_offer "$values" "$word"
  elif values=$(_qcow2_values "$command" "$previous") && [[ -n $values ]]; then
    _qcow2_offer_value "$values" "$word" ''
  elif [[ $word == --*=* ]]; then
    values=$(_qcow2_values "$command" "\${word%%=*}")
    if [[ $values == @file ]]; then
      _qcow2_offer_value @file "\${word#*=}" ''
      return
    fi
    _qcow2_offer_value "\${values:-@any}" "\${word#*=}" "\${word%%=*}="
  elif [[ $word == -* ]]; then
    _qcow2_offer "$(_qcow2_options "$command")" "$word"
  else
    _qcow2_offer_value "$(_qcow2_operands "$command")" "$word" ''
    return
  fi
  if ((\${#COMPREPLY[@]} == 1)) && [[ \${COMPREPLY[0]} == *= ]]; then
    compopt -o nospace 2> /dev/null
  fi
  # Bash takes the part behind the last = for the word.
  if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then
    cut=\${word%"\${word##*=}"}
    COMPREPLY=("\${COMPREPLY[@]#"$cut"}")
  fi
}

complete -F _qcow2 qcow2
`.replaceAll('\\${', '${');

function optionsCase({ name, options }: CompletedCommand): string {
  const words = options.flatMap(({ names, values }) =>
    names.map((option) => (values && option.startsWith('--') ? `${option}=` : option)),
  );
  return `    ${name}) echo ${quoted(words.join(' '))} ;;`;
}

function valueCases({ name, options }: CompletedCommand): string[] {
  return options.flatMap(({ names, values }) => {
    if (values === undefined) return [];
    const patterns = names.map((option) => quoted(`${name} ${option}`)).join(' | ');
    return [`    ${patterns}) echo ${quoted(wordsOf(values))} ;;`];
  });
}

function operandsCase({ name, operands }: CompletedCommand): string {
  return `    ${name}) echo ${quoted(operands === undefined ? '@any' : wordsOf(operands))} ;;`;
}

function creationCase({ name, words }: CompletedCreationOption): string[] {
  return words.length === 0 ? [] : [`    ${name}) echo ${quoted(words.join(' '))} ;;`];
}

function wordsOf(values: Values): string {
  return values.kind === 'words' ? values.words.join(' ') : `@${values.kind}`;
}
