"""Reaching jobs and workers from other processes (cancellation.md 5).

messages.py   what is published: its form, its limits, and what is ignored
bridge.py     other channels, and programs that send
group.py      all workers of a queue: who they are, and asking something of them
"""
