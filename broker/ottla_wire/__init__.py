"""Kafka's protocol without any I/O: what clients and brokers say to each other, and what lies in a log.

errors      the error tree, a class per error code
schema      the language in which messages are written down, and their codecs
messages    the messages, a module per API
framing     frames and headers between a byte stream and messages
records     record batches
"""
