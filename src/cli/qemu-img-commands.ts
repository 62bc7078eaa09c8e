/** The commands of qemu-img, in the order of its help. */
export const QEMU_IMG_COMMANDS: readonly string[] = [
  'amend',
  'bench',
  'bitmap',
  'check',
  'commit',
  'compare',
  'convert',
  'create',
  'dd',
  'info',
  'map',
  'measure',
  'snapshot',
  'rebase',
  'resize',
];
