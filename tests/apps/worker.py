"""A worker script as somebody writes it who runs it under systemd or in a container."""

from gevent import monkey

monkey.patch_all()
import logging  # noqa: E402
import os  # noqa: E402
import time  # noqa: E402

from geventq import Job, JobLogFilter, Worker  # noqa: E402
from geventq.health import HealthPort  # noqa: E402

handler = logging.StreamHandler()
handler.addFilter(JobLogFilter())
logging.basicConfig(
    format="%(levelname)s %(name)s [%(queue)s/%(job)s #%(attempt)s] %(message)s",
    level=logging.INFO,
    handlers=[handler],
)
log = logging.getLogger("shop")


def process(job: Job) -> str:
    log.info("works on %s", job.name)
    if job.name == "computes":
        until = time.monotonic() + float(job.data["seconds"])
        while time.monotonic() < until:
            pass
    time.sleep(float(job.data.get("sleep", 0)))
    return "done"


if __name__ == "__main__":
    worker = Worker("q", process, prefix=os.environ["GEVENTQ_PREFIX"], concurrency=5)
    with HealthPort(os.environ["HEALTH_PORT"], worker):
        worker.run()
