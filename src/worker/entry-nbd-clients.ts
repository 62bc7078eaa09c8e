/** A thread that serves clients of an NBD server, with the images open for itself. */

import { Socket } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import { ClientSet } from '../export/nbd/clients.ts';
import { ExportTable } from '../export/nbd/exports.ts';
import { openImageSet } from '../export/nbd/image-set.ts';
import type { ImageExports } from '../export/nbd/image-exports.ts';
import { PoolUsage } from '../export/nbd/pool-usage.ts';
import { RateLimitedLog } from '../export/nbd/rate-limited-log.ts';
import { BufferPool } from '../export/nbd/reply-writer.ts';
import { loadTls } from '../export/nbd/tls.ts';
import { prepareDirectSockets } from '../host/sendfile.ts';
import { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { countAllReads } from '../operations/stats.ts';
import { RequestStats } from '../util/request-stats.ts';
import type { NbdThreadData, NbdThreadMessage, NbdThreadRequest } from './nbd-protocol.ts';
import { toWireError } from './wire-error.ts';

const data = workerData as NbdThreadData;

function tell(message: NbdThreadMessage): void {
  parentPort!.postMessage(message);
}

/** Limited here too, so that no client can flood the server's own thread. */
const warnings = new RateLimitedLog((line) => {
  const [, name = '', message = ''] = /^(.*?): (.*)$/s.exec(line) ?? ['', 'clients', line];
  tell({ kind: 'log', name, message, level: 'warning' });
});

function serve(images: ImageExports): void {
  const { usage, row, handshakeTimeoutMs, idleTimeoutMs, tls } = data;
  const stats = data.stats && new RequestStats(data.stats, row);
  if (stats !== undefined) countAllReads(images.images, stats);
  const clients = new ClientSet({
    exports: new ExportTable(images.exports),
    pool: new BufferPool(new PoolUsage(usage, row)),
    tls: tls && loadTls(tls),
    handshakeTimeoutMs,
    idleTimeoutMs,
    stats,
    log: (name, message, level) => {
      if (level === 'warning') warnings.write(`${name}: ${message}`);
      else tell({ kind: 'log', name, message, level });
    },
    onGone: (name) => tell({ kind: 'gone', name }),
  });
  const end = async (graceMs: number): Promise<void> => {
    await clients.close(graceMs);
    warnings.flush();
    images.close();
    parentPort!.close();
  };
  parentPort!.on('message', (request: NbdThreadRequest) => {
    if (request.kind === 'close') {
      void end(request.graceMs);
      return;
    }
    const { name, descriptor, moved } = request;
    tell({ kind: 'taken', name });
    clients.add(new Socket({ fd: descriptor, allowHalfOpen: true }), name, moved);
  });
}

try {
  const { clusterCache: memory, cacheOwner } = data;
  const clusterCache = memory && SharedClusterCache.attach(memory, cacheOwner);
  const specs = data.images.map(({ path, options }) => ({
    path,
    options: { ...options, open: { ...options.open, clusterCache } },
  }));
  const images = await openImageSet(specs);
  if (images.fingerprint !== data.fingerprint) {
    images.close();
    throw new Qcow2Error('HOST', 'the image was replaced or written while it is served');
  }
  prepareDirectSockets();
  serve(images);
  tell({ kind: 'ready' });
} catch (error) {
  tell({ kind: 'failed', error: toWireError(error) });
}
