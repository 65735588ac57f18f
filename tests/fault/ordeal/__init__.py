"""Processes of workers and producers on a server that somebody ruins.

Two worker processes and a producer work one queue (`field`).  Fault after
fault happens to them (`faults`): processes killed and stopped, the server stopped, restarted with
and without its data, full, read-only, failed over, links that are slow or half-open.  Each process
writes down what it sees, line by line, in a file that survives it (`record`); at the end the
records and what is in Redis are held against each other (`verdict`).

    python -m tests.fault.ordeal --minutes 10

goes through all faults again and again, in a random order, and looks at what grows in the
processes that live on (`growth`).  ``tests/fault/test_ordeal.py`` goes through them once.
"""
