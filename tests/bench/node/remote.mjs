// A worker that hears of cancellations by the seed guide's bridge: a subscriber that calls
// cancelJob.  Tells which job waits, and when its signal was aborted, on the clock of all processes.
import { Redis, Worker, hear, options, say, settings } from '../../interop/node/session.mjs';

const processor = (job, token, signal) => new Promise((resolve, reject) => {
  if (job.name === 'noop') { resolve(); return; }
  signal.addEventListener('abort', () => {
    const at = Number(process.hrtime.bigint());
    reject(new Error('cancelled'));
    say({ told: job.id, at });
  }, { once: true });
  say({ waits: job.id });
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
say({ listens: true });
await hear();
process.exit(0);
