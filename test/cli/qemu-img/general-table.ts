/** What can be said to qemu-img itself, before or instead of a subcommand. */

import { call, notHere, refused, same, better, wrong } from './model.ts';
import type { Subcommand } from './model.ts';

export const GENERAL: Subcommand = {
  name: '',
  readOnly: true,
  rows: [
    better('-h --help', 'short, with examples, for each command; the same before and after it', [
      call('--help', { output: 'own' }),
      call('-h', { output: 'own' }),
      call('info --help', { output: 'own' }),
      call('convert -h', { output: 'own' }),
    ]),
    same('-V --version', [call('--version', { output: 'own' }), call('-V', { output: 'own' })]),
    refused(
      '-T --trace',
      "it is for what QEMU's own code does; QCOW2_DEBUG=1 shows where an error comes from",
      [
        notHere('-T enable=x info @plain.qcow2', 'unknown option -T'),
        notHere('--trace enable=x info @plain.qcow2', 'unknown option --trace'),
      ],
    ),
    better('(a wrong call)', 'the nearest command or option is suggested', [
      wrong('nope @plain.qcow2', { output: 'own' }),
      wrong('info --nope @plain.qcow2'),
      wrong('info --backing-chian @plain.qcow2'),
      wrong('info -X @plain.qcow2'),
      wrong('info -f'),
    ]),
    refused('(a part of a long option)', 'it is not completed; the whole one is suggested', [
      notHere('info --backing-cha @plain.qcow2', 'did you mean --backing-chain?'),
    ]),
    same('--', [call('info -- @plain.qcow2')], 'ends the options'),
  ],
};
