# gunicorn with gevent workers that also run geventq jobs:
#
#     gunicorn -c gunicorn.conf.py shop.app:app
#
# The first two are the only lines that geventq needs; the rest shows what belongs together.

from geventq.integrations.gunicorn import worker_hooks

# Called in each web process, after it was monkey-patched: returns a Worker or a list of them.
post_worker_init, worker_exit = worker_hooks("shop.jobs:make_workers")

worker_class = "gevent"  # jobs run as greenlets beside the requests
workers = 2
bind = "127.0.0.1:8000"

# Jobs that run may go on until 2 s before this; then they are cancelled and go back to their
# queue. An orchestrator's own limit (systemd TimeoutStopSec=, stop_grace_period) must be longer.
graceful_timeout = 30

# A process that gives no sign of life for so long is killed: code that computes without ever
# yielding stops requests, jobs and this sign alike.
timeout = 30

# Processes may be recycled: their jobs drain as at a stop.
max_requests = 10_000
max_requests_jitter = 1_000
