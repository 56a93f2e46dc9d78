/**
 * Publishes each argument, or each line of standard input, as one record.
 *
 *     node examples/publisher.js --topic orders hello world
 *     printf 'N1\tdeparted\nN1\tlanded\n' | node examples/publisher.js --topic flights --key-delimiter '\t'
 *
 * Every record is a request with an id of its own on one PublishStream. When a node goes away, what was not
 * acknowledged is sent again, in order and with the same ids, so that nothing is lost and nothing appears twice.
 */

import { status } from '@grpc/grpc-js';
import { randomUUID } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { connect } from '../index.js';

/** Requests out without an answer: bounds what is held in memory and sent again. */
const WINDOW = 1000;
/** These may be sent again, because every request carries an id. */
const RETRIABLE = [status.UNAVAILABLE, status.ABORTED, status.DEADLINE_EXCEEDED];

class Publisher {
  acknowledged = 0;
  duplicates = 0;
  #bus;
  #idPrefix;
  #number = 0;
  #unacked = new Map(); // by correlation id, in the order in which they were first sent
  #stream = null; // null while there is none that takes requests
  #closed = false;
  #failed = null;
  #progress = new EventEmitter();

  constructor(bus, idPrefix) {
    this.#bus = bus;
    this.#idPrefix = idPrefix;
    this.#open();
  }

  /** Queues one record; waits only while the window is full. */
  async publish(topic, record) {
    await this.#until(() => this.#unacked.size < WINDOW);
    const correlationId = String(++this.#number);
    const publish = { topic, batch: { records: [record] }, requestId: `${this.#idPrefix}-${correlationId}` };
    this.#unacked.set(correlationId, { correlationId, publish });
    this.#stream?.write({ correlationId, publish });
  }

  /** Waits until everything is acknowledged; rejects with an error that no retry would mend. */
  async close() {
    await this.#until(() => this.#unacked.size === 0);
    this.#closed = true;
    this.#stream?.end();
  }

  async #until(condition) {
    while (!this.#failed && !condition()) await once(this.#progress, 'change');
    if (this.#failed) throw this.#failed;
  }

  #open() {
    const stream = this.#bus.publisher.publishStream();
    let ended = false;
    const reopen = (error) => {
      if (ended) return;
      ended = true;
      this.#stream = null;
      stream.cancel();
      if (RETRIABLE.includes(error.code)) {
        console.error(`${error.details ?? error.message ?? 'the node ended the stream'}; connecting again`);
        setTimeout(() => this.#open(), 200); // where several nodes are one bus, the next one is there at once
      } else {
        this.#failed = error;
      }
      this.#progress.emit('change');
    };
    stream.on('error', reopen);
    stream.on('end', () => this.#closed || reopen({ code: status.UNAVAILABLE }));
    stream.on('data', ({ acks, draining }) => {
      if (ended) return;
      // A failure ends the stream: what follows it there would fail too, to keep the order.
      const failure = this.#settle(acks);
      if (failure) {
        reopen(failure);
      } else if (draining) {
        this.#stream = null; // nothing new on this stream; its answers still come
        stream.end();
      }
      this.#progress.emit('change');
    });
    for (const request of this.#unacked.values()) stream.write(request);
    this.#stream = stream;
  }

  #settle(acks) {
    for (const { correlationId, result, failure } of acks) {
      if (failure) {
        const later = failure.code === status.RESOURCE_EXHAUSTED && failure.retryAfter;
        return Object.assign(new Error(failure.message), { code: later ? status.UNAVAILABLE : failure.code });
      }
      if (!this.#unacked.delete(correlationId)) continue;
      this.acknowledged += 1;
      this.duplicates += result.ranges.filter((range) => range.duplicate).length;
    }
    return null;
  }
}

const { values: options, positionals: values } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: 'string', default: process.env.POSTBUS_ADDRESS || 'localhost:7070' },
    topic: { type: 'string', default: 'my_topic' },
    'key-delimiter': { type: 'string', default: '' },
    // Request ids are this and the record's number; repeat it to repeat a run safely.
    'request-id-prefix': { type: 'string', default: randomUUID() },
  },
});
const delimiter = options['key-delimiter'].replaceAll('\\t', '\t');

const bus = connect(options.address);
const publisher = new Publisher(bus, options['request-id-prefix']);
try {
  for await (const line of values.length ? values : createInterface({ input: process.stdin })) {
    await publisher.publish(options.topic, record(line));
  }
  await publisher.close();
  console.error(`published ${publisher.acknowledged} records, ${publisher.duplicates} of them by an earlier try`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  bus.close();
}

function record(line) {
  const at = delimiter ? line.indexOf(delimiter) : -1;
  if (at < 0) return { value: Buffer.from(line) };
  return { key: Buffer.from(line.slice(0, at)), value: Buffer.from(line.slice(at + delimiter.length)) };
}
