// A Node Worker that tells each run and each end. What a job does is in its name: echo returns its
// data, fail throws its message, progress reports what it is given, hang never ends.
import { Worker, hear, options, say, settings } from './session.mjs';

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const kinds = {
  async echo(job) {
    if (options.pauseMs) await pause(options.pauseMs);
    return job.data;
  },
  async fail(job) { throw new Error(job.data.message); },
  async progress(job) { await job.updateProgress(job.data); await job.log('half way'); return 'done'; },
  hang: () => new Promise(() => {}),
};

async function processor(job) {
  const { id, name, data, attemptsMade, priority } = job;
  say({ event: 'run', id, name, data, attemptsMade, priority, at: Date.now() });
  return kinds[name](job);
}

const worker = new Worker(options.queue, processor, { ...settings, ...options.worker });
worker.on('error', (error) => console.error(error));
if (!options.quiet) {
  worker.on('completed', ({ id, returnvalue }) => say({ event: 'completed', id, returnvalue }));
  worker.on('failed', (job, error) => {
    const { id, attemptsMade } = job;
    say({ event: 'failed', id, attemptsMade, reason: error.message, at: Date.now() });
  });
}
await worker.waitUntilReady();
say({ ready: true });
while (await hear());
await worker.close();
process.exit(0);
