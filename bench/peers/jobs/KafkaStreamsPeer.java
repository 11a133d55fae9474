import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** The job in Kafka Streams: a processor with a state store in RocksDB, its changelog on, between two topics. */
public final class KafkaStreamsPeer {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final String SESSIONS = "sessions";
    private static final int PUBLISHED = 20;

    private KafkaStreamsPeer() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> env = System.getenv();
        Gru gru = new Gru(Path.of(env.get("BUNDLE")));
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(env.get("CLICKS"), Consumed.with(Serdes.String(), json()))
                .processValues(new Recommending(gru))
                .to(env.get("RANKINGS"), Produced.with(Serdes.String(), json()));

        Properties config = new Properties();
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, env.get("APP_ID"));
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, env.get("BOOTSTRAP"));
        config.put(StreamsConfig.STATE_DIR_CONFIG, env.get("STATE"));
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments[0]);
        config.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");

        KafkaStreams streams = new KafkaStreams(builder.build(), config);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        CountDownLatch stopped = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close();
            stopped.countDown();
        }));
        streams.start();
        stopped.await();
    }

    private static Serde<JsonNode> json() {
        Serializer<JsonNode> serializer = (topic, value) -> {
            try {
                return JSON.writeValueAsBytes(value);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        Deserializer<JsonNode> deserializer = (topic, bytes) -> {
            try {
                return JSON.readTree(bytes);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
        return Serdes.serdeFrom(serializer, deserializer);
    }

    /** A processor for each partition, and the store that they keep their part of the sessions in. */
    private record Recommending(Gru gru) implements FixedKeyProcessorSupplier<String, JsonNode, JsonNode> {
        @Override
        public FixedKeyProcessor<String, JsonNode, JsonNode> get() {
            return new Recommend(gru);
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            return Set.of(Stores.keyValueStoreBuilder(
                    Stores.persistentKeyValueStore(SESSIONS), Serdes.String(), Serdes.ByteArray()));
        }
    }

    private static final class Recommend extends ContextualFixedKeyProcessor<String, JsonNode, JsonNode> {
        private final Gru gru;
        private KeyValueStore<String, byte[]> sessions;

        Recommend(Gru gru) {
            this.gru = gru;
        }

        @Override
        public void init(FixedKeyProcessorContext<String, JsonNode> context) {
            super.init(context);
            sessions = context.getStateStore(SESSIONS);
        }

        @Override
        public void process(FixedKeyRecord<String, JsonNode> click) {
            try {
                Answer answer = gru.step(click.value(), sessions.get(click.key()));
                sessions.put(click.key(), answer.state());
                context().forward(click.withValue(answer.ranking()));
            } catch (OrtException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    private record Answer(byte[] state, JsonNode ranking) {}

    /** The two graphs of a bundle on one thread, one click at a time: gru.py in Java. */
    private static final class Gru {
        private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
        private final OrtSession advance;
        private final OrtSession rank;
        private final String[] items;
        private final Map<String, Long> index = new HashMap<>();
        private final Map<String, OnnxTensor> nothingElse;
        private final OnnxTensor published;
        private final int layers;
        private final int size;

        Gru(Path bundle) throws IOException, OrtException {
            JsonNode manifest = JSON.readTree(bundle.resolve("manifest.json").toFile());
            items = JSON.readValue(bundle.resolve("vocabulary.json").toFile(), String[].class);
            for (int item = 0; item < items.length; item++) {
                index.put(items[item], (long) item);
            }
            layers = manifest.get("layers").asInt();
            size = manifest.get("hidden_size").asInt();
            // The models measured here use the hidden state alone.
            int recent = manifest.get("recent_size").asInt();
            long[] none = new long[recent];
            Arrays.fill(none, -1);
            nothingElse = Map.of(
                    "recent", tensor(new long[] {1, recent}, none),
                    "counts", tensor(new long[] {1, recent}, new float[recent]),
                    "clicks", tensor(new long[] {1}, new float[] {1}));
            OrtSession.SessionOptions options = new OrtSession.SessionOptions();
            options.setIntraOpNumThreads(1);
            options.setSessionLogLevel(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR);
            advance = environment.createSession(bundle.resolve("advance.onnx").toString(), options);
            // An input with a default: this API sets it for a session, which reads it where it lies.
            published = tensor(new long[] {1}, new long[] {PUBLISHED});
            options.addInitializer("k", published);
            rank = environment.createSession(bundle.resolve("rank.onnx").toString(), options);
        }

        /** The session's next state and the ranking that answers the click. */
        Answer step(JsonNode click, byte[] state) throws OrtException {
            float[] hidden = new float[layers * size];
            if (state != null) {
                ByteBuffer.wrap(state).asFloatBuffer().get(hidden);
            }
            long[] item = {index.get(click.get("item_id").asText())};
            try (OnnxTensor itemIndex = tensor(new long[] {1}, item);
                    OnnxTensor before = tensor(new long[] {layers, 1, size}, hidden);
                    OrtSession.Result advanced = advance.run(Map.of("item_index", itemIndex, "hidden", before))) {
                ((OnnxTensor) advanced.get(0)).getFloatBuffer().get(hidden);
            }
            ByteBuffer next = ByteBuffer.allocate(4 * hidden.length);
            next.asFloatBuffer().put(hidden);
            return new Answer(next.array(), ranking(click, Arrays.copyOfRange(hidden, (layers - 1) * size, layers * size)));
        }

        private JsonNode ranking(JsonNode click, float[] query) throws OrtException {
            ObjectNode ranking = JSON.createObjectNode();
            ranking.set("session_id", click.get("session_id"));
            ranking.set("event_id", click.get("event_id"));
            ranking.set("item_id", click.get("item_id"));
            ArrayNode best = ranking.putArray("items");
            try (OnnxTensor asked = tensor(new long[] {1, size}, query)) {
                Map<String, OnnxTensor> inputs = new HashMap<>(nothingElse);
                inputs.put("query", asked);
                try (OrtSession.Result top = rank.run(inputs, Set.of("top_index", "top_score"))) {
                    LongBuffer topIndex = ((OnnxTensor) top.get("top_index").orElseThrow()).getLongBuffer();
                    FloatBuffer topScore = ((OnnxTensor) top.get("top_score").orElseThrow()).getFloatBuffer();
                    while (topIndex.hasRemaining()) {
                        best.addObject().put("item_id", items[(int) topIndex.get()]).put("score", topScore.get());
                    }
                }
            }
            ranking.set("click_timestamp", click.get("timestamp"));
            return ranking;
        }

        private OnnxTensor tensor(long[] shape, long[] values) throws OrtException {
            return OnnxTensor.createTensor(environment, LongBuffer.wrap(values), shape);
        }

        private OnnxTensor tensor(long[] shape, float[] values) throws OrtException {
            return OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), shape);
        }
    }
}
