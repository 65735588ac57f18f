// What every script here starts with: options and orders as JSON lines on stdin, answers on stdout.
// The end of stdin ends the script.
import readline from 'node:readline';

export * from 'bullmq';
export { Redis } from 'ioredis';

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** The next line, parsed; null at the end. */
export async function hear() {
  const { value, done } = await lines.next();
  return done ? null : JSON.parse(value);
}

export function say(message) {
  process.stdout.write(JSON.stringify(message) + '\n');
}

/** ioredis' options for a URL that geventq understands too. */
export function connectionFor(url) {
  const u = new URL(url);
  const base = { maxRetriesPerRequest: null };
  if (u.protocol === 'unix:') return { ...base, path: u.pathname };
  return {
    ...base,
    host: u.hostname || '127.0.0.1',
    port: Number(u.port || 6379),
    db: Number(u.pathname.slice(1) || 0),
    username: u.username || undefined,
    password: u.password || undefined,
  };
}

/** Seconds of CPU this process used. */
export function cpu() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

export const options = await hear();
export const settings = { connection: connectionFor(options.url), prefix: options.prefix ?? 'bull' };
