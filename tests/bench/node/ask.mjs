// Asks for jobs to be cancelled, one at a time, on a connection that stays open: publishes the seed
// guide's message, or, with `how: 'recorded'`, first looks where the job is and stores the request
// in its hash, so that it is neither lost nor sent to nobody; or, with `how: 'guide'`, publishes as
// the guide is written, on a connection that is made and closed each time.  Tells in the end when it asked for
// each, and when that was answered, on the clock of all processes.
import { Job, Queue, Redis, hear, options, say, settings } from '../../interop/node/session.mjs';

const client = new Redis(settings.connection);
const queue = new Queue(options.queue, settings);
await queue.waitUntilReady();
const message = (jobId) => JSON.stringify({ queue: options.queue, jobId, reason: 'user' });

const ways = {
  published: (id) => client.publish('bullmq:cancel', message(id)),
  async guide(id) {
    const fresh = new Redis(settings.connection);
    await fresh.publish('bullmq:cancel', message(id));
    await fresh.quit();
  },
  async recorded(id) {
    const job = await Job.fromId(queue, id);
    if (!job || await job.getState() !== 'active') throw new Error(`job ${id} does not run`);
    await client.multi().hset(queue.toKey(id), 'defa', 'Job cancelled: user')
      .publish('bullmq:cancel', message(id)).exec();
  },
};
await client.publish('bullmq:cancel', message('none'));
say({ ready: true });
const asked = {};
for (let order = await hear(); order.job; order = await hear()) {
  const before = process.hrtime.bigint();
  await ways[options.how](order.job);
  asked[order.job] = [Number(before), Number(process.hrtime.bigint())];
}
say(asked);
process.exit(0);
