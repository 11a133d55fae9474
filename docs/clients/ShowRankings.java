import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.StringDeserializer;

/** Shows each ranking once. */
public class ShowRankings {
    /** The sources of the last 100,000 rankings: topic, partition and offset of their clicks. */
    static class Seen extends LinkedHashMap<JsonNode, Boolean> {
        @Override
        protected boolean removeEldestEntry(Map.Entry<JsonNode, Boolean> eldest) {
            return size() > 100_000;
        }
    }

    public static void main(String[] arguments) throws Exception {
        var servers = System.getenv().getOrDefault("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092");
        var config = Map.<String, Object>of(
            ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, servers,
            ConsumerConfig.GROUP_ID_CONFIG, "shop-rankings",
            ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        var json = new ObjectMapper();
        var seen = new Seen();
        try (var consumer = new KafkaConsumer<>(config, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of("rankings"));
            while (true) {
                // A poll commits what the one before returned, all of which was used: a crash repeats and loses none.
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    if (record.value() == null) {
                        continue; // the session was forgotten
                    }
                    var ranking = json.readTree(record.value());
                    if (seen.putIfAbsent(ranking.get("source"), true) == null) {
                        show(ranking);
                    }
                }
            }
        }
    }

    static void show(JsonNode ranking) {
        var best = new StringBuilder();
        for (int place = 0; place < Math.min(3, ranking.get("items").size()); place++) {
            best.append(" ").append(ranking.get("items").get(place).get("item_id").asText());
        }
        System.out.println(
            ranking.get("session_id").asText() + " " + ranking.get("item_id").asText() + " ->" + best);
    }
}
