"""The only place with sockets, files, clocks, threads and processes: server, data folder, settings, start and stop."""
