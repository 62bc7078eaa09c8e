/**
 * TLS for NBD (`NBD_OPT_STARTTLS`): with X.509 certificates, or keys that both sides know.
 *
 * Files are called as QEMU, libnbd and nbdkit expect them: `server-cert.pem`, `server-key.pem`,
 * `ca-cert.pem` and perhaps `ca-crl.pem` in one directory; or one file of lines `USER:HEXKEY`, as
 * psktool(1) makes it.
 */

import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { createServer } from 'node:tls';
import type { TlsOptions, TLSSocket } from 'node:tls';
import { hostError, Qcow2Error } from '../../errors.ts';

/** How connections are encrypted. */
export interface NbdTlsOptions {
  /** Whether clients have to use TLS, or may. */
  mode: 'on' | 'require';
  /** Directory of `server-cert.pem`, `server-key.pem` and `ca-cert.pem`. */
  certificates?: string | undefined;
  /** With certificates: take only clients that have one of that authority (default false). */
  verifyPeer?: boolean | undefined;
  /** File of users and their keys, in place of certificates. */
  pskFile?: string | undefined;
}

/** What encrypting a connection takes, read once. */
export interface TlsService {
  readonly mode: 'on' | 'require';
  /**
   * Makes a connection an encrypted one; the client speaks next.
   * @throws {Error} (rejects) if the client and the server cannot agree, or the client has to show a
   * certificate and does not
   */
  upgrade(socket: Socket): Promise<TLSSocket>;
}

/** Suites for keys that both sides know: those of TLS 1.3, and of 1.2 with fresh keys first. */
const PSK_CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_AES_256_GCM_SHA384',
  'kECDHEPSK',
  'kDHEPSK',
  'kPSK',
].join(':');
/** Bytes of a key, and of a file of them. */
const MAX_KEY_BYTES = 64;
const MAX_PSK_FILE_BYTES = 16 * 1024 * 1024;

/**
 * Reads certificates or keys.
 * @throws {Qcow2Error} `INVALID_OPTION` if there are neither or both, or a file makes no sense;
 * `HOST` if one cannot be read
 */
export function loadTls(options: NbdTlsOptions): TlsService {
  const { mode, certificates, pskFile, verifyPeer = false } = options;
  if ((certificates === undefined) === (pskFile === undefined)) {
    throw new Qcow2Error('INVALID_OPTION', 'TLS needs either certificates or a file of keys');
  }
  if (verifyPeer && certificates === undefined) {
    throw new Qcow2Error('INVALID_OPTION', 'only clients with certificates can be verified', {
      hint: 'those that have a key are known by it',
    });
  }
  const settings =
    certificates === undefined ? pskSettings(pskFile!) : x509Settings(certificates, verifyPeer);
  try {
    // What does not fit together is told now.
    createServer(settings);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const file = certificates ?? pskFile;
    throw new Qcow2Error('INVALID_OPTION', `TLS cannot use it: ${reason}`, { file, cause });
  }
  return { mode, upgrade: (socket) => upgrade(socket, settings) };
}

function x509Settings(directory: string, verifyPeer: boolean): TlsOptions {
  const crl = join(directory, 'ca-crl.pem');
  return {
    cert: readCertificate(join(directory, 'server-cert.pem')),
    key: readRequired(join(directory, 'server-key.pem')),
    ...(verifyPeer ? { ca: readRequired(join(directory, 'ca-cert.pem')), ...revoked(crl) } : {}),
    requestCert: verifyPeer,
    rejectUnauthorized: verifyPeer,
    minVersion: 'TLSv1.2',
  };
}

/** The server's own: clients would refuse one that is not valid now, without saying so to the server. */
function readCertificate(path: string): Buffer {
  const content = readRequired(path);
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(content);
  } catch (cause) {
    throw new Qcow2Error('INVALID_OPTION', 'it is no certificate in PEM form', {
      file: path,
      cause,
    });
  }
  const { validFrom, validTo } = certificate;
  const now = Date.now();
  if (now > Date.parse(validTo)) {
    throw new Qcow2Error('INVALID_OPTION', `the certificate expired at ${validTo}`, { file: path });
  }
  if (now < Date.parse(validFrom)) {
    const problem = `the certificate is valid from ${validFrom}, and the clock is behind that`;
    throw new Qcow2Error('INVALID_OPTION', problem, { file: path });
  }
  return content;
}

function revoked(path: string): Pick<TlsOptions, 'crl'> {
  try {
    return { crl: readFileSync(path) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw hostError('cannot read', path, error);
  }
}

function pskSettings(path: string): TlsOptions {
  const keys = parsePskFile(path, readRequired(path));
  return {
    ciphers: PSK_CIPHERS,
    minVersion: 'TLSv1.2',
    pskCallback: (_socket, identity) => keys.get(identity) ?? null,
  };
}

function parsePskFile(path: string, content: Buffer): Map<string, Buffer> {
  if (content.length > MAX_PSK_FILE_BYTES) {
    throw new Qcow2Error('INVALID_OPTION', 'it is too long for a file of keys', { file: path });
  }
  const keys = new Map<string, Buffer>();
  for (const [index, line] of content.toString().split('\n').entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const [, user, key] = /^([^:]+):([0-9a-f]+)\s*$/i.exec(line) ?? [];
    const bytes = Buffer.from(key ?? '', 'hex');
    const isWhole = bytes.length > 0 && bytes.length * 2 === key?.length;
    if (user === undefined || !isWhole || bytes.length > MAX_KEY_BYTES) {
      throw new Qcow2Error('INVALID_OPTION', `line ${index + 1} is not USER:HEXKEY`, {
        file: path,
        hint: 'psktool makes such files',
      });
    }
    keys.set(user, bytes);
  }
  if (keys.size === 0) throw new Qcow2Error('INVALID_OPTION', 'it has no keys', { file: path });
  return keys;
}

function readRequired(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw hostError('cannot read', path, error);
  }
}

/** A server of its own for each connection, so that there is no doubt whose answer it is. */
function upgrade(socket: Socket, settings: TlsOptions): Promise<TLSSocket> {
  let unknownUser: string | undefined;
  const { pskCallback } = settings;
  const server = createServer({
    ...settings,
    ...(pskCallback && {
      pskCallback: (secured: TLSSocket, identity: string) => {
        const key = pskCallback(secured, identity);
        if (key === null) unknownUser = identity;
        return key;
      },
    }),
  });
  // A client that hangs up its side cannot finish the handshake, and is to be noticed.
  socket.allowHalfOpen = false;
  return new Promise((resolve, reject) => {
    server.once('secureConnection', (secured) => {
      socket.allowHalfOpen = secured.allowHalfOpen = true;
      resolve(secured);
    });
    server.once('tlsClientError', (error, { authorizationError }) => {
      let problem = tlsProblem(error);
      // Typed as an error, and in fact its code.
      if (typeof authorizationError === 'string')
        problem = tlsProblem({ code: authorizationError });
      if (unknownUser !== undefined) {
        problem = `there is no key for user ${JSON.stringify(unknownUser.slice(0, 64))}`;
      }
      reject(new Error(problem, { cause: error }));
    });
    server.emit('connection', socket);
  });
}

/** What OpenSSL's reasons mean for whoever runs the server. */
const REASONS: Record<string, string> = {
  'peer did not return a certificate': 'the client has no certificate, and has to show one',
  'binder does not verify': "the client's key is another than the one in the file of keys",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "the client's certificate is of an authority not in ca-cert.pem",
  CERT_HAS_EXPIRED: "the client's certificate has expired",
  CERT_NOT_YET_VALID: "the client's certificate is not valid yet",
  CERT_REVOKED: "the client's certificate has been revoked",
  // The client's: it hung up in the middle, as those do that do not trust what they see.
  ECONNRESET: 'the client broke it off; it may not trust the certificate',
};

/** Why TLS came to nothing, or to an end, in words rather than in OpenSSL's numbers. */
function tlsProblem(error: { reason?: string; code?: string; message?: string }): string {
  const { reason, code, message } = error;
  return REASONS[reason ?? ''] ?? REASONS[code ?? ''] ?? reason ?? message ?? code ?? 'unknown';
}
