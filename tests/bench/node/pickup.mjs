// add -> processor starts, on an idle queue, in one process.
import { Queue, Worker, options, say, settings } from '../../interop/node/session.mjs';

const queue = new Queue(options.queue, settings);
await queue.waitUntilReady();
let start = 0n;
let started = null;
const processor = async () => { started(Number(process.hrtime.bigint() - start) / 1e3); };
const worker = new Worker(options.queue, processor, settings);
worker.on('error', (error) => console.error(error));
await worker.waitUntilReady();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const microseconds = [];
for (let i = 0; i < options.n; i++) {
  await pause(options.pause_ms);
  const took = new Promise((resolve) => { started = resolve; });
  start = process.hrtime.bigint();
  await queue.add('resize', { i });
  microseconds.push(await took);
}
say({ microseconds });
process.exit(0);
