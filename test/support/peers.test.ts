import { describe, expect, it } from 'vitest';
import { findProgram, hasPeer, missingPeers, peersAreRequired } from './peers.ts';

describe('peers', () => {
  it('are found by the names of their programs', () => {
    expect(findProgram('sh')).toMatch(/\/sh$/);
    expect(hasPeer('sh')).toBe(true);
    expect(missingPeers(['sh', 'no-such-program-anywhere'])).toEqual(['no-such-program-anywhere']);
  });

  it('include being root', () => {
    expect(hasPeer('root')).toBe(process.getuid?.() === 0);
  });

  it.each([
    [{}, false],
    [{ CI: '' }, false],
    [{ CI: 'false' }, false],
    [{ CI: 'true' }, true],
    [{ CI: '1' }, true],
    [{ QCOW2_REQUIRE_PEERS: '1' }, true],
    [{ QCOW2_REQUIRE_PEERS: '0' }, false],
  ])('with the environment %j are required: %s', (env, expected) => {
    expect(peersAreRequired(env)).toBe(expected);
  });
});
