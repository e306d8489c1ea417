import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.kafka.common.compress.Compression;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.message.LeaderChangeMessage;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.record.internal.CompressionType;
import org.apache.kafka.common.record.internal.ControlRecordType;
import org.apache.kafka.common.record.internal.DefaultRecordBatch;
import org.apache.kafka.common.record.internal.EndTransactionMarker;
import org.apache.kafka.common.record.internal.MemoryRecords;
import org.apache.kafka.common.record.internal.MemoryRecordsBuilder;
import org.apache.kafka.common.record.internal.MutableRecordBatch;
import org.apache.kafka.common.record.internal.Record;
import org.apache.kafka.common.record.internal.RecordBatch;
import org.apache.kafka.common.utils.ByteBufferOutputStream;
import org.apache.kafka.common.utils.Utils;

/**
 * Kafka's own record batches, for tests of ours. With the jars of kafka-clients 4.3 on the class path:
 *
 *   java RecordBatches.java write DIR    writes the golden batches, each NAME.bin with what is in it as NAME.txt
 *   java RecordBatches.java read FILE... prints what is in the batches of files
 *   java RecordBatches.java murmur2 HEX... prints the hash of each key, and the partition of 12
 */
public class RecordBatches {
    static final HexFormat HEX = HexFormat.of();

    public static void main(String[] arguments) throws IOException {
        List<String> rest = Stream.of(arguments).skip(1).toList();
        switch (arguments[0]) {
            case "write" -> writeAll(Path.of(rest.get(0)));
            case "read" -> {
                for (String file : rest) {
                    System.out.println("file " + Path.of(file).getFileName());
                    System.out.print(dump(ByteBuffer.wrap(Files.readAllBytes(Path.of(file)))));
                }
            }
            case "murmur2" -> {
                for (String key : rest) {
                    int hash = Utils.murmur2(HEX.parseHex(key));
                    System.out.println(hash + " " + Utils.toPositive(hash) % 12);
                }
            }
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    static String hex(ByteBuffer bytes) {
        if (bytes == null) return "null";
        byte[] array = Utils.toArray(bytes.duplicate());
        if (array.length <= 1000) return HEX.formatHex(array);
        try {
            return array.length + "/" + HEX.formatHex(MessageDigest.getInstance("SHA-256").digest(array));
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    static String dump(ByteBuffer buffer) {
        StringBuilder out = new StringBuilder();
        for (MutableRecordBatch batch : MemoryRecords.readableRecords(buffer).batches()) {
            batch.ensureValid();
            String horizon = batch.deleteHorizonMs().isPresent() ? "" + batch.deleteHorizonMs().getAsLong() : "none";
            out.append(String.format(
                "batch base=%d last=%d epoch=%d codec=%s time=%s transactional=%b control=%b horizon=%s max=%d "
                    + "producer=%d:%d sequence=%d-%d count=%d size=%d%n",
                batch.baseOffset(), batch.lastOffset(), batch.partitionLeaderEpoch(), batch.compressionType(),
                batch.timestampType(), batch.isTransactional(), batch.isControlBatch(), horizon, batch.maxTimestamp(),
                batch.producerId(), batch.producerEpoch(), batch.baseSequence(), batch.lastSequence(),
                batch.countOrNull(), batch.sizeInBytes()));
            for (Record record : batch) {
                List<String> headers = new ArrayList<>();
                for (Header header : record.headers()) {
                    byte[] value = header.value();
                    headers.add(HEX.formatHex(header.key().getBytes(StandardCharsets.UTF_8)) + ":"
                        + (value == null ? "null" : HEX.formatHex(value)));
                }
                out.append(String.format("record offset=%d time=%d key=%s value=%s headers=%s%n", record.offset(),
                    record.timestamp(), hex(record.key()), hex(record.value()), String.join(",", headers)));
            }
        }
        return out.toString();
    }

    interface Filler {
        void fill(MemoryRecordsBuilder builder);
    }

    /** What a batch has beside its records; the defaults are those of a plain producer. */
    static final class Batch {
        Compression compression = Compression.NONE;
        TimestampType timestampType = TimestampType.CREATE_TIME;
        long baseOffset = 0;
        long appendTime = RecordBatch.NO_TIMESTAMP;
        long producerId = -1;
        short producerEpoch = -1;
        int sequence = -1;
        boolean transactional = false;
        boolean control = false;
        int leaderEpoch = -1;
        long horizon = RecordBatch.NO_TIMESTAMP;

        ByteBuffer build(Filler filler) {
            MemoryRecordsBuilder builder = new MemoryRecordsBuilder(new ByteBufferOutputStream(1 << 20),
                RecordBatch.MAGIC_VALUE_V2, compression, timestampType, baseOffset, appendTime, producerId,
                producerEpoch, sequence, transactional, control, leaderEpoch, 1 << 20, horizon);
            filler.fill(builder);
            return builder.build().buffer();
        }
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] pattern(int size) {
        byte[] bytes = new byte[size];
        for (int i = 0; i < size; i++) bytes[i] = (byte) (i / 7 * 31 + i % 5);
        return bytes;
    }

    static void mixed(MemoryRecordsBuilder builder) {
        for (int i = 0; i < 40; i++) {
            Header[] headers = i % 4 != 0 ? Record.EMPTY_HEADERS : new Header[] {
                new RecordHeader("source", utf8("shop-" + i)),
                new RecordHeader("größe", i % 8 == 0 ? null : utf8("ü" + i)),
                new RecordHeader("source", new byte[0]),
            };
            builder.append(1_700_000_000_000L + (i % 3 - 1) * 1000L * i, i % 5 == 0 ? null : utf8("key-" + i),
                i % 7 == 0 ? null : utf8("value-" + "x".repeat(i * 5)), headers);
        }
    }

    static void writeAll(Path folder) throws IOException {
        Files.createDirectories(folder);
        for (CompressionType codec : CompressionType.values()) {
            Batch batch = new Batch();
            batch.compression = Compression.of(codec).build();
            batch.baseOffset = 1L << 40;
            batch.leaderEpoch = 7;
            write(folder, "mixed-" + codec.name, batch.build(RecordBatches::mixed));
            if (codec != CompressionType.NONE)
                write(folder, "large-" + codec.name, batch.build(builder -> {
                    for (int i = 0; i < 4; i++) builder.append(1000 + i, utf8("k" + i), pattern(50_000 + i));
                }));
        }
        Batch transactional = new Batch();
        transactional.producerId = 4711;
        transactional.producerEpoch = 32767;
        transactional.sequence = Integer.MAX_VALUE - 1;
        transactional.transactional = true;
        write(folder, "transactional-sequence-wraps", transactional.build(builder -> {
            for (int i = 0; i < 5; i++) builder.append(1000 - i, utf8("k"), utf8("v" + i));
        }));
        Batch appendTime = new Batch();
        appendTime.timestampType = TimestampType.LOG_APPEND_TIME;
        appendTime.appendTime = 1_700_000_000_123L;
        write(folder, "log-append-time", appendTime.build(builder -> {
            for (int i = 0; i < 3; i++) builder.append(0L, null, utf8("v" + i));
        }));
        Batch horizon = new Batch();
        horizon.horizon = 1_650_000_000_000L;
        write(folder, "delete-horizon", horizon.build(builder -> {
            builder.append(1_700_000_000_000L, utf8("k"), (byte[]) null);
            builder.append(1_600_000_000_000L, utf8("l"), utf8("v"));
        }));
        Batch gaps = new Batch();
        gaps.baseOffset = 100;
        write(folder, "offsets-with-gaps", gaps.build(builder -> {
            builder.appendWithOffset(103, 5L, utf8("a"), utf8("b"));
            builder.appendWithOffset(300, 4L, utf8("c"), utf8("d"));
            builder.overrideLastOffset(999);
        }));
        write(folder, "without-timestamps", new Batch().build(builder -> builder.append(-1L, utf8("a"), utf8("b"))));
        ByteBuffer empty = ByteBuffer.allocate(DefaultRecordBatch.RECORD_BATCH_OVERHEAD);
        DefaultRecordBatch.writeEmptyHeader(empty, RecordBatch.MAGIC_VALUE_V2, 9L, (short) 2, 17, 100L, 120L, 3,
            TimestampType.CREATE_TIME, 1234L, true, false);
        empty.flip();
        write(folder, "emptied-by-compaction", empty);
        for (ControlRecordType type : List.of(ControlRecordType.COMMIT, ControlRecordType.ABORT))
            write(folder, "marker-" + type.name().toLowerCase(), MemoryRecords.withEndTransactionMarker(
                55L, 1_700_000_000_000L, 4, 4711L, (short) 3, new EndTransactionMarker(type, 21)).buffer());
        LeaderChangeMessage change = new LeaderChangeMessage().setVersion((short) 0).setLeaderId(1)
            .setVoters(List.of(new LeaderChangeMessage.Voter().setVoterId(1)))
            .setGrantingVoters(List.of(new LeaderChangeMessage.Voter().setVoterId(1)));
        write(folder, "leader-change", MemoryRecords.withLeaderChangeMessage(
            0L, 1_700_000_000_000L, 1, ByteBuffer.allocate(256), change).buffer());
    }

    static void write(Path folder, String name, ByteBuffer batches) throws IOException {
        Files.write(folder.resolve(name + ".bin"), Utils.toArray(batches.duplicate()));
        Files.writeString(folder.resolve(name + ".txt"), dump(batches));
    }
}
