// Cancel in process: request -> the waiting processor runs.
import { Worker, options, say, settings } from '../../interop/node/session.mjs';

const { active, n } = options;
const asked = new Map();
const waiting = new Set();
const microseconds = [];
const processor = (job, token, signal) => new Promise((resolve, reject) => {
  waiting.add(job.id);
  signal.addEventListener('abort', () => {
    const now = process.hrtime.bigint();
    waiting.delete(job.id);
    microseconds.push(Number(now - asked.get(job.id)) / 1e3);
    reject(new Error('cancelled'));
  }, { once: true });
});
const worker = new Worker(options.queue, processor, { ...settings, concurrency: active });
worker.on('error', (error) => console.error(error));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const full = async () => { while (waiting.size < active) await pause(1); };
await full();
await pause(300);
for (let i = 0; i < n; i++) {
  await full();
  await pause(2);
  const ids = [...waiting];
  const id = ids[Math.floor(Math.random() * ids.length)];
  asked.set(id, process.hrtime.bigint());
  worker.cancelJob(id, 'user');
}
say({ microseconds });
process.exit(0);
