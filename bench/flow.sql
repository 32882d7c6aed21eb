-- Sagas that fan out, wait for timers and take turns, and loops that write the
-- same rows without them.  Run as the role that owns everything here; the
-- tables same_saga, same_step and same_lock are copies of the engine's, with
-- all indexes.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

CREATE TABLE parcels (parcel_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga_id bigint NOT NULL, n int NOT NULL, amount int NOT NULL);
CREATE TABLE fired (saga_id bigint PRIMARY KEY, due timestamptz NOT NULL, at timestamptz NOT NULL);
CREATE TABLE turns (turn_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga_id bigint NOT NULL, sku int NOT NULL, before int NOT NULL);
CREATE TABLE stock (sku int PRIMARY KEY, n int NOT NULL);

-- fan-out: one row for each element

CREATE FUNCTION send_parcel(context jsonb) RETURNS bigint
LANGUAGE sql AS $$
    INSERT INTO parcels (saga_id, n, amount) VALUES ((context ->> 'saga_id')::bigint,
        (context #>> '{element,n}')::int, (context #>> '{element,amount}')::int)
    RETURNING parcel_id
$$;

CREATE FUNCTION fanout_input(elements int) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT jsonb_build_object('items', jsonb_agg(jsonb_build_object('n', i, 'amount', 10 + i % 90)))
    FROM generate_series(1, elements) i
$$;

SELECT saga.define('fanout', saga.step('send', 'send_parcel', foreach => 'items')) \g /dev/null

-- what is written of an operation that has succeeded
CREATE FUNCTION write_step(saga_id bigint, step int, element int, result jsonb) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO same_step (saga_id, started_at, finished_at, element, attempts, failures, crashes,
        operation, status, slot, step, round, unknown, cancelled, surplus, signalled, result)
    VALUES (saga_id, clock_timestamp(), clock_timestamp(), element, 1, 0, 0,
        'action', 'succeeded', 0, step, 0, false, false, false, false, result)
$$;
CREATE FUNCTION write_saga(saga_id bigint, due_at timestamptz, input jsonb) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO same_saga (id, due_at, created_at, token, coordinator, role, definition_id, turn,
        status, slot, step, goal, backward, suspect, released, role_name, input)
    VALUES (saga_id, due_at, clock_timestamp(), gen_random_uuid(),
        '00000000-0000-0000-0000-000000000000', 10, 1, 0, 'running', 0, 0, -1, false, false, false,
        'bench', input)
$$;

-- so many elements, a commit every "batch" of them
CREATE PROCEDURE raw_fanout(elements int, batch int)
LANGUAGE plpgsql AS $$
DECLARE
    e jsonb;
    n int := 0;
    context jsonb;
    this constant bigint := nextval('same_id');
BEGIN
    PERFORM write_saga(this, clock_timestamp(), fanout_input(elements));
    COMMIT;
    FOR e IN SELECT jsonb_array_elements(input -> 'items') FROM same_saga s WHERE s.id = this LOOP
        context := jsonb_build_object('saga_id', this, 'element', e);
        PERFORM write_step(this, 0, n, to_jsonb(send_parcel(context)));
        n := n + 1;
        IF n % batch = 0 THEN
            UPDATE same_saga s SET turn = turn + 1 WHERE s.id = this;
            COMMIT;
        END IF;
    END LOOP;
    UPDATE same_saga s SET turn = turn + 1, status = 'completed', due_at = NULL,
        finished_at = clock_timestamp() WHERE s.id = this;
END $$;

-- timers: each saga waits for its time, then writes when it was woken

CREATE FUNCTION due_time(due timestamptz) RETURNS timestamptz LANGUAGE sql AS 'SELECT due';
CREATE FUNCTION fire(context jsonb) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO fired VALUES ((context ->> 'saga_id')::bigint,
        (context #>> '{input,due}')::timestamptz, clock_timestamp())
$$;

SELECT saga.define('timed',
    saga.timer_step('wait', until => 'due_time'), saga.step('fire', 'fire')) \g /dev/null

-- so many that are due, 50 in a transaction
CREATE PROCEDURE raw_timers(sagas int)
LANGUAGE plpgsql AS $$
DECLARE
    r record;
    found_any boolean;
BEGIN
    LOOP
        found_any := false;
        FOR r IN SELECT id, input FROM same_saga WHERE role = 10 AND due_at <= clock_timestamp()
            ORDER BY due_at, id LIMIT 50 FOR NO KEY UPDATE SKIP LOCKED
        LOOP
            found_any := true;
            UPDATE same_step SET status = 'succeeded', finished_at = clock_timestamp(), due_at = NULL
            WHERE saga_id = r.id AND slot = 0 AND step = 0;
            PERFORM fire(jsonb_build_object('saga_id', r.id, 'input', r.input));
            PERFORM write_step(r.id, 1, 0, NULL);
            UPDATE same_saga SET turn = turn + 1, step = 1, status = 'completed', due_at = NULL,
                finished_at = clock_timestamp() WHERE id = r.id;
        END LOOP;
        EXIT WHEN NOT found_any;
        COMMIT;
    END LOOP;
END $$;

-- locks: one of few rows is counted up, one saga at a time

CREATE FUNCTION take_turn(context jsonb) RETURNS int
LANGUAGE sql AS $$
    INSERT INTO turns (saga_id, sku, before)
    SELECT (context ->> 'saga_id')::bigint, s.sku, s.n FROM stock s
    WHERE s.sku = (context #>> '{input,sku}')::int RETURNING before
$$;
CREATE FUNCTION end_turn(context jsonb) RETURNS void
LANGUAGE sql AS $$
    UPDATE stock SET n = (context #>> '{results,take}')::int + 1
    WHERE sku = (context #>> '{input,sku}')::int
$$;

SELECT saga.define('turns',
    saga.step('take', 'take_turn', exclusive => 'sku', exclusive_timeout => '0'),
    saga.step('end', 'end_turn')) \g /dev/null

-- the same rows: a place in line, the turn, the place given back; a commit for
-- each step of as many sagas as there are locks
CREATE PROCEDURE raw_locks(sagas int, locks int)
LANGUAGE plpgsql AS $$
DECLARE
    before int[];
    first int;
    sku int;
BEGIN
    FOR i IN 1..sagas LOOP
        PERFORM write_saga(i, clock_timestamp(), jsonb_build_object('sku', i % locks));
        INSERT INTO same_lock (lock_key, position, saga_id, root_id, role, slot, step, granted)
        VALUES ('lock 10 ' || i % locks, i, i, i, 10, 0, 0, i <= locks);
    END LOOP;
    COMMIT;
    FOR round IN 0..(sagas - 1) / locks LOOP
        first := round * locks + 1;
        FOR this IN first..first + locks - 1 LOOP
            sku := this % locks;
            before[sku] := take_turn(jsonb_build_object('saga_id', this, 'input', jsonb_build_object('sku', sku)));
            PERFORM write_step(this, 0, 0, to_jsonb(before[sku]));
            UPDATE same_saga s SET turn = turn + 1, step = 1 WHERE s.id = this;
        END LOOP;
        COMMIT;
        FOR this IN first..first + locks - 1 LOOP
            sku := this % locks;
            PERFORM end_turn(jsonb_build_object('saga_id', this, 'input', jsonb_build_object('sku', sku),
                'results', jsonb_build_object('take', before[sku])));
            PERFORM write_step(this, 1, 0, NULL);
            UPDATE same_saga s SET turn = turn + 1, status = 'completed', due_at = NULL,
                finished_at = clock_timestamp() WHERE s.id = this;
            DELETE FROM same_lock WHERE lock_key = 'lock 10 ' || sku AND granted;
            UPDATE same_lock SET granted = true, since = clock_timestamp()
            WHERE lock_key = 'lock 10 ' || sku AND position = this + locks AND NOT granted;
        END LOOP;
        COMMIT;
    END LOOP;
END $$;
