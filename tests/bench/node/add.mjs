// A producer: one by one, many in flight, or in bulk; tells how long it took.
import { Queue, cpu, hear, options, say, settings } from '../../interop/node/session.mjs';

const { n, mode, chunk = 1000, inflight = 100 } = options;
const payload = (i) => ({ user: 12345, action: 'resize', path: `/img/${i}.png` });
const queue = new Queue(options.queue, settings);
await queue.waitUntilReady();

const modes = {
  async one() {
    for (let i = 0; i < n; i++) await queue.add('resize', payload(i));
  },
  async many() {
    let next = 0;
    const producer = async () => {
      while (next < n) await queue.add('resize', payload(next++));
    };
    await Promise.all(Array.from({ length: inflight }, producer));
  },
  async bulk() {
    for (let first = 0; first < n; first += chunk) {
      const length = Math.min(chunk, n - first);
      const name = 'resize';
      await queue.addBulk(Array.from({ length }, (_, i) => ({ name, data: payload(first + i) })));
    }
  },
};

say({ ready: true });
await hear();
const before = cpu();
const start = performance.now();
await modes[mode]();
const seconds = (performance.now() - start) / 1e3;
say({ n, seconds, cpu: cpu() - before });
await queue.close();
process.exit(0);
