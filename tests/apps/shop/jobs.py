"""The jobs of the application."""

from __future__ import annotations

import time

from django.db import connection, connections, transaction

from geventq import CancellationToken, Job, Processors
from tests.apps.shop.models import Order

processors = Processors()


def backend(alias: str = "default") -> int:
    """The process of PostgreSQL that serves this greenlet."""
    with connections[alias].cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return int(cursor.fetchone()[0])


@processors("buy")
def buy(job: Job) -> list[int]:
    Order.objects.create(number=job.data["number"])
    return [backend("default"), backend("replica")]


@processors("fail")
def fail(job: Job) -> None:
    with transaction.atomic():
        Order.objects.create(number=job.data["number"])
        raise ValueError("own")


@processors("together")
def together(job: Job) -> dict[str, object]:
    """Sees no other's order while all are in transactions."""
    with transaction.atomic():
        Order.objects.create(number=job.data["number"])
        time.sleep(0.3)
        seen = list(Order.objects.values_list("number", flat=True))
        result = {"seen": seen, "backend": backend()}
        transaction.set_rollback(True)
        return result


@processors("slow")
def slow(job: Job, token: CancellationToken) -> None:
    with transaction.atomic():
        Order.objects.create(number=job.data["number"])
        with connection.cursor() as cursor:
            cursor.execute("select pg_sleep(60), %s", [job.data["number"]])


@processors("slow in MariaDB")
def slow_in_mariadb(job: Job) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select sleep(60), %s", [job.data["number"]])
