#!/usr/bin/env python3
"""A participant of sagas: claims tasks of a queue, has them done, answers.  See README.md."""
import json, logging, os, random, select, signal, socket, threading, time
from concurrent.futures import ThreadPoolExecutor

import psycopg2
from psycopg2.extensions import quote_ident
from psycopg2.extras import RealDictCursor

from tasks import TASKS, Refused


def setting(name, default):
    return type(default)(os.environ.get("SAGA_" + name, default))


QUEUE, LISTEN_DSN = setting("QUEUE", "payments"), setting("LISTEN_DSN", "")
BATCH, CONCURRENCY = setting("BATCH", 10), setting("CONCURRENCY", 10)
LEASE, POLL, GRACE = setting("LEASE", 30.0), setting("POLL", 10.0), setting("GRACE", 20.0)


def connect(dsn):
    return psycopg2.connect(dsn, connect_timeout=5, keepalives_idle=30, tcp_user_timeout=30000)


def listen():
    listener = connect(LISTEN_DSN)
    listener.autocommit = True
    listener.cursor().execute("LISTEN " + quote_ident("saga_" + QUEUE, listener))
    return listener


def transaction(db, *statements):
    """Run them in one transaction, and return the rows of the last one once it is committed."""
    with db, db.cursor(cursor_factory=RealDictCursor) as cursor:
        for sql, arguments in statements:
            cursor.execute(sql, arguments)
        return cursor.fetchall()


def failure(task, error):
    known = isinstance(error, Refused)  # else it may have been done all the same
    return ("SELECT saga.fail_task(%s, %s, %s, retryable => %s, outcome_unknown => %s)",
            (task["id"], task["lease_token"], str(error) or repr(error), not known, not known))


def perform(task):
    """In a thread: do the task, and return the statements that tell so."""
    try:
        if task["cancelled"].is_set():
            raise Refused("no longer wanted")
        result, *effects = TASKS[task["task"]](task)
        return [*effects, ("SELECT saga.complete_task(%s, %s, %s)",
                           (task["id"], task["lease_token"], json.dumps(result)))]
    except Exception as error:
        return [failure(task, error)]


def answer(db, task):
    """If the connection breaks, call it again: the same answer is accepted twice."""
    statements = task["future"].result()
    for _ in range(2):
        try:
            return transaction(db, *statements)
        except Exception as error:
            if db.closed:
                raise
            logging.warning("task %s: %s", task["id"], error)
            if getattr(error, "pgcode", None) == "SG030":
                return  # the lease is lost, and the task somebody else's
            statements = [failure(task, error)]


def main():
    logging.basicConfig(format="%(asctime)s %(message)s")
    wake, waker = socket.socketpair()  # written to when a task has ended, and by signals
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    stop_at = []
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: stop_at.append(time.monotonic() + GRACE))

    pool, held, db, listener = ThreadPoolExecutor(CONCURRENCY), {}, None, None
    participant, lease = f"{socket.gethostname()}/{os.getpid()}", f"{LEASE} s"
    due, extend_at, pause = True, 0, 0.1

    def leases(tasks):
        return [task["id"] for task in tasks], [task["lease_token"] for task in tasks]

    while not stop_at or held and time.monotonic() < stop_at[0]:
        try:
            db = db or connect("")
            unbegun = [task for task in held.values() if stop_at and task["future"].cancel()]
            if unbegun:
                transaction(db, ("SELECT saga.release_tasks(%s::bigint[], %s::uuid[], skip_lost => true)",
                                 leases(unbegun)))
                for task in unbegun:
                    del held[task["id"]]
            for task in [task for task in held.values() if task["future"].done()]:
                answer(db, task)
                del held[task["id"]]

            now = time.monotonic()
            if held and now >= extend_at:
                kept = transaction(db, (
                    "SELECT * FROM saga.extend_leases(%s::bigint[], %s::uuid[], %s, skip_lost => true)",
                    (*leases(held.values()), lease)))
                wanted = {row["id"] for row in kept if not row["cancel_requested"]}
                for task in held.values():
                    if task["id"] not in wanted:
                        task["cancelled"].set()
                extend_at = now + LEASE / 3
            if due and not stop_at and len(held) < CONCURRENCY:
                tasks = transaction(db, ("SELECT * FROM saga.claim_tasks(%s, %s, %s, %s)",
                                         (QUEUE, BATCH, lease, participant)))
                extend_at = extend_at if held else now + LEASE / 3
                for task in tasks:
                    held[task["id"]] = task
                    task["cancelled"] = threading.Event()
                    task["future"] = pool.submit(perform, task)
                    task["future"].add_done_callback(lambda _: waker.send(b"."))
                due = len(tasks) == BATCH  # then there may be more
            elif listener is None:
                listener = listen()
                due = True  # what was notified before is lost
            else:
                timeout = 0.5 if stop_at else min(POLL, LEASE / 3) * random.uniform(0.5, 1)
                ready = select.select([listener, wake], [], [], timeout)[0]
                due = due or ready != [wake]
                if wake in ready:
                    wake.recv(4096)
                if listener in ready:
                    listener.poll()
                    listener.notifies.clear()
                pause = 0.1
        except psycopg2.Error as error:  # the server is restarting, maybe
            logging.warning("%s", error.__context__ or error)
            for connection in filter(None, (db, listener)):
                connection.close()
            db = listener = None
            due = True
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LEASE / 6, 5)

    os._exit(1 if held else 0)  # 1: leases are left to expire


if __name__ == "__main__":
    main()
