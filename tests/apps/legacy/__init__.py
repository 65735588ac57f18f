"""An application as ten years of blocking code are: it has never heard of gevent, of tokens or of
being stopped.  `jobs.py` runs unchanged as processors of `geventq worker`."""
