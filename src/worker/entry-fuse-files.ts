/** A thread for one job on the files of an image: see `file-jobs.ts`. */

import { parentPort, workerData } from 'node:worker_threads';
import { doFileJob } from './file-jobs.ts';
import type { KernelMountJob, UnmountJob } from './file-jobs.ts';

parentPort!.postMessage(doFileJob(workerData as KernelMountJob | UnmountJob));
