"""The partition log, in Kafka's own files: segments, indexes, producer state, leader epochs, recovery, retention."""
