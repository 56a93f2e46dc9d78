/**
 * Reads topics as a member of a group and prints each record: partition, offset, key, value.
 *
 *     node examples/subscriber.js --group billing orders
 *
 * Start it twice and the two share the partitions; stop or kill one and the other takes over. A record is acknowledged
 * after it was printed, so that nothing is lost; what was printed and not yet acknowledged when a member dies
 * is printed again by the next.
 */

import { status } from '@grpc/grpc-js';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { connect } from '../index.js';

/** Hands each batch to `handle` and acknowledges it, whatever becomes of connections and nodes, until `signal` aborts. */
async function subscribe(bus, start, handle, signal) {
  while (!signal.aborted) {
    const stream = bus.subscriber.subscribe();
    let idle = true;
    // Half-closing leaves the group: the broker commits what was acknowledged, passes the partitions on, ends the stream.
    const leave = () => idle && stream.end();
    signal.addEventListener('abort', leave);
    try {
      stream.write({ start });
      for await (const { started, batches } of stream) {
        if (started) start.memberId = started.memberId; // after a broken stream we come back as who we were
        idle = false;
        for (const delivered of batches) {
          if (signal.aborted) break; // what is not handled goes to the next member
          await handle(delivered);
          stream.write({ acks: [delivered.delivery] });
        }
        idle = true;
        if (signal.aborted) leave();
      }
    } catch (error) {
      if (error.code !== status.UNAVAILABLE && error.code !== status.ABORTED) throw error;
      if (!signal.aborted) console.error(`${error.details}; connecting again`);
    } finally {
      signal.removeEventListener('abort', leave);
    }
    await pause(200, undefined, { signal }).catch(() => {});
  }
}

const { values: options, positionals: topics } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: 'string', default: process.env.POSTBUS_ADDRESS || 'localhost:7070' },
    group: { type: 'string', default: 'my_group' },
  },
});
if (!topics.length) {
  console.error('usage: node examples/subscriber.js [--address host:port] [--group name] topic...');
  process.exit(2);
}
const stopping = new AbortController();
for (const name of ['SIGINT', 'SIGTERM']) process.once(name, () => stopping.abort()); // a second one ends it at once

const bus = connect(options.address);
const start = { group: options.group, topics: topics.map((topic) => ({ topic })), clientId: 'node-example' };
try {
  await subscribe(bus, start, print, stopping.signal);
} catch (error) {
  console.error(error.details ?? error.message);
  process.exitCode = 1;
} finally {
  bus.close();
}

/** Writes a batch, all of it before it resolves: what is acknowledged must be out. */
async function print({ delivery, batch, offsetDeltas }) {
  const base = BigInt(delivery.baseOffset);
  const lines = batch.records.map(
    ({ key, value }, i) => `${delivery.partition}\t${base + BigInt(offsetDeltas[i] ?? i)}\t${key ?? ''}\t${value ?? ''}\n`,
  );
  await new Promise((resolve, reject) =>
    process.stdout.write(lines.join(''), (error) => (error ? reject(error) : resolve())),
  );
}
