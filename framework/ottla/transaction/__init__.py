"""Transactions: `with template.transaction()`, `@transactional`, and what is below them.

`producer_pool` and `slots` are the producers and their ids, `transaction` one transaction, `context` which one a thread
or task is part of, `boundaries` how one begins and ends, `blocks` what a user writes.
"""
