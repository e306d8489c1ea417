"""Partitions on this broker: high watermark, reading and writing as leader, fetch sessions, and who waits for what."""
