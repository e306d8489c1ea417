"""A cluster, its clients and the network between them in one thread, under virtual time, from a seed.

Everything that is simulated is the real thing but for three parts: the event loop's clock (`virtual_loop`), the sockets
(`network`), and processes (`processes`), which here can be paused and killed. What is run in it and what has to hold
is in `transactions` and `ledger`; `python -m simulation --seed 17 --trace` (with `tests/support` on the path) runs one
seed and says what happens.
"""
