"""The life of one job in a worker, from its take to its end."""
