// waitUntilFinished, for each id that comes; all of them wait at once.
import { Queue, QueueEvents, hear, options, say, settings } from './session.mjs';

const queue = new Queue(options.queue, settings);
const events = new QueueEvents(options.queue, settings);
await Promise.all([queue.waitUntilReady(), events.waitUntilReady()]);
say({ ready: true });
for (let order = await hear(); order; order = await hear()) {
  const { id } = order;
  const job = await queue.getJob(id);
  say({ waiting: id });
  job.waitUntilFinished(events, 20000).then(
    (result) => say({ id, result: result ?? null }),
    (error) => say({ id, error: error.message }),
  );
}
await Promise.all([queue.close(), events.close()]);
process.exit(0);
