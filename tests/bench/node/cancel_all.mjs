// Cancel all in process: when it was asked, and when the last waiting processor ran.
import { Worker, hear, options, say, settings } from '../../interop/node/session.mjs';

const { active } = options;
let waiting = 0;
let last = 0n;
const processor = (job, token, signal) => new Promise((resolve, reject) => {
  waiting += 1;
  signal.addEventListener('abort', () => {
    last = process.hrtime.bigint();
    waiting -= 1;
    reject(new Error('cancelled'));
  }, { once: true });
});
const worker = new Worker(options.queue, processor, { ...settings, concurrency: active });
worker.on('error', (error) => console.error(error));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
while (waiting < active) await pause(1);
await pause(300);
const asked = process.hrtime.bigint();
worker.cancelAllJobs('user');
while (waiting) await pause(1);
say({ asked: Number(asked), seen: Number(last) });
await hear();
process.exit(0);
