#!/usr/bin/env python3
"""Sends the spans of sagas that have ended to an OpenTelemetry receiver: OTLP, JSON over HTTP.  See README.md."""
import email.utils, json, logging, os, random, signal, sys, threading, time
import urllib.error, urllib.request

import psycopg2


def setting(name, default):
    return type(default)(os.environ.get("SAGA_" + name, default))


STATE, SINCE = setting("STATE", "otlp-exporter.state"), setting("SINCE", "1 hour")
INTERVAL, OVERLAP = setting("INTERVAL", 5.0), setting("OVERLAP", 60.0)
STEP = 60.0  # seconds
SAGAS, SPANS, LENGTH = setting("SAGAS", 500), setting("SPANS", 512), setting("LENGTH", 4096)
UNSAMPLED = setting("UNSAMPLED", "no") == "yes"

SERVICE = os.environ.get("OTEL_SERVICE_NAME", "saga")
URL = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (
    os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318").rstrip("/") + "/v1/traces")
HEADERS = dict(pair.strip().split("=", 1) for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(",") if "=" in pair)
TIMEOUT = float(os.environ.get("OTEL_EXPORTER_OTLP_TIMEOUT", "10000")) / 1000

KINDS = {"internal": 1, "client": 3, "producer": 4}
STATUS = {"unset": 0, "ok": 1, "error": 2}
HOPELESS = 400, 413  # the receiver will never take it
PAUSE, MAX_PAUSE = 1, 60  # seconds, between attempts to reach the receiver or the database

stop = threading.Event()


class Stopped(Exception):
    pass


def rest(seconds):
    if stop.wait(seconds):
        raise Stopped


# ---- what was sent ----------------------------------------------------------


def load_state():
    """When the last saga that was sent had ended, and those of shortly before: commits come out of order."""
    try:
        with open(STATE) as file:
            state = json.load(file)
        return state["since"], {int(saga): ended for saga, ended in state["sent"].items()}
    except FileNotFoundError:
        return None, {}


def save_state(since, sent):
    """Whole or not at all, whatever happens meanwhile."""
    with open(STATE + ".new", "w") as file:
        json.dump({"since": since, "sent": sent}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(STATE + ".new", STATE)


# ---- the database -----------------------------------------------------------


def connect():
    db = psycopg2.connect("", connect_timeout=10, application_name="saga otlp exporter")
    db.autocommit = True  # no snapshot is held while the receiver is waited for
    with db.cursor() as cursor:
        cursor.execute("SET jit = off")
        cursor.execute("SELECT extversion, current_database() FROM pg_extension WHERE extname = 'saga'")
        if cursor.rowcount == 0:
            sys.exit("extension saga is not in this database")
        return db, *cursor.fetchone()


def read_start(db):
    with db.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM now() - %s::interval)::float8", (SINCE,))
        return cursor.fetchone()[0]


def read_ended(db, since, sent):
    """The first that have ended and were not sent, and whether there may be more.

    The range grows until some are found: after a long pause not all that have
    ended are to be sorted each time."""
    span = STEP
    with db.cursor() as cursor:
        while True:
            cursor.execute(
                "SELECT saga_id, extract(epoch FROM finished_at)::float8 FROM saga.sagas"
                " WHERE finished_at >= to_timestamp(%s) AND finished_at < to_timestamp(%s)"
                " AND saga_id <> ALL (%s::bigint[])"
                " ORDER BY finished_at, saga_id LIMIT %s",
                (since - OVERLAP, since + span, list(sent), SAGAS))
            ended = cursor.fetchall()
            cursor.execute("SELECT extract(epoch FROM now())::float8 > %s", (since + span,))
            more = len(ended) == SAGAS or cursor.fetchone()[0]
            if ended or not more:
                return ended, more
            span *= 4


def read_spans(db, sagas):
    with db.cursor() as cursor:
        cursor.execute(
            "SELECT trace_id, span_id, parent_span_id, sampled, name, kind, start_time_unix_nano, end_time_unix_nano,"
            " attributes, events, status_code, status_message"
            " FROM saga.spans WHERE saga_id = ANY (%s) ORDER BY saga_id, start_time_unix_nano", (sagas,))
        return [make_span(*row) for row in cursor if row[3] or UNSAMPLED]


# ---- OTLP -------------------------------------------------------------------


def make_value(value):
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": str(value)[:LENGTH]}


def make_attributes(attributes):
    return [{"key": key, "value": make_value(value)} for key, value in attributes.items() if value is not None]


def make_span(trace, span, parent, sampled, name, kind, start, end, attributes, events, code, message):
    made = {
        "traceId": trace, "spanId": span, "flags": int(sampled), "name": name, "kind": KINDS[kind],
        "startTimeUnixNano": str(start), "endTimeUnixNano": str(end), "attributes": make_attributes(attributes),
        "events": [{"name": event["name"], "timeUnixNano": str(event["time_unix_nano"]),
                    "attributes": make_attributes(event["attributes"])} for event in events],
        "status": {"code": STATUS[code]}}
    if parent:
        made["parentSpanId"] = parent
    if message:
        made["status"]["message"] = message[:LENGTH]
    return made


def make_request(spans, version, database):
    resource = {"service.name": SERVICE, "db.system.name": "postgresql", "db.namespace": database}
    return json.dumps({"resourceSpans": [{
        "resource": {"attributes": make_attributes(resource)},
        "scopeSpans": [{"scope": {"name": "saga", "version": version}, "spans": spans}]}]}).encode()


def post(body):
    """Returns how long to wait before it is sent again; None: it need not be."""
    request = urllib.request.Request(URL, body, {"Content-Type": "application/json", **HEADERS})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer = json.loads(response.read() or b"{}").get("partialSuccess") or {}
        if int(answer.get("rejectedSpans", 0)) > 0:
            logging.error("%s spans were rejected: %s", answer["rejectedSpans"], answer.get("errorMessage", ""))
        return None
    except urllib.error.HTTPError as error:
        if error.code in HOPELESS:
            logging.error("spans were refused: %s %s", error, error.read()[:1000])
            return None
        logging.warning("%s: %s", URL, error)
        return retry_after(error.headers.get("Retry-After"))
    except (OSError, ValueError) as error:  # not reached, too late, or no JSON: who knows
        logging.warning("%s: %s", URL, error)
        return 0


def retry_after(header):
    """Seconds, or a date."""
    try:
        return max(0, int(header))
    except (TypeError, ValueError):
        pass
    try:
        return max(0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0


def send(spans, version, database):
    for first in range(0, len(spans), SPANS):
        body = make_request(spans[first:first + SPANS], version, database)
        pause = PAUSE
        while (wanted := post(body)) is not None:
            rest(max(wanted, pause * random.uniform(0.5, 1)))
            pause = min(pause * 2, MAX_PAUSE)


# ---- the work ---------------------------------------------------------------


def export(db, version, database):
    """Sends what has ended and was not sent; returns whether there may be more."""
    since, sent = load_state()
    if since is None:
        since = read_start(db)
        save_state(since, sent)
    ended, more = read_ended(db, since, sent)
    if not ended:
        return False
    send(read_spans(db, [saga for saga, _ in ended]), version, database)
    since = max(since, ended[-1][1])
    sent.update(ended)
    save_state(since, {saga: at for saga, at in sent.items() if at >= since - OVERLAP})
    logging.info("sent %d sagas", len(ended))
    return more


def main():
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: stop.set())
    pause = PAUSE
    try:
        while not stop.is_set():
            try:
                db, version, database = connect()
                pause = PAUSE
                while not stop.is_set():
                    if export(db, version, database):
                        continue
                    if "--once" in sys.argv:
                        return
                    rest(INTERVAL)
            except psycopg2.OperationalError as error:
                logging.warning("%s", error)
                rest(pause)
                pause = min(pause * 2, MAX_PAUSE)
    except Stopped:
        pass


if __name__ == "__main__":
    main()
