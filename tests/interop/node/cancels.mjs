// A Node Worker that can be cancelled, with the module that the guide shows; `heeds: false` leaves it
// out. What a job does is in its name: patient waits for the signal, held for the order {go: true}
// and fails. The order {ask: [queue, id, reason]} asks as the guide says, {kill: [secret, id, reason]}
// with its other module, `signs`.
import { Redis } from 'ioredis';
import { Queue, Worker, hear, options, say, settings } from './session.mjs';

const guide = await import('data:text/javascript,' + encodeURIComponent(options.guide));
const signs = options.signs && await import('data:text/javascript,' + encodeURIComponent(options.signs));
const redis = new Redis(settings.connection);
let go;
const gone = new Promise((resolve) => { go = resolve; });

const kinds = {
  patient: (signal) => new Promise((_, reject) => {
    const stop = () => reject(new Error(`stopped: ${signal.reason}`));
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop);
  }),
  async held() { await gone; throw new Error('no luck'); },
};

const worker = new Worker(options.queue, (job, token, signal) => {
  say({ event: 'run', id: job.id });
  return kinds[job.name](signal);
}, { ...settings, ...options.worker });
worker.on('error', (error) => console.error(error));
worker.on('failed', ({ id }, error) => say({ event: 'failed', id, reason: error.message }));
await worker.waitUntilReady();
const end = options.heeds === false ? () => {} : await guide.heedCancels(worker, redis);
say({ ready: true });
for (let order = await hear(); order; order = await hear()) {
  if (order.go) go();
  if (order.kill) {
    const [secret, id, reason] = order.kill;
    const queue = new Queue(options.queue, settings);
    const job = await queue.getJob(id);
    say({ event: 'asked', listeners: await signs.killJob(redis, secret, job, reason) });
    await queue.close();
  }
  if (order.ask) say({ event: 'asked', listeners: await guide.askCancel(redis, ...order.ask) });
}
await end();
await worker.close();
await redis.quit();
process.exit(0);
