/** Opens the files of an {@link ImageVariant}, wherever their bytes are. */

import type { BlockDevice, HostFile } from '../../src/device/block-device.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { FILE_NAMES, openingOptions } from './image-variants.ts';
import type { FileRole, ImageVariant } from './image-variants.ts';

/** The files of an image as devices. */
export type VariantDevices<D extends BlockDevice = BlockDevice> = Partial<Record<FileRole, D>>;

/** Opens an image for reading. */
export function openForReading(variant: ImageVariant, devices: VariantDevices): Qcow2Image {
  return openImage(variant, devices, false);
}

/** Opens an image for writing, and its backing file so that it can be committed to. */
export function openForWriting(
  variant: ImageVariant,
  devices: VariantDevices<HostFile>,
): Qcow2Image {
  return openImage(variant, devices, true);
}

function openImage(variant: ImageVariant, devices: VariantDevices, writable: boolean): Qcow2Image {
  const { image, data, backing } = devices;
  return new Qcow2Image({
    path: FILE_NAMES.image,
    file: image!,
    header: readHeader(image!),
    dataFile: data === undefined ? undefined : { device: data, path: FILE_NAMES.data },
    backing:
      backing !== undefined && variant.backing?.format === 'qcow2'
        ? new Qcow2Image({
            path: FILE_NAMES.backing,
            file: backing,
            header: readHeader(backing),
            writable,
          })
        : backing,
    writable,
    ...openingOptions(variant),
  });
}

/** The bytes of files as devices. */
export function memoryDevices(files: Partial<Record<FileRole, Uint8Array>>): VariantDevices {
  const devices: VariantDevices = {};
  for (const [role, bytes] of Object.entries(files)) {
    devices[role as FileRole] = new MemoryDevice(bytes);
  }
  return devices;
}

/** All that a device reads as. */
export function readAll(device: BlockDevice): Buffer {
  const bytes = Buffer.allocUnsafe(device.size);
  device.read(bytes, 0);
  return bytes;
}
