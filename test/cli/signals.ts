/** Signals for a command that runs in this process. */

/**
 * Sends a signal as soon as something new listens to it, once. On a busy machine, a command can
 * take any time to get there.
 * @returns what to give to `clearInterval` when the command has ended
 */
export function signalWhenHeard(signal: NodeJS.Signals): NodeJS.Timeout {
  const before = process.listenerCount(signal);
  const timer = setInterval(() => {
    if (process.listenerCount(signal) <= before) return;
    clearInterval(timer);
    process.emit(signal, signal);
  }, 1);
  return timer;
}
