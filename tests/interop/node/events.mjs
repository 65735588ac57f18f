// A Node QueueEvents that tells everything it emits, from the beginning of the stream.
import { QueueEvents, hear, options, say, settings } from './session.mjs';

const events = new QueueEvents(options.queue, {
  ...settings, autorun: false, lastEventId: '0-0',
});
const emit = events.emit.bind(events);
events.emit = (name, ...args) => {
  // beside each event of a job there is one named event:id, for waitUntilFinished
  if (name === 'error') say({ event: 'error', message: args[0].message });
  else if (!name.includes(':')) say({ event: name, ...(args[0] ?? {}) });
  return name === 'error' || emit(name, ...args);
};
await events.waitUntilReady();
say({ ready: true });
events.run();
while (await hear());
await events.close();
process.exit(0);
