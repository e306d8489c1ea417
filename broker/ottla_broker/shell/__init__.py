"""The only place with sockets, files, clocks, threads and processes: server loop, data folder, settings, start and stop."""
