"""Jobs in every state, cancelled from another process at every moment in every way, while what
carries the requests breaks.

Four worker processes work one queue; a fifth adds jobs of mixed kinds and cancels a random half of
them (`app`).  Meanwhile the connections that subscribe are cut every 200 ms, a worker is killed
with -9 and replaced, and Redis is stopped for two seconds (`round`).  All write down what they see
(`tests.fault.ordeal.record`); at the end that is held against what is in Redis (`verdict`).

    python -m tests.fault.torture --minutes 5

plays round after round of 2,000 jobs; ``tests/fault/test_torture.py`` a single, smaller one.
"""
