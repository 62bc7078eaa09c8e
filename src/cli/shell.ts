/** Words for a shell. */

/** A text as one word, in single quotes. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A text as one word, in single quotes if it needs them. */
export function shellWord(text: string): string {
  const isPlain = /^[\w./+:@%-]+$/.test(text) && !text.startsWith('-');
  return isPlain ? text : quoted(text);
}
