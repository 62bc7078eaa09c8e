/** Bytes of a device whose hash the reader reports. */
export const HASHED_BYTES = 1024 * 1024;
