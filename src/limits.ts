/**
 * Every bound that an image's fields are held against, each with its reason.
 *
 * A length, count or offset from a file is compared with one of these before it is used to
 * allocate or to loop, so that a small hostile image can cost neither memory nor time.
 */

const KiB = 1024;
const MiB = 1024 * KiB;

/** Smallest and largest cluster, as powers of two (QEMU's bounds; the lower one is the format's). */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Extended L2 entries divide a cluster by 32; a subcluster is at least one 512-byte sector. */
export const MIN_CLUSTER_BITS_EXTENDED_L2 = 14;
/** Refcounts are at most 64 bits wide. */
export const MAX_REFCOUNT_ORDER = 6;

/** Bytes in an active or snapshot L1 table (QEMU). */
export const MAX_L1_BYTES = 32 * MiB;
/** Bytes in the refcount table (QEMU). */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * MiB;

/** Internal snapshots in an image (QEMU). */
export const MAX_SNAPSHOTS = 65_536;
/** Bytes in the snapshot table (QEMU). */
export const MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB;
/** Bytes of extra data in one snapshot table row (QEMU). */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1 * KiB;

/** Bytes in the name of a snapshot that is made here (QEMU's buffer holds 255 and a NUL). */
export const MAX_SNAPSHOT_NAME_BYTES = 255;

/** Persistent bitmaps in an image (QEMU). */
export const MAX_BITMAPS = 65_535;
/** Bytes in the bitmap directory (QEMU: 65,535 entries of at most 1 KiB). */
export const MAX_BITMAP_DIRECTORY_BYTES = 64 * MiB;
/** Entries in one bitmap table (QEMU: 32 MiB of 8-byte entries). */
export const MAX_BITMAP_TABLE_ENTRIES = (32 * MiB) / 8;
/** Bytes that one bitmap may cover when it is laid out bit for bit (QEMU: 512 MiB). */
export const MAX_BITMAP_DATA_BYTES = 512 * MiB;
/** Bitmap granularity, as powers of two (the format's). */
export const MIN_BITMAP_GRANULARITY_BITS = 9;
export const MAX_BITMAP_GRANULARITY_BITS = 31;
/** Bytes in a bitmap's name (the format's; the field has 16 bits, QEMU reads 1023). */
export const MAX_BITMAP_NAME_BYTES = 1023;

/** Bytes in a backing file's name (the format's). */
export const MAX_BACKING_NAME_BYTES = 1023;
/** Bytes in an external data file's name (PATH_MAX; the format has no bound but the cluster). */
export const MAX_DATA_FILE_NAME_BYTES = 4095;
/** Bytes in the backing format's name (QEMU's buffer holds 15 and a NUL). */
export const MAX_BACKING_FORMAT_BYTES = 15;
/** Layers in a backing chain: beyond it a loop is likelier than an intention. */
export const MAX_CHAIN_DEPTH = 1024;

/** Bits of a host offset in an L1, L2 or refcount-table entry: the format has 56. */
export const MAX_HOST_OFFSET = 2 ** 56 - 1;

/** Bytes of the largest disk: offsets are JavaScript numbers, exact up to here. */
export const MAX_DISK_SIZE = Number.MAX_SAFE_INTEGER;

/** Logical partitions followed in an extended MBR partition (Linux follows 256 links at most). */
export const MAX_LOGICAL_PARTITIONS = 256;
/** Entries read from a GPT (the specification's minimum is 128; nobody writes more than this). */
export const MAX_GPT_ENTRIES = 4096;
/** Bytes in one GPT entry. */
export const MAX_GPT_ENTRY_BYTES = 4096;

/** Default bytes of an image's metadata cache (L1 and L2 slices). */
export const DEFAULT_METADATA_CACHE_BYTES = 16 * MiB;
/** Default bytes of an image's decompressed-cluster cache. */
export const DEFAULT_CLUSTER_CACHE_BYTES = 16 * MiB;
/** Most bytes of one cluster cache: Node makes no larger block of shared memory everywhere. */
export const MAX_CLUSTER_CACHE_BYTES = 2 * 1024 * MiB;
