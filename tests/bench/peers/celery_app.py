"""The same job for Celery."""

from __future__ import annotations

import os
import typing

import first_job  # beside this file
from celery import Celery

app: typing.Any = Celery("startup", broker=os.environ["BENCH_REDIS"])
app.conf.broker_connection_retry_on_startup = True
told = app.task(name="told", ignore_result=True)(first_job.told)
