import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { fileName, UniqueNames } from '../../../src/export/fuse/names.ts';

describe('fileName', () => {
  it.each([
    ['1-root', '.raw', '1-root.raw'],
    ['1-Größe 中', '.raw', '1-Größe 中.raw'],
    ['../../etc/passwd', '', '.._.._etc_passwd'],
    ['a\0b\nc\x1b[31m', '', 'a_b_c_[31m'],
    ['turn\u202earound', '', 'turn_around'],
    ['half\ud800', '', 'half_'],
    ['', '', '_'],
    ['.', '', '_'],
    ['..', '', '__'],
    ['..', '.raw', '...raw'],
    ['  spaces  ', '.raw', 'spaces.raw'],
  ])('of %j and %j is %j', (stem, suffix, name) => {
    expect(fileName(stem, suffix)).toBe(name);
  });

  it('cuts long names between characters', () => {
    expect(fileName('x'.repeat(300), '.raw')).toBe(`${'x'.repeat(251)}.raw`);
    expect(fileName('€'.repeat(300), '.raw')).toBe(`${'€'.repeat(83)}.raw`);
    expect(fileName('😀'.repeat(300))).toBe('😀'.repeat(63));
  });

  it('is always a name that the kernel takes', () => {
    fc.assert(
      fc.property(
        fc.oneof(fc.string({ unit: 'binary', maxLength: 400 }), fc.string({ maxLength: 5 })),
        fc.constantFrom('', '.raw'),
        (stem, suffix) => {
          const name = fileName(stem, suffix);
          expect(Buffer.byteLength(name)).toBeLessThanOrEqual(255);
          expect(name).not.toMatch(/[/\0]|^\.{0,2}$/);
          expect(name.endsWith(suffix)).toBe(true);
          // What the kernel sends back is the same name.
          expect(Buffer.from(name).toString()).toBe(name);
        },
      ),
    );
  });
});

describe('UniqueNames', () => {
  it('numbers what would be the same', () => {
    const names = new UniqueNames();
    const given = ['a', 'a', 'b', 'a~2', 'a'].map((stem) => names.next(stem, '.raw'));
    expect(given).toEqual(['a.raw', 'a~2.raw', 'b.raw', 'a~2~2.raw', 'a~3.raw']);
  });

  it('is quick with 65,536 snapshots of one name', () => {
    const names = new UniqueNames();
    const given = new Set<string>();
    for (let count = 0; count < 65_536; count++) given.add(names.next('x'.repeat(300)));
    expect(given.size).toBe(65_536);
  }, 5000);
});
