"""The private server behind ``embedded:`` URLs, shared by the processes that name a directory."""
