/** Headers: feature bits, extensions, lengths. */

const UNKNOWN_EXTENSION = 0x12345678;
const FEATURE_NAMES = 0x6803f857;

/** A small image with some data, which a case then patches. */
function plain(w, image, options = '') {
  w.create(image, '64k', `cluster_size=4k${options === '' ? '' : ','}${options}`);
  w.io(image, 'write -P 0xa1 0 10k', 'write -P 0xa2 40k 4k');
}

/** A row of the feature name table. */
function featureRow(type, bit, name) {
  const row = Buffer.alloc(48);
  row[0] = type;
  row[1] = bit;
  row.write(name, 2, 46, 'latin1');
  return row;
}

export const headerCases = [
  {
    name: 'lazy-refcounts',
    description: 'Lazy refcounts, closed cleanly',
    features: ['lazy-refcounts'],
    make: (w, image) => plain(w, image, 'lazy_refcounts=on'),
  },
  {
    name: 'dirty',
    description:
      'The dirty bit is set and a refcount is stale, as after a crash with lazy refcounts',
    features: ['lazy-refcounts', 'dirty'],
    make(w, image) {
      plain(w, image, 'lazy_refcounts=on');
      w.patch(image, 'dirty bit; refcount of guest cluster 1 = 0', (bytes) => {
        bytes.setU64(72, 1);
        bytes.setU16(bytes.refcountOf(bytes.dataOffset(1)), 0);
      });
    },
  },
  {
    name: 'corrupt-bit',
    description: 'The corrupt bit is set; the image is readable',
    features: ['corrupt'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'corrupt bit', (bytes) => bytes.setU64(72, 2));
    },
  },
  {
    name: 'compatible-unknown',
    description: 'Compatible feature bits that nobody knows',
    features: ['compatible-features'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'compatible_features bits 17 and 63', (bytes) =>
        bytes.setU64(80, (1n << 17n) | (1n << 63n)),
      );
    },
  },
  {
    name: 'autoclear-unknown',
    description: 'Autoclear feature bits that nobody knows',
    features: ['autoclear-features'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'autoclear_features bits 9 and 40', (bytes) =>
        bytes.setU64(88, (1n << 9n) | (1n << 40n)),
      );
    },
  },
  {
    name: 'incompatible-unknown',
    description: 'An incompatible feature bit that nobody knows: the image must be refused',
    features: ['incompatible-features'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'incompatible_features bit 33', (bytes) => bytes.setU64(72, 1n << 33n));
    },
  },
  {
    name: 'incompatible-named',
    description:
      'An unknown incompatible feature that the feature name table names, in all 46 bytes',
    features: ['incompatible-features', 'feature-names'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'incompatible_features bit 33, named', (bytes) => {
        bytes.setU64(72, 1n << 33n);
        const row = featureRow(0, 33, 'holographic clusters of the forty-sixth degree');
        bytes.insertExtension(FEATURE_NAMES, row);
      });
    },
  },
  {
    name: 'extension-unknown',
    description: 'A header extension of an unknown type, not padded to 8 bytes by its length',
    features: ['extensions'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'extension 0x12345678 of 13 bytes', (bytes) =>
        bytes.insertExtension(UNKNOWN_EXTENSION, Buffer.from('unknown bytes')),
      );
    },
  },
  {
    name: 'extension-unknown-backing',
    description: 'An unknown extension, the backing format and the backing name',
    features: ['extensions', 'backing-file'],
    make(w, image) {
      const base = 'extension-unknown-backing-base.raw';
      w.file(base, Buffer.alloc(8192, 'base'), '8192 bytes of "base"');
      w.create(image, '', 'cluster_size=4k', '-b', base, '-F', 'raw');
      w.patch(image, 'extension 0x12345678 of 5 bytes', (bytes) =>
        bytes.insertExtension(UNKNOWN_EXTENSION, Buffer.from('abcde')),
      );
      return [base];
    },
  },
  {
    name: 'extensions-none',
    description: 'No header extensions at all',
    features: ['extensions'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'end marker right after the header', (bytes) =>
        bytes.write(bytes.headerLength, Buffer.alloc(8)),
      );
    },
  },
  {
    name: 'header-length-104',
    description: 'A version 3 header without the compression type',
    features: ['header-length'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'header_length = 104, end marker there', (bytes) => {
        bytes.setU32(100, 104);
        bytes.write(104, Buffer.alloc(16));
      });
    },
  },
  {
    name: 'header-length-long',
    description: 'A header that is longer than anyone knows; the extensions start after it',
    features: ['header-length'],
    make(w, image) {
      plain(w, image);
      w.patch(image, 'header_length = 256, unknown bytes, end marker', (bytes) => {
        bytes.setU32(100, 256);
        bytes.write(112, Buffer.alloc(144, 0xee));
        bytes.write(256, Buffer.alloc(8));
      });
    },
  },
];
