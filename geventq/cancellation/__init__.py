"""The cancellation core: stdlib and gevent only, it does not know Redis."""
