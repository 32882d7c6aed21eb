--
-- What the other scripts stand on: the extension, roles, and functions that
-- wait.  Each script has objects in a schema of its own and gives its sagas ids
-- of its own; cleanup.sql removes what is left.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
DROP ROLE IF EXISTS regress_saga_owner, regress_saga_other, regress_saga_monitor,
    regress_saga_operator, regress_saga_stranger;
CREATE ROLE regress_saga_owner LOGIN;
CREATE ROLE regress_saga_other LOGIN;
CREATE ROLE regress_saga_monitor LOGIN;
CREATE ROLE regress_saga_operator LOGIN;
CREATE ROLE regress_saga_stranger LOGIN;
RESET client_min_messages;

SELECT saga.grant_usage('regress_saga_owner');
SELECT saga.grant_usage('regress_saga_other');
SELECT saga.grant_monitor('regress_saga_monitor');
SELECT saga.grant_operator('regress_saga_operator');

CREATE SCHEMA saga_test;
GRANT USAGE ON SCHEMA saga_test TO PUBLIC;

-- Poll a condition until it is true; after a minute say what was waited for.
CREATE FUNCTION saga_test.wait_until(condition text, what text, id bigint DEFAULT NULL)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
    met boolean;
BEGIN
    LOOP
        EXECUTE 'SELECT ' || condition INTO met;
        EXIT WHEN met;
        PERFORM pg_stat_clear_snapshot();
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for %', what USING DETAIL = concat_ws(E'\n', condition,
                (SELECT string_agg(topic || ': ' || detail, E'\n') FROM saga.explain(id)));
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;

-- Wait until only a person can move a saga, or nobody, and all that was asked of
-- it has been answered; return its status.
CREATE FUNCTION saga_test.outcome(id bigint) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga_test.wait_until(
        format('EXISTS (SELECT FROM saga.sagas WHERE saga_id = %1$s AND status IN '
               '(''completed'', ''compensated'', ''abandoned'', ''stuck'', ''paused'')) '
               'AND NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %1$s AND outcome = ''pending'')', id),
        format('saga %s to come to rest', id), id);
    RETURN (SELECT status FROM saga.sagas WHERE saga_id = id);
END
$$;

-- Wait until all sagas of definitions of this name (LIKE) have ended; say how.
CREATE FUNCTION saga_test.all_ended(name text)
RETURNS TABLE (status saga.saga_status, sagas bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga_test.wait_until(
        format('NOT EXISTS (SELECT FROM saga.sagas WHERE definition LIKE %L AND finished_at IS NULL)', name),
        'the end of all sagas of ' || name);
    RETURN QUERY SELECT s.status, count(*) FROM saga.sagas s WHERE definition LIKE name GROUP BY 1 ORDER BY 1;
END
$$;

-- Wait until a saga waits for something; return for what.
CREATE FUNCTION saga_test.waits_for(id bigint) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga_test.wait_until(
        format('(SELECT waiting_for IS NOT NULL FROM saga.sagas WHERE saga_id = %1$s) '
               'AND NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %1$s AND outcome = ''pending'')', id),
        format('saga %s to wait for something', id), id);
    RETURN (SELECT waiting_for FROM saga.sagas WHERE saga_id = id);
END
$$;

-- What happened in a saga, in the order of its steps.
CREATE FUNCTION saga_test.story(id bigint)
RETURNS TABLE (step text, operation saga.operation, status saga.operation_status,
               attempts integer, result jsonb, error text)
LANGUAGE sql AS $$
    SELECT s.step, s.operation, s.status, s.attempts, s.result, s.error ->> 'message'
    FROM saga.steps s WHERE s.saga_id = id ORDER BY s.position, s.operation
$$;

-- The failed attempts of a saga.
CREATE FUNCTION saga_test.failures(id bigint)
RETURNS TABLE (step text, operation saga.operation, attempt integer, outcome text,
               passing boolean, sqlstate text, message text)
LANGUAGE sql AS $$
    SELECT a.step, a.operation, a.attempt, a.outcome, a.passing, a.sqlstate, a.message
    FROM saga.attempts a WHERE a.saga_id = id ORDER BY a.started_at, a.attempt
$$;

-- A step for tests of control flow: it writes what it did, and fails when the
-- input says so: "fail" names operations ("action charge", with its position for
-- an element: "action charge 2"), each with how often they fail (0 = always).
CREATE TABLE saga_test.log (n bigint GENERATED ALWAYS AS IDENTITY, saga_id bigint, what text);
GRANT SELECT, INSERT ON saga_test.log TO PUBLIC;
CREATE FUNCTION saga_test.act(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    me text := concat_ws(' ', context ->> 'operation', context ->> 'step', context ->> 'index');
    times integer := context #>> ARRAY['input', 'fail', me];
BEGIN
    INSERT INTO saga_test.log (saga_id, what) VALUES ((context ->> 'saga_id')::bigint, me);
    IF times = 0 OR (context ->> 'attempt')::integer <= times THEN
        RAISE EXCEPTION '% failed', me;
    END IF;
    RETURN coalesce(context -> 'element', to_jsonb(me));
END
$$;
-- What was done, in order; and without order, where branches ran at the same time.
CREATE FUNCTION saga_test.log(id bigint) RETURNS text LANGUAGE sql
    AS 'SELECT string_agg(what, '', '' ORDER BY n) FROM saga_test.log WHERE saga_id = id';
CREATE FUNCTION saga_test.log_sorted(id bigint) RETURNS text LANGUAGE sql
    AS 'SELECT string_agg(what, '', '' ORDER BY what COLLATE "C") FROM saga_test.log WHERE saga_id = id';
-- Was one thing done before the other?
CREATE FUNCTION saga_test.in_order(id bigint, VARIADIC steps text[]) RETURNS boolean LANGUAGE sql AS $$
    SELECT array_agg(l.what ORDER BY l.n) = steps FROM saga_test.log l WHERE l.saga_id = id AND l.what = ANY (steps)
$$;

-- The workers are there.
SELECT process, state, reason FROM saga.workers WHERE process = 'launcher';
