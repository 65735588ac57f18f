"""Everything that talks to Redis.  No other package of geventq imports `redis`."""
