"""The broker: log, replication, controller, coordinators, and a shell that serves them over TCP.

`python -m ottla_broker --port 9092 --data DIR` runs one. Nothing is imported here: a process pays for what it uses.
"""
