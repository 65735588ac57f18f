"""The private server behind ``embedded:`` URLs, shared by the processes that name a directory.

In reading order:

    membership.py   this process as a member of a directory, with a server in it that answers
    directory.py    what a URL names, and where in the directory the server listens
    launch.py       which server program there is, and how its keeper is started
    keeper.py       the process that keeps the server for as long as there are members

`membership` is what the store uses; `directory` also tells `store.endpoint` whether a URL is one.
Nothing here knows redis-py, connections or queues.  No greenlets of ours run here.
"""
