// Sends clicks: lines of a session and an item on standard input.
import { createInterface } from "node:readline";
import { Kafka, logLevel, Partitioners } from "kafkajs";

const brokers = (process.env.KAFKA_BOOTSTRAP_SERVERS ?? "localhost:9092").split(",");
const kafka = new Kafka({ clientId: "shop", brokers, logLevel: logLevel.WARN });
const producer = kafka.producer({
  createPartitioner: Partitioners.DefaultPartitioner, // murmur2, as Java's
  idempotent: true, // a retry neither repeats a click nor changes the order
  maxInFlightRequests: 1,
});
await producer.connect();
for await (const line of createInterface({ input: process.stdin })) {
  const [session, item] = line.split(" ");
  const click = { session_id: session, item_id: item, timestamp: Date.now() };
  const messages = [{ key: session, value: JSON.stringify(click) }];
  const [{ partition, baseOffset }] = await producer.send({ topic: "clicks", acks: -1, messages });
  console.log(session, partition, baseOffset);
}
await producer.disconnect();
