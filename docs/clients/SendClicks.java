import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Map;
import java.util.Scanner;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Sends clicks: lines of a session and an item on standard input. */
public class SendClicks {
    record Sent(String session, Future<RecordMetadata> to) {}

    public static void main(String[] arguments) throws Exception {
        var servers = System.getenv().getOrDefault("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092");
        // What else is needed is Java's default: murmur2 of the key, acks=all, idempotence.
        var config = Map.<String, Object>of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        var json = new ObjectMapper();
        var clicks = new ArrayList<Sent>();
        try (var producer = new KafkaProducer<>(config, new StringSerializer(), new ByteArraySerializer())) {
            var words = new Scanner(System.in, StandardCharsets.UTF_8);
            while (words.hasNext()) {
                var session = words.next();
                var click = Map.of("session_id", session, "item_id", words.next(), "timestamp", System.currentTimeMillis());
                var record = new ProducerRecord<>("clicks", session, json.writeValueAsBytes(click));
                clicks.add(new Sent(session, producer.send(record)));
            }
            producer.flush();
        }
        for (var click : clicks) {
            var to = click.to().get(); // throws if Kafka did not take it
            System.out.println(click.session() + " " + to.partition() + " " + to.offset());
        }
    }
}
