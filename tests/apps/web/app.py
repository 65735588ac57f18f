"""Enqueue by HTTP, watch the progress as server-sent events, cancel by HTTP."""

from __future__ import annotations

import collections.abc
import json
import os
import time

import flask

from geventq import QueueEvents
from tests.apps.web.jobs import PREFIX, URL, queue

app = flask.Flask(__name__)


@app.get("/")
def here() -> dict[str, object]:
    return {"pid": os.getpid()}


@app.get("/slow")
def slow() -> dict[str, object]:
    """A request that takes its time, in I/O."""
    time.sleep(float(flask.request.args.get("seconds", "0.2")))
    return {"pid": os.getpid()}


@app.get("/stuck")
def stuck() -> dict[str, object]:
    """A request that never gives the hub a turn: gunicorn's time-out is for this."""
    while True:
        sum(range(10_000))


@app.post("/exports")
def add() -> tuple[dict[str, object], int]:
    job = queue.add("export", flask.request.get_json())
    return {"id": job.id}, 201


@app.get("/exports/<job_id>")
def show(job_id: str) -> dict[str, object]:
    job = queue.get_job(job_id)
    if job is None:
        flask.abort(404)
    return {"state": job.get_state(), "progress": job.progress, "reason": job.failed_reason}


@app.delete("/exports/<job_id>")
def cancel(job_id: str) -> dict[str, object]:
    result = queue.cancel_job(job_id, "cancelled on the web page", hard=True, wait=10)
    return {"status": result.status, "state": result.state}


@app.get("/exports/<job_id>/progress")
def progress(job_id: str) -> flask.Response:
    return flask.Response(_told(job_id), mimetype="text/event-stream")


def _told(job_id: str) -> collections.abc.Iterator[str]:
    """The events of one job, until its end.  Who reconnects sees where the job is first."""
    events = QueueEvents("exports", connection=URL, prefix=PREFIX, last_event_id="0")
    try:
        for event in events:
            if event.job_id != job_id:
                continue
            if event.name == "progress":
                yield f"event: progress\ndata: {event.data['data']}\n\n"
            elif event.name in ("completed", "failed"):
                yield f"event: {event.name}\ndata: {json.dumps(event.data)}\n\n"
                return
    finally:
        events.close()
