// A worker with no-op jobs: says ready, starts when told, tells the CPU it used when told.
import { Worker, cpu, hear, options, say, settings } from '../../interop/node/session.mjs';

const worker = new Worker(options.queue, async () => {}, {
  ...settings, concurrency: options.concurrency, autorun: false,
});
worker.on('error', (error) => console.error(error));
await worker.waitUntilReady();
say({ ready: true });
await hear();
const before = cpu();
worker.run();
await hear();
say({ cpu: cpu() - before, rss: process.memoryUsage().rss });
process.exit(0);
