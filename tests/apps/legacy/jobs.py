"""Old code.  Blocking calls, pools and locks of the module, thread-locals, bare excepts.

Each function works until it is stopped.  What it shares with others, and leaves behind, is looked
at by checks.py afterwards.
"""

import concurrent.futures
import contextlib
import logging
import os
import queue
import signal
import smtplib
import socket
import subprocess
import threading
import time
import urllib.request

import psycopg2.pool
import pymysql
import requests

HTTP = os.environ.get("LEGACY_HTTP", "")
SMTP_PORT = int(os.environ.get("LEGACY_SMTP", "0"))
ECHO_PORT = int(os.environ.get("LEGACY_ECHO", "0"))
POSTGRESQL = os.environ.get("LEGACY_POSTGRESQL", "")
MARIADB = os.environ.get("LEGACY_MARIADB", "")
LOG_FILE = os.environ.get("LEGACY_LOG", os.devnull)

POOL_SIZE = 4

log = logging.getLogger("legacy")
log.addHandler(logging.FileHandler(LOG_FILE, delay=True))
log.setLevel(logging.INFO)
log.propagate = False

session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=POOL_SIZE, pool_block=True))
lock = threading.Lock()
condition = threading.Condition()
local = threading.local()
executor = concurrent.futures.ThreadPoolExecutor(3)
balance = {"in": 500, "out": 500}

pg_slots = threading.Semaphore(POOL_SIZE)
pg_pool = None


def pg():
    global pg_pool
    if pg_pool is None:
        pg_pool = psycopg2.pool.ThreadedConnectionPool(0, POOL_SIZE, POSTGRESQL)
    return pg_pool


@contextlib.contextmanager
def pg_cursor():
    with pg_slots:
        connection = pg().getconn()
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            pg().putconn(connection, close=bool(connection.closed))


def mysql():
    return pymysql.connect(unix_socket=MARIADB, user="root", database="legacy", autocommit=False)


def fetch(job):
    while True:
        with session.get(f"{HTTP}/echo/{job.id}", params={"wait": 0.01}, timeout=30) as answer:
            assert answer.text == job.id, answer.text


def stream(job):
    while True:
        with session.get(f"{HTTP}/large", stream=True, timeout=30) as answer:
            for chunk in answer.iter_content(1000):
                assert chunk


def download(job):
    while True:
        with urllib.request.urlopen(f"{HTTP}/echo/{job.id}?wait=0.01", timeout=30) as answer:
            assert answer.read().decode() == job.id


def talk(job):
    with socket.create_connection(("localhost", ECHO_PORT), timeout=30) as line:
        reader = line.makefile("rb")
        while True:
            line.sendall(job.id.encode() + b"\n")
            assert reader.readline().strip() == job.id.encode()


def mail(job):
    while True:
        server = smtplib.SMTP("127.0.0.1", SMTP_PORT, timeout=30)
        try:
            body = "line\r\n" * 200
            server.sendmail(
                "a@example.org", "b@example.org", f"Subject: {job.id}\r\n\r\n{body}.end"
            )
        finally:
            server.close()


def transfer_pg(job):
    while True:
        with pg_cursor() as cursor:
            cursor.execute("update accounts set amount = amount - 1 where name = 'a'")
            time.sleep(0.001)
            cursor.execute("update accounts set amount = amount + 1 where name = 'b'")


def report_pg(job):
    with pg_cursor() as cursor:
        cursor.execute("select pg_sleep(600) /* legacy report */")


def transfer_mysql(job):
    while True:
        connection = mysql()
        try:
            with connection.cursor() as cursor:
                cursor.execute("update accounts set amount = amount - 1 where name = 'a'")
                time.sleep(0.001)
                cursor.execute("update accounts set amount = amount + 1 where name = 'b'")
            connection.commit()
        finally:
            connection.close()


reports = {}


def report_mysql(job):
    connection = reports[job.id] = mysql()
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "select sum(a.seq * b.seq) /* legacy report */ "
                "from seq_1_to_1000000 a, seq_1_to_1000000 b"
            )
    finally:
        del reports[job.id]


def nap(job):
    local.user = job.id
    while True:
        time.sleep(0.01)
        assert local.user == job.id


def move(job):
    while True:
        with lock:
            balance["out"] -= 1
            balance["in"] += 1
        with lock:
            try:
                balance["in"] -= 1
                time.sleep(0.001)
            finally:
                balance["out"] += 1


def wait_for_news(job):
    with condition:
        while True:
            condition.wait(5)


def threads(job):
    def work():
        local.user = job.id
        while True:
            time.sleep(0.01)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()


def pipeline(job):
    items = queue.Queue(2)

    def produce():
        n = 0
        while True:
            items.put(n)
            n += 1
            time.sleep(0.001)

    threading.Thread(target=produce).start()
    while True:
        items.get()
        items.task_done()


def shell(job):
    while True:
        subprocess.run("sleep 0.01; sleep 600 | cat", shell=True, check=True)


def program(job):
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while True:
        process.stdin.write("line\n")
        process.stdin.flush()
        assert process.stdout.readline() == "line\n"


def pool(job):
    with concurrent.futures.ThreadPoolExecutor(3) as own:
        for done in own.map(time.sleep, [0.01] * 100_000):
            assert done is None


def shared_pool(job):
    while True:
        calls = [executor.submit(time.sleep, 0.002) for _ in range(5)]
        concurrent.futures.wait(calls)


def careless(job):
    try:
        while True:
            time.sleep(0.01)
    except:  # noqa: E722
        log.exception("failed, never mind")


def chatty(job):
    while True:
        log.info("line of %s", job.id)
        time.sleep(0.001)


class TooLongError(Exception):
    pass


def impatient(job):
    def too_long(number, frame):
        raise TooLongError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(600)
    try:
        while True:
            time.sleep(0.01)
    finally:
        signal.alarm(0)


open_readers = 0


def read(job):
    def lines():
        global open_readers
        open_readers += 1
        try:
            while True:
                yield time.sleep(0.001)
        finally:
            time.sleep(0.001)
            open_readers -= 1

    for _ in lines():
        pass


ALL = {
    one.__name__: one
    for one in (
        *(fetch, stream, download, talk, mail, transfer_pg, report_pg, transfer_mysql),
        *(report_mysql, nap, move, wait_for_news, threads, pipeline, shell, program, pool),
        *(shared_pool, careless, chatty, impatient, read),
    )
}
