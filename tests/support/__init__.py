"""What the tests stand on: servers, a proxy, waiting without blind sleeps, leak checks.

Nothing here imports the code under test except `geventq.clock`, which tests turn.
"""
