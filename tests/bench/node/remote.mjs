// Cancelled from another process, by the seed guide's bridge: a subscriber that calls cancelJob.
import { Redis, Worker, hear, options, say, settings } from '../../interop/node/session.mjs';

const waiting = new Set();
const told = {};
const processor = (job, token, signal) => new Promise((resolve, reject) => {
  if (job.name === 'noop') { resolve(); return; }
  waiting.add(job.id);
  signal.addEventListener('abort', () => {
    told[job.id] = Number(process.hrtime.bigint());
    waiting.delete(job.id);
    reject(new Error('cancelled'));
  }, { once: true });
});
const worker = new Worker(options.queue, processor, {
  ...settings, concurrency: options.concurrency, lockDuration: 120000,
});
worker.on('error', (error) => console.error(error));
const subscriber = new Redis(settings.connection);
await subscriber.subscribe('bullmq:cancel');
subscriber.on('message', (channel, text) => {
  const { queue, jobId, reason } = JSON.parse(text);
  if (queue === options.queue) worker.cancelJob(jobId, reason);
});
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
while (waiting.size < options.active) await pause(1);
say({ ready: [...waiting] });
await hear();
say({ told });
process.exit(0);
