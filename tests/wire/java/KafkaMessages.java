// Kafka's own generated classes as a filter: "CLASS VERSION HEX" lines in, the same message written again out.
// With the argument `errors` it prints every error code with its name and what a client does about it.
// Run by test_java_golden.py as `java -cp kafka-clients.jar KafkaMessages.java`.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.util.HexFormat;
import org.apache.kafka.common.errors.RetriableException;
import org.apache.kafka.common.errors.RefreshRetriableException;
import org.apache.kafka.common.protocol.ByteBufferAccessor;
import org.apache.kafka.common.protocol.Errors;
import org.apache.kafka.common.protocol.Message;
import org.apache.kafka.common.protocol.ObjectSerializationCache;

public class KafkaMessages {
    public static void main(String[] arguments) throws Exception {
        if (arguments.length > 0) {
            printErrors();
            return;
        }
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] parts = line.split(" ", -1);
            System.out.println(again(parts[0], Short.parseShort(parts[1]), HexFormat.of().parseHex(parts[2])));
        }
    }

    static String again(String name, short version, byte[] encoded) throws Exception {
        var type = Class.forName("org.apache.kafka.common.message." + name);
        var message = (Message) type.getDeclaredConstructor().newInstance();
        var input = ByteBuffer.wrap(encoded);
        try {
            message.read(new ByteBufferAccessor(input), version);
        } catch (RuntimeException error) {
            return "unreadable: " + error;
        }
        if (input.hasRemaining()) {
            return "unread bytes: " + input.remaining();
        }
        var cache = new ObjectSerializationCache();
        var output = ByteBuffer.allocate(message.size(cache, version));
        message.write(new ByteBufferAccessor(output), cache, version);
        return HexFormat.of().formatHex(output.array(), 0, output.position());
    }

    static void printErrors() {
        for (Errors error : Errors.values()) {
            var exception = error.exception();
            String action = exception instanceof RefreshRetriableException ? "refresh"
                : exception instanceof RetriableException ? "retry" : "-";
            System.out.println(error.code() + " " + error.name() + " " + action);
        }
    }
}
