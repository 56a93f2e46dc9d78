/**
 * Stubs of Postbus for Node, made by proto-loader from the protos in `proto/` when this module loads.
 *
 * Field names are camelCase. 64-bit integers (offsets, fences, correlation ids) are strings, because a JavaScript number
 * holds 53 bits: echo them as they are, and use BigInt to calculate. `bytes` are Buffers. Enums are their names.
 * An unset message is null; an unset `optional` field (a record's key, say) is undefined.
 */

import { credentials, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { fileURLToPath } from 'node:url';

const FILES = ['cluster', 'group', 'publisher', 'subscriber', 'topic'];

/** The services and messages of package postbus.v1. */
export const v1 = loadPackageDefinition(
  loadSync(
    FILES.map((name) => `postbus/v1/${name}.proto`),
    { includeDirs: [fileURLToPath(new URL('proto', import.meta.url))], longs: String, enums: String, defaults: true },
  ),
).postbus.v1;

/**
 * Clients of every service on one connection to `address`, which may be any node.
 *
 * @param {string} address host:port, or several as ipv4:host:port,host:port (IP addresses)
 */
export function connect(address) {
  const options = { 'grpc.keepalive_time_ms': 30_000 };
  const publisher = new v1.PublisherService(address, credentials.createInsecure(), options);
  const shared = { ...options, channelOverride: publisher.getChannel() };
  const on = (Service) => new Service(address, credentials.createInsecure(), shared);
  return {
    publisher,
    subscriber: on(v1.SubscriberService),
    topics: on(v1.TopicService),
    groups: on(v1.GroupService),
    cluster: on(v1.ClusterService),
    close: () => publisher.close(),
  };
}
