/**
 * Regenerates the images of this directory and their sidecars: `node images/generate.mjs [GROUP…]`.
 *
 * Groups: demo, features, damage; all without arguments. Needs qemu-img and qemu-io, and for the
 * demonstration image sfdisk, mkfs.vfat, mtools and e2fsprogs. Needs no privileges.
 */

const GROUPS = {
  demo: async () => (await import('./generator/demo.mjs')).generateDemo(),
  features: async () => {
    const { generateGroup } = await import('./generator/workshop.mjs');
    generateGroup('features', (await import('./generator/features.mjs')).featureCases);
  },
  damage: async () => {
    const { generateGroup } = await import('./generator/workshop.mjs');
    generateGroup('damage', (await import('./generator/damage.mjs')).damageCases);
  },
};

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !(name in GROUPS));
if (unknown.length > 0) {
  console.error(`unknown group ${unknown.join(', ')}; there are ${Object.keys(GROUPS).join(', ')}`);
  process.exit(2);
}
for (const [name, generate] of Object.entries(GROUPS)) {
  if (wanted.length === 0 || wanted.includes(name)) await generate();
}
