/** Backing files and chains of them. */

/** Creates an overlay that declares its backing file's format. */
function overlay(
  w,
  file,
  backing,
  { format = 'qcow2', size = '', options = 'cluster_size=4k' } = {},
) {
  w.create(file, size, options, '-b', backing, '-F', format);
}

export const backingCases = [
  {
    name: 'backing-qcow2',
    description: 'An overlay whose zero clusters hide the backing file and whose holes show it',
    features: ['backing-file', 'zero'],
    make(w, image) {
      w.create('backing-qcow2-base.qcow2', '128k', 'cluster_size=8k');
      w.io('backing-qcow2-base.qcow2', 'write -P 0x10 0 40k', 'write -P 0x11 60k 30k');
      overlay(w, image, 'backing-qcow2-base.qcow2');
      w.io(
        image,
        'write -P 0x20 1k 2k',
        'write -z -u 8k 8k',
        'write -z 70k 1k',
        'write -P 0x21 100k 4k',
      );
      return ['backing-qcow2-base.qcow2'];
    },
  },
  {
    name: 'backing-raw',
    description: 'An overlay on a raw file',
    features: ['backing-file', 'backing-raw'],
    make(w, image) {
      w.img('create', '-q', '-f', 'raw', 'backing-raw-base.raw', '64k');
      w.io('backing-raw-base.raw', ['-f', 'raw'], 'write -P 0x30 3k 50k');
      overlay(w, image, 'backing-raw-base.raw', { format: 'raw' });
      w.io(image, 'write -P 0x31 20k 4k');
      return ['backing-raw-base.raw'];
    },
  },
  {
    name: 'backing-shorter',
    description: 'A backing file that ends inside a cluster of the overlay; zeroes follow',
    features: ['backing-file', 'backing-shorter'],
    make(w, image) {
      w.img('create', '-q', '-f', 'raw', 'backing-shorter-base.raw', '20992');
      w.io('backing-shorter-base.raw', ['-f', 'raw'], 'write -P 0x40 0 20992');
      overlay(w, image, 'backing-shorter-base.raw', { format: 'raw', size: '64k' });
      w.io(image, 'write -P 0x41 24k 4k');
      return ['backing-shorter-base.raw'];
    },
  },
  {
    name: 'backing-longer',
    description: 'A backing file that goes on past the end of the overlay, which hides that part',
    features: ['backing-file', 'backing-longer'],
    make(w, image) {
      w.create('backing-longer-base.qcow2', '128k', 'cluster_size=4k');
      w.io('backing-longer-base.qcow2', 'write -P 0x50 0 128k');
      overlay(w, image, 'backing-longer-base.qcow2', { size: '50k' });
      w.io(image, 'write -P 0x51 0 4k');
      return ['backing-longer-base.qcow2'];
    },
  },
  {
    name: 'backing-raw-odd-size',
    description: 'A raw backing file whose length is not a multiple of 512',
    features: ['backing-file', 'backing-raw', 'virtual-size'],
    make(w, image) {
      w.file(
        'backing-raw-odd-size-base.raw',
        Buffer.alloc(10_001, 'odd '),
        '10001 bytes of "odd "',
      );
      overlay(w, image, 'backing-raw-odd-size-base.raw', { format: 'raw', size: '16k' });
      return ['backing-raw-odd-size-base.raw'];
    },
  },
  {
    name: 'chain',
    description: 'Five layers of different formats, sizes, cluster sizes and versions',
    features: ['backing-file', 'chain', 'compressed', 'extended-l2', 'version-2'],
    make(w, image) {
      w.img('create', '-q', '-f', 'raw', 'chain-0.raw', '40k');
      w.io('chain-0.raw', ['-f', 'raw'], 'write -P 0x60 0 40k');
      overlay(w, 'chain-1.qcow2', 'chain-0.raw', {
        format: 'raw',
        size: '64k',
        options: 'compat=0.10,cluster_size=512',
      });
      w.io('chain-1.qcow2', 'write -P 0x61 1k 3k', 'write -P 0x62 50k 10k');
      overlay(w, 'chain-2.qcow2', 'chain-1.qcow2', { size: '56k', options: 'cluster_size=8k' });
      w.io('chain-2.qcow2', 'write -c -P 0x63 16k 8k', 'write -z -u 24k 8k');
      overlay(w, 'chain-3.qcow2', 'chain-2.qcow2', {
        size: '96k',
        options: 'cluster_size=16k,extended_l2=on',
      });
      w.io('chain-3.qcow2', 'write -P 0x64 2k 1k', 'write -z -u 33k 1k');
      overlay(w, image, 'chain-3.qcow2');
      w.io(image, 'write -P 0x65 90k 4k');
      return ['chain-0.raw', 'chain-1.qcow2', 'chain-2.qcow2', 'chain-3.qcow2'];
    },
  },
  {
    name: 'backing-snapshots',
    description: 'An overlay with internal snapshots on a backing file that has some too',
    features: ['backing-file', 'snapshots'],
    make(w, image) {
      w.create('backing-snapshots-base.qcow2', '64k', 'cluster_size=4k');
      w.io('backing-snapshots-base.qcow2', 'write -P 0x70 0 32k');
      w.img('snapshot', '-c', 'below', 'backing-snapshots-base.qcow2');
      w.io('backing-snapshots-base.qcow2', 'write -P 0x71 8k 4k');
      overlay(w, image, 'backing-snapshots-base.qcow2');
      w.io(image, 'write -P 0x72 4k 4k');
      w.img('snapshot', '-c', 'above', image);
      w.io(image, 'write -P 0x73 0 12k');
      for (const file of [image, 'backing-snapshots-base.qcow2']) {
        w.patch(file, 'the date of the snapshot', (bytes) => bytes.dateSnapshots(1_704_067_200));
      }
      return ['backing-snapshots-base.qcow2'];
    },
  },
  {
    name: 'extended-l2-backing',
    description: 'Unallocated subclusters show the backing file between those that are written',
    features: ['extended-l2', 'backing-file'],
    make(w, image) {
      w.create('extended-l2-backing-base.qcow2', '128k', 'cluster_size=4k');
      w.io('extended-l2-backing-base.qcow2', 'write -P 0x80 0 100k');
      overlay(w, image, 'extended-l2-backing-base.qcow2', {
        options: 'cluster_size=32k,extended_l2=on',
      });
      w.io(
        image,
        'write -P 0x81 3k 2k',
        'write -z -u 10k 4k',
        'write -z 40k 1k',
        'write -P 0x82 95k 3k',
      );
      return ['extended-l2-backing-base.qcow2'];
    },
  },
  {
    name: 'data-file-backing',
    description: 'An overlay with an external data file on a backing file',
    features: ['data-file', 'backing-file'],
    make(w, image) {
      w.create('data-file-backing-base.qcow2', '64k', 'cluster_size=4k');
      w.io('data-file-backing-base.qcow2', 'write -P 0x90 0 64k');
      overlay(w, image, 'data-file-backing-base.qcow2', {
        options: 'cluster_size=4k,data_file=data-file-backing.data',
      });
      w.io(image, 'write -P 0x91 5k 6k', 'write -z -u 20k 4k');
      return ['data-file-backing-base.qcow2', 'data-file-backing.data'];
    },
  },
];
