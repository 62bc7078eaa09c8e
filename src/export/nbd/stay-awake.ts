/**
 * Keeping the event loop from going to sleep between the requests of a client that sends one at
 * a time. Waking a sleeping process takes longer than answering a read of 4 KiB does, so after
 * each batch of requests the loop polls for a moment before it sleeps; bench nbd-rand shows it.
 */

/** How long the loop polls after the last request, in milliseconds. */
const AWAKE_MS = 0.1;

let awakeUntil = 0;
let isPolling = false;

/** Lets the event loop poll, not sleep, until a moment from now. */
export function stayAwake(): void {
  awakeUntil = performance.now() + AWAKE_MS;
  if (isPolling) return;
  isPolling = true;
  setImmediate(poll);
}

function poll(): void {
  isPolling = performance.now() < awakeUntil;
  // A pending immediate makes the loop look at its sockets without waiting for them.
  if (isPolling) setImmediate(poll);
}
