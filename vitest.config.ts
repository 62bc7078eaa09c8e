import { defineConfig } from 'vitest/config';

export default defineConfig({
  define: { __QCOW2_VERSION__: JSON.stringify('0.0.0-test') },
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    // All cores: by default one is left out, which is half of a small machine.
    maxWorkers: '100%',
    testTimeout: 30_000,
    hookTimeout: 30_000,
    // A test that is left on `.only` would hide all the others.
    allowOnly: false,
  },
});
