// Shows each ranking once.
import { Kafka, logLevel } from "kafkajs";

const REMEMBERED = 100_000;

const brokers = (process.env.KAFKA_BOOTSTRAP_SERVERS ?? "localhost:9092").split(",");
const kafka = new Kafka({ clientId: "shop", brokers, logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId: "shop-rankings" });
const seen = new Set();
await consumer.connect();
await consumer.subscribe({ topic: "rankings", fromBeginning: true });
await consumer.run({
  // Its offset is committed once this has returned: a crash repeats rankings and loses none.
  eachMessage: async ({ message }) => {
    if (message.value === null) return; // the session was forgotten
    const ranking = JSON.parse(message.value);
    const { topic, partition, offset } = ranking.source;
    const source = `${topic} ${partition} ${offset}`;
    if (seen.has(source)) return;
    seen.add(source);
    if (seen.size > REMEMBERED) seen.delete(seen.values().next().value); // a Set keeps the order of its entries
    console.log(ranking.session_id, ranking.item_id, "->", ...ranking.items.slice(0, 3).map((item) => item.item_id));
  },
});
