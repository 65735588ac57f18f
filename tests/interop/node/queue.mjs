// A Node Queue, method by method: {call, args} on the queue, {job, call, args} on one of its jobs.
// Jobs in an answer are told with their public members.
import { Job, Queue, hear, options, say, settings } from './session.mjs';

const queue = new Queue(options.queue, settings);
await queue.waitUntilReady();
say({ ready: true });

const members = [
  'id', 'name', 'data', 'opts', 'timestamp', 'delay', 'priority', 'attemptsMade',
  'attemptsStarted', 'progress', 'returnvalue', 'failedReason', 'stacktrace', 'processedOn',
  'finishedOn', 'processedBy', 'stalledCounter',
];

function told(value) {
  if (Array.isArray(value)) return value.map(told);
  if (!(value instanceof Job)) return value ?? null;
  return Object.fromEntries(members.map((name) => [name, value[name] ?? null]));
}

for (let order = await hear(); order; order = await hear()) {
  try {
    const target = order.job === undefined ? queue : await queue.getJob(order.job);
    say({ result: told(await target[order.call](...(order.args ?? []))) });
  } catch (error) {
    say({ error: error.message });
  }
}
await queue.close();
process.exit(0);
