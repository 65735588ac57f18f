"""What a forked child does about what its parent left running: its connections, its workers."""
