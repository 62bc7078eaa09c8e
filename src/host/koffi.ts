/** koffi, an optional dependency: functions of C libraries, which Node cannot call by itself. */

import { createRequire } from 'node:module';

/** The part of koffi's interface that is used here. */
export interface Koffi {
  load(path: string): { func(prototype: string): (...values: unknown[]) => unknown };
  errno(): number;
  address(bytes: Uint8Array): bigint;
  os: { errno: Record<string, number> };
}

/**
 * Loads koffi.
 * @throws {Error} if it is not installed, or not for this platform
 */
export function loadKoffi(): Koffi {
  const require = createRequire(import.meta.url);
  try {
    // The native part, which is all of that interface. The package looks for it in many places and
    // dresses it up, for which it takes as long as a third of Node's own start.
    return require(`@koromix/koffi-${process.platform}-${process.arch}`) as Koffi;
  } catch {
    // Not where this file looks for it, as with package managers that nest dependencies.
    return require('koffi') as Koffi;
  }
}
