/** Disks with partition tables. */

import { run } from './tools.mjs';

/** Partitions a raw disk with sfdisk, marks the start of each partition, and packs it. */
function partitioned(w, image, { size, script, marks = [], change = () => undefined }) {
  w.run('truncate', '-s', size, 'disk.raw');
  w.log.push(`sfdisk disk.raw <<'END'\n${script}END`);
  run('sfdisk', ['--quiet', 'disk.raw'], { cwd: w.directory, input: script });
  for (const [index, sector] of marks.entries()) {
    w.io('disk.raw', ['-f', 'raw'], `write -P ${0x31 + index} ${sector * 512} 4k`);
  }
  change();
  w.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k', 'disk.raw', image);
}

const GPT = `label: gpt
label-id: 0B0B0B0B-1111-4222-8333-444444444444
start=2048, size=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=0B0B0B0B-0001-4222-8333-444444444444, name="EFI"
start=4096, size=4096, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid=0B0B0B0B-0002-4222-8333-444444444444, name="root äöü"
`;

export const partitionCases = [
  {
    name: 'partitions-mbr',
    description: 'An MBR with three primary partitions',
    features: ['mbr'],
    make: (w, image) =>
      partitioned(w, image, {
        size: '8M',
        script:
          'label: dos\nlabel-id: 0x12345678\nstart=2048, size=2048, type=c, bootable\n' +
          'start=4096, size=4096, type=83\nstart=8192, size=4096, type=82\n',
        marks: [2048, 4096, 8192],
      }),
  },
  {
    name: 'partitions-mbr-extended',
    description: 'An MBR with an extended partition and three logical ones',
    features: ['mbr', 'mbr-extended'],
    make: (w, image) =>
      partitioned(w, image, {
        size: '16M',
        script:
          'label: dos\nlabel-id: 0x12345679\nstart=2048, size=2048, type=83\n' +
          'start=4096, size=20480, type=5\nstart=6144, size=2048, type=83\n' +
          'start=10240, size=2048, type=7\nstart=14336, size=4096, type=82\n',
        marks: [2048, 6144, 10240, 14336],
      }),
  },
  {
    name: 'partitions-gpt',
    description: 'A GPT with two named partitions',
    features: ['gpt'],
    make: (w, image) => partitioned(w, image, { size: '8M', script: GPT, marks: [2048, 4096] }),
  },
  {
    name: 'partitions-gpt-backup',
    description: 'A GPT whose first copy has a wrong checksum; the copy at the end is good',
    features: ['gpt', 'gpt-backup'],
    make: (w, image) =>
      partitioned(w, image, {
        size: '8M',
        script: GPT,
        marks: [2048, 4096],
        change: () => w.io('disk.raw', ['-f', 'raw'], 'write -P 0xff 528 4'),
      }),
  },
];
