/**
 * What a package's entry point exports, and which of that is not documented.
 */

import ts from 'typescript';

/** Options that are enough to resolve names; types are checked elsewhere. */
const OPTIONS: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2023,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  allowImportingTsExtensions: true,
  noEmit: true,
  strict: true,
  skipLibCheck: true,
  types: ['node'],
};

/** A loaded entry point. */
export interface EntryPoint {
  checker: ts.TypeChecker;
  exports: readonly ts.Symbol[];
}

/** Loads the entry point in `file`. */
export function loadEntryPoint(file: string): EntryPoint {
  const program = ts.createProgram([file], OPTIONS);
  const checker = program.getTypeChecker();
  const source = program.getSourceFile(file);
  const module = source && checker.getSymbolAtLocation(source);
  if (module === undefined) throw new Error(`${file} is not a module`);
  const exports = checker
    .getExportsOfModule(module)
    .map((symbol) =>
      symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol,
    );
  return { checker, exports };
}

/**
 * What lacks documentation, a line each: exports without a comment, public methods and properties
 * without one that are not inherited, and functions that throw by a `throw` of their own without a
 * `@throws`.
 */
export function undocumented({ checker, exports }: EntryPoint): string[] {
  return exports.flatMap((symbol) => {
    const problems = lacks(symbol, symbol.name, checker);
    for (const member of publicMembers(symbol)) {
      problems.push(...lacks(member, `${symbol.name}.${member.name}`, checker));
    }
    return problems;
  });
}

function lacks(symbol: ts.Symbol, name: string, checker: ts.TypeChecker): string[] {
  const problems: string[] = [];
  if (ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim() === '') {
    problems.push(`${name} has no description`);
  }
  const tags = symbol.getJsDocTags(checker).map((tag) => tag.name);
  const throws = (symbol.declarations ?? []).some((declaration) => throwsItself(declaration));
  if (throws && !tags.includes('throws')) problems.push(`${name} throws without @throws`);
  return problems;
}

/** Whether a function has a `throw` statement outside nested functions and `try` blocks. */
function throwsItself(declaration: ts.Declaration): boolean {
  if (!ts.isFunctionDeclaration(declaration) && !ts.isMethodDeclaration(declaration)) return false;
  const visit = (node: ts.Node): boolean => {
    if (ts.isThrowStatement(node)) return true;
    if (ts.isFunctionLike(node)) return false;
    if (ts.isTryStatement(node) && node.catchClause !== undefined) {
      return visit(node.catchClause.block);
    }
    return ts.forEachChild(node, visit) ?? false;
  };
  return declaration.body !== undefined && visit(declaration.body);
}

/** Members that users see and that say more than the language does. */
function publicMembers(symbol: ts.Symbol): ts.Symbol[] {
  const declared = symbol.flags & (ts.SymbolFlags.Class | ts.SymbolFlags.Interface);
  if (!declared) return [];
  return [...(symbol.members?.values() ?? [])].filter((member) => {
    const [declaration] = member.declarations ?? [];
    if (declaration === undefined || !ts.isClassOrTypeElement(declaration)) return false;
    if (ts.isConstructorDeclaration(declaration)) return false;
    const { name } = declaration;
    if (name === undefined || !ts.isIdentifier(name)) return false;
    const hidden = ts.ModifierFlags.Private | ts.ModifierFlags.Override;
    return (ts.getCombinedModifierFlags(declaration) & hidden) === 0;
  });
}
