/** Certificates and keys for TLS, made with openssl under the names that NBD's programs expect. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './qemu.ts';

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
const USAGES = { server: 'serverAuth', client: 'clientAuth' } as const;

/** Makes a directory with an authority, and a certificate for `localhost` for both sides. */
export function makeCertificates(directory: string): void {
  mkdirSync(directory);
  const authority = ['-subj', '/CN=authority', '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem'];
  run('openssl', ['req', '-x509', ...KEY, '-days', '2', ...authority], { cwd: directory });
  makeCertificate(directory, 'server');
  makeCertificate(directory, 'client');
}

/** Makes a certificate of the directory's authority, in place of the one that is there. */
export function makeCertificate(
  directory: string,
  side: keyof typeof USAGES,
  { days = 2 }: { days?: number } = {},
): void {
  const openssl = (...args: readonly string[]): string => run('openssl', args, { cwd: directory });
  const [key, request, certificate] = [`${side}-key.pem`, `${side}.csr`, `${side}-cert.pem`];
  openssl('req', ...KEY, '-subj', '/CN=localhost', '-keyout', key, '-out', request);
  const extensions = `subjectAltName=DNS:localhost\nextendedKeyUsage=${USAGES[side]}\n`;
  writeFileSync(join(directory, 'extensions'), extensions);
  const authority = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem', '-CAcreateserial'];
  const signing = [...authority, '-extfile', 'extensions', '-days', `${days}`];
  openssl('x509', '-req', ...signing, '-in', request, '-out', certificate);
}
