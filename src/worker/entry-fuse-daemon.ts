/**
 * The process that serves a mount in the background. Its argument is the request as JSON; on
 * descriptor 3 it tells the command that started it, in one line, how that went. Standard error is
 * the log.
 */

import { closeSync, writeSync } from 'node:fs';
import { startMount } from './fuse-mount.ts';
import type { ActiveMount } from './fuse-mount.ts';
import { toWireError } from './wire-error.ts';
import type { LaunchResult, MountRequest } from './fuse-request.ts';

const RESULT_FD = 3;

function report(result: LaunchResult): void {
  try {
    writeSync(RESULT_FD, `${JSON.stringify(result)}\n`);
    closeSync(RESULT_FD);
  } catch {
    // Nobody waits for the answer any more. The mount stands all the same.
  }
}

async function main(): Promise<number> {
  const request = JSON.parse(process.argv[2]!) as MountRequest;
  process.title = `qcow2 mount ${request.image} ${request.directory}`;
  let mount: ActiveMount | undefined;
  let mayGoOn = true;
  const stop = (): void => {
    mayGoOn = false;
    void mount?.stop();
  };
  process.on('uncaughtException', (error) => {
    // Ending here would wait for the worker, and the worker for requests: the mount goes first.
    writeSync(2, `${error.stack ?? error.message}\n`);
    stop();
  });
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, stop);
  try {
    mount = await startMount(request);
  } catch (error) {
    report({ ok: false, error: toWireError(error) });
    return 1;
  }
  // A signal that came before there was something to stop.
  if (!mayGoOn) stop();
  else {
    mount.accept();
    report({ ok: true, summary: mount.summary });
  }
  try {
    await mount.ended;
    return 0;
  } catch (error) {
    writeSync(2, `${error instanceof Error ? error.message : String(error)}\n`);
    return 1;
  }
}

process.exit(await main());
