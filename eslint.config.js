import js from '@eslint/js';
import { defineConfig, globalIgnores } from 'eslint/config';
import tseslint from 'typescript-eslint';

const NODE_GLOBALS = {
  ...{ process: 'readonly', console: 'readonly', Buffer: 'readonly', URL: 'readonly' },
  ...{ performance: 'readonly', structuredClone: 'readonly', setTimeout: 'readonly' },
  ...{ clearTimeout: 'readonly', setInterval: 'readonly', clearInterval: 'readonly' },
  ...{ setImmediate: 'readonly', TextDecoder: 'readonly', TextEncoder: 'readonly' },
  ...{ WebAssembly: 'readonly', SharedArrayBuffer: 'readonly', Atomics: 'readonly' },
};

export default defineConfig(
  globalIgnores(['dist/', 'coverage/', 'node_modules/', 'bench/results/', 'test/.cache/']),
  {
    linterOptions: {
      reportUnusedDisableDirectives: 'error',
      noInlineConfig: true,
    },
  },
  js.configs.recommended,
  {
    rules: {
      eqeqeq: 'error',
      'no-console': 'error',
      // Work that is left belongs to an issue, where somebody finds it.
      'no-warning-comments': 'error',
      'no-var': 'error',
      'object-shorthand': 'error',
      'prefer-const': 'error',
      'max-lines': ['error', 500],
    },
  },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: { parserOptions: { projectService: true } },
    rules: {
      // Types are met, or the code is changed.
      '@typescript-eslint/ban-ts-comment': ['error', { 'ts-expect-error': true }],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-import-type-side-effects': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/only-throw-error': 'error',
      '@typescript-eslint/prefer-readonly': 'error',
      '@typescript-eslint/return-await': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
      // Numbers read well in templates; the other cases stay errors.
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      // A parameter that an interface asks for and this implementation has no use for.
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      // `||` also replaces the empty string, and that is what is meant where it is written.
      '@typescript-eslint/prefer-nullish-coalescing': 'off',
      '@typescript-eslint/dot-notation': 'off',
      '@typescript-eslint/no-empty-function': ['error', { allow: ['arrowFunctions'] }],
      // Names out of images are checked for control characters.
      'no-control-regex': 'off',
      // A hot loop over typed arrays reads better with its index.
      '@typescript-eslint/prefer-for-of': 'off',
    },
  },
  {
    files: ['src/**/*.ts'],
    rules: {
      '@typescript-eslint/explicit-module-boundary-types': 'error',
      'no-restricted-imports': [
        'error',
        { paths: [{ name: 'node:assert', message: 'Use assert of src/util/assert.ts.' }] },
      ],
    },
  },
  {
    files: ['**/*.mjs', '**/*.js'],
    languageOptions: { globals: NODE_GLOBALS },
  },
  {
    // Programs that people run: they talk on the console.
    files: ['build.mjs', 'tools/**', 'test/run.mjs', 'bench/**', 'images/**'],
    rules: { 'no-console': 'off' },
  },
);
