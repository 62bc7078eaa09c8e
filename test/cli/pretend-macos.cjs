/**
 * Preloaded into the command: it takes this machine for one with macOS, and fuse-native is that of
 * Linux all the same, without the options that only macOS's libfuse knows.
 */

'use strict';

const { constants } = require('node:os');
const { dirname, join } = require('node:path');
const Module = require('node:module');
const process = require('node:process');

const platform = Object.getOwnPropertyDescriptor(process, 'platform');
const pretend = () => Object.defineProperty(process, 'platform', { ...platform, value: 'darwin' });
const load = Module._load;

Module._load = function (request, ...rest) {
  if (request !== 'fuse-native') return load.call(this, request, ...rest);
  Object.defineProperty(process, 'platform', platform);
  try {
    process.env.PREBUILDS_ONLY = '1';
    const folder = dirname(require.resolve('fuse-native/package.json'));
    const library = join(folder, 'prebuilds', `linux-${process.arch}`, 'libfuse.so');
    try {
      process.dlopen({ exports: {} }, library, constants.dlopen.RTLD_NOW | 0x1000);
    } catch {
      // It is no addon, and stays loaded.
    }
    const Fuse = load.call(this, request, ...rest);
    return class extends Fuse {
      constructor(directory, operations, options) {
        const fsname = options.fsname.replace(/,volname=(?:\\.|[^,])*,noappledouble/, '');
        super(directory, operations, { ...options, fsname });
      }
    };
  } finally {
    pretend();
  }
};
pretend();
