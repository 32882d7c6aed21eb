--
-- Operating: the views that are asked all the time (alive, ended, messages,
-- roles, health, step_health, vitals) say what is so, and show each role no more
-- than it may see; members of pg_monitor see numbers and nothing else.
--
SELECT setval('saga.saga_id_seq', 46000000, false) AS ids_begin_at;
CREATE SCHEMA operations_test AUTHORIZATION regress_saga_owner;
GRANT USAGE, CREATE ON SCHEMA operations_test TO PUBLIC;
CREATE ROLE regress_saga_pg_monitor LOGIN IN ROLE pg_monitor;
SET ROLE regress_saga_owner;
CREATE FUNCTION operations_test.act() RETURNS jsonb LANGUAGE sql RETURN '{"acted": true}'::jsonb;
CREATE FUNCTION operations_test.fail() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it failed' USING ERRCODE = 'P0042'; END $$;
SELECT saga.define('operations_act', saga.step('act', 'operations_test.act'));
SELECT saga.define('operations_undo', saga.step('act', 'operations_test.act', 'operations_test.act'), saga.step('fail', 'operations_test.fail', retry => saga.retry_policy(1)));
SELECT saga.define('operations_stuck', saga.step('act', 'operations_test.act', 'operations_test.fail', compensation_retry => saga.retry_policy(2, '5 ms')),
    saga.step('fail', 'operations_test.fail', retry => saga.retry_policy(1)));
SELECT saga.define('operations_wait', saga.step('act', 'operations_test.act', 'operations_test.act'), saga.signal_step('go'), saga.step('last', 'operations_test.act'));
SELECT saga.begin('operations_act', '{"secret": 1}', key => 'acts') AS act \gset
SELECT saga.begin('operations_undo', '{"secret": 2}', deadline => now() + interval '1 day') AS undo \gset
SELECT saga.begin('operations_stuck', '{"secret": 3}', key => 'sticks') AS stuck \gset
SELECT saga.begin('operations_wait', '{"secret": 4}', deadline => now() + interval '1 day') AS waits \gset
SELECT saga.begin('operations_wait', '{"secret": 5}', start_at => now() + interval '1 day') AS later \gset
SELECT saga.pause(:later, 'a secret reason') = :later AS paused, saga.resume(:later) = :later AS resumed;
SELECT saga_test.outcome(:act), saga_test.outcome(:undo), saga_test.outcome(:stuck), saga_test.waits_for(:waits), saga_test.waits_for(:later);

------------------------------------------------------------------------------
-- What is alive, what has ended
------------------------------------------------------------------------------

SELECT saga_id, definition, version, key, status, owner, step, waiting_for, next_attempt_at > now() AS goes_on, created_at <= now() AS created, started_at <= now() AS started,
    deadline > now() AS deadline, overdue, compensates, suspect, cause, cause_sqlstate, parent_id, root_id
FROM saga.alive WHERE saga_id >= 46000000 ORDER BY saga_id;
SELECT saga_id, definition, version, key, outcome, owner, cause_step, cause, cause_sqlstate, duration = finished_at - created_at AS duration, started_at <= finished_at AS started, overdue, parent_id, root_id
FROM saga.ended WHERE saga_id >= 46000000 ORDER BY saga_id;
SELECT saga_id, status, final FROM saga.sagas WHERE saga_id >= 46000000 ORDER BY saga_id;
-- One or the other, never both.
SELECT count(*) = (SELECT count(*) FROM saga.alive) + (SELECT count(*) FROM saga.ended) AS sum,
    count(*) FILTER (WHERE final) = (SELECT count(*) FROM saga.ended) AS ended, bool_and(final = (finished_at IS NOT NULL)) AS agree FROM saga.sagas;
-- Past its deadline, and not final yet.
RESET ROLE;
UPDATE saga.saga SET deadline = now() - interval '1 s' WHERE id = :later;
SELECT saga_id = :later AS later, overdue, status FROM saga.alive WHERE overdue AND definition LIKE 'operations%';
UPDATE saga.saga SET deadline = NULL WHERE id = :later;
SET ROLE regress_saga_owner;

------------------------------------------------------------------------------
-- Messages that nobody has acted on
------------------------------------------------------------------------------

BEGIN;
SELECT saga.pause(:later, 'coffee') = :later AS paused, saga.signal(:waits, 'go', '{"secret": 6}');
SELECT saga_id - 46000000 AS saga, definition, owner, kind, step, element, reason, requested_by, created_at <= clock_timestamp() AS created FROM saga.messages WHERE saga_id >= 46000000 ORDER BY id;
ROLLBACK;
SELECT count(*) FROM saga.messages WHERE saga_id >= 46000000;

------------------------------------------------------------------------------
-- Health
------------------------------------------------------------------------------

-- (What is counted is exact from the first count on, which comes soon after the start.)
SELECT saga_test.wait_until($$ EXISTS (SELECT FROM saga.health WHERE definition = 'operations_wait' AND running = 1) $$, 'the count');
SELECT definition, owner, enabled, scheduled, running, compensating, held, stuck, paused, waiting, oldest_saga_id - 46000000 AS oldest, oldest_created_at <= now() AS since_when
FROM saga.health WHERE definition LIKE 'operations%' ORDER BY 1;
SELECT definition, begun, completed, compensated, abandoned, seconds > 0 AS seconds, since <= now() AS since, begun_1d > 0 AS begun_1d, completed_1d > 0 AS completed_1d,
    compensated_1d > 0 AS compensated_1d, abandoned_1d, compensation_ratio_1d AS ratio, p50_1d > '0' AS p50, p50_1d <= p95_1d AS p95, p95_1d <= p99_1d AS p99
FROM saga.health WHERE definition LIKE 'operations%' ORDER BY 1;
SELECT definition, step, operation, succeeded, failed, seconds > 0 AS seconds, since <= now() AS since, succeeded_1d > 0 AS succeeded_1d, failed_1d > 0 AS failed_1d, p50_1d > '0' AS p50, p99_1d >= p50_1d AS p99
FROM saga.step_health WHERE definition LIKE 'operations%' ORDER BY 1, 2, 3;
-- The numbers are those of the rows.
SELECT h.definition FROM saga.health h
    FULL JOIN (SELECT definition, count(*) FILTER (WHERE status = 'scheduled') AS scheduled, count(*) FILTER (WHERE status = 'running') AS running,
        count(*) FILTER (WHERE status = 'stuck') AS stuck, min(saga_id) AS oldest FROM saga.alive GROUP BY 1) a ON a.definition = h.definition
WHERE h.owner = 'regress_saga_owner' AND (h.scheduled, h.running, h.stuck) IS DISTINCT FROM (coalesce(a.scheduled, 0), coalesce(a.running, 0), coalesce(a.stuck, 0)) OR h.oldest_saga_id IS DISTINCT FROM a.oldest;
-- One that was dropped is there while sagas of it are not final.
SELECT saga.drop_definition('operations_stuck', force => true);
SELECT definition, owner, enabled, stuck, oldest_saga_id - 46000000 AS oldest FROM saga.health WHERE definition = 'operations_stuck';
RESET ROLE;
SELECT definition, owner, enabled, stuck, oldest_saga_id - 46000000 AS oldest FROM saga.health WHERE definition = 'operations_stuck';

------------------------------------------------------------------------------
-- Roles
------------------------------------------------------------------------------

CREATE ROLE regress_saga_closed LOGIN;
SELECT saga.grant_usage('regress_saga_closed');
GRANT CONNECT ON DATABASE :"DBNAME" TO regress_saga_owner, regress_saga_other;
REVOKE CONNECT ON DATABASE :"DBNAME" FROM PUBLIC;
SET ROLE regress_saga_closed;
SELECT saga.define('operations_closed', saga.step('act', 'operations_test.act'));
SELECT saga.begin('operations_closed') AS closed \gset
SELECT saga.begin('operations_closed', start_at => now() + interval '1 day') AS next \gset
SELECT saga_test.wait_until($$ EXISTS (SELECT FROM saga.roles WHERE no_worker IS NOT NULL) $$, 'the reason');
SELECT role, "exists", can_log_in, may_connect, workers, no_worker, no_worker_since <= clock_timestamp() AS since, oldest_due_id = :closed AS oldest, oldest_due_at <= now() AS due,
    next_due_at > now() AS next, adopt FROM saga.roles;
RESET ROLE;
SELECT "exists", may_connect, workers, no_worker, oldest_due_id = :closed AS oldest FROM saga.roles WHERE role = 'regress_saga_closed';
SELECT enabled, launcher, workers_wanted > 0 AS wanted, no_worker, oldest_due_id = :closed AS oldest, oldest_due_role, oldest_due_at <= now() AS due FROM saga.vitals;
-- Renamed: its sagas are not run, and that is said.
ALTER ROLE regress_saga_closed RENAME TO regress_saga_renamed;
SELECT role, "exists", can_log_in, may_connect FROM saga.roles WHERE role = 'regress_saga_closed';
ALTER ROLE regress_saga_renamed RENAME TO regress_saga_closed;
GRANT CONNECT ON DATABASE :"DBNAME" TO PUBLIC;
REVOKE CONNECT ON DATABASE :"DBNAME" FROM regress_saga_owner, regress_saga_other;
SELECT saga_test.outcome(:closed);
SELECT "exists", may_connect, no_worker, oldest_due_id, next_due_at > now() AS next FROM saga.roles WHERE role = 'regress_saga_closed';
SELECT saga.abandon(:next, 'of no use') = :next AS abandoned;
SELECT saga_test.outcome(:next);

------------------------------------------------------------------------------
-- Vitals
------------------------------------------------------------------------------

SELECT count(*) AS one_row FROM saga.vitals;
SELECT at > now() - interval '1 min' AS at, enabled, launcher, dead_tuples >= 0 AS dead, coalesce(worst_table_ratio, 0) BETWEEN 0 AND 1 AS ratio, horizon_age >= 0 AS age, slot BETWEEN 0 AND 7 AS slot,
    oldest_kept = (SELECT created_at FROM saga.sagas ORDER BY saga_id LIMIT 1) AS oldest FROM saga.vitals;

------------------------------------------------------------------------------
-- Who sees what
------------------------------------------------------------------------------

CREATE FUNCTION operations_test.seen() RETURNS TABLE (what text, seen text) LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
    FOREACH what IN ARRAY ARRAY['saga.alive', 'saga.ended', 'saga.sagas', 'saga.stuck', 'saga.health', 'saga.step_health', 'saga.roles', 'saga.messages', 'saga.steps', 'saga.attempts', 'saga.requests',
        'saga.locks', 'saga.tasks', 'saga.workers', 'saga.queues', 'saga.servers', 'saga.participants', 'saga.vitals', 'saga.sagas_raw', 'saga.oldest_raw()', 'saga.roles_raw()', 'saga.horizon_raw()'] LOOP
        seen := 'yes';
        BEGIN
            EXECUTE 'SELECT count(*) FROM ' || what || CASE
                WHEN what IN ('saga.alive', 'saga.ended', 'saga.sagas', 'saga.stuck', 'saga.health', 'saga.step_health') THEN ' WHERE definition LIKE ''operations%'''
                WHEN what = 'saga.roles' THEN ' WHERE role = ''regress_saga_owner''' ELSE '' END INTO n;
            IF what IN ('saga.alive', 'saga.ended', 'saga.sagas', 'saga.stuck', 'saga.health', 'saga.step_health', 'saga.roles') THEN
                seen := CASE n WHEN 0 THEN 'no rows' ELSE 'rows' END;
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            seen := 'denied';
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SET ROLE regress_saga_owner;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SET ROLE regress_saga_other;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SET ROLE regress_saga_stranger;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SET ROLE regress_saga_monitor;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SET ROLE regress_saga_operator;
SELECT DISTINCT seen FROM operations_test.seen() WHERE what = 'saga.vitals';
SET ROLE regress_saga_pg_monitor;
SELECT string_agg(what, ', ') AS what, seen FROM operations_test.seen() GROUP BY 2 ORDER BY 2;
SELECT definition, stuck FROM saga.health WHERE definition = 'operations_stuck';
SELECT saga.reset_statistics('operations_act');
SET ROLE regress_saga_other;
-- What a view computes of a row is computed for those only that it shows.
CREATE FUNCTION operations_test.leak(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'leaked %', t; RETURN true; END $$;
SELECT count(*) FROM saga.sagas WHERE operations_test.leak(input::text) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.alive WHERE operations_test.leak(key) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.ended WHERE operations_test.leak(key) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.sagas WHERE operations_test.leak(remote_parent_id::text) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.requests WHERE operations_test.leak(reason) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.messages WHERE operations_test.leak(requested_by) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.stuck WHERE operations_test.leak(key) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.attempts WHERE operations_test.leak(message) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.steps WHERE operations_test.leak(result::text) AND saga_id >= 46000000 AND saga_id < 47000000;
SELECT count(*) FROM saga.alerts WHERE operations_test.leak(subject);
-- The function behind the result asks itself whose saga it is.
SELECT saga.result_raw(:act, slot::smallint) FROM generate_series(0, 7) slot;
SELECT saga.result_raw(:act, -1::smallint), saga.result_raw(:act, 8::smallint), saga.result_raw(0, 0::smallint), saga.result_raw(NULL, 0::smallint);
SET ROLE regress_saga_owner;
SELECT saga.result_raw(saga_id, slot::smallint) = result AS same FROM saga.sagas, generate_series(0, 7) slot WHERE saga_id = :act AND saga.result_raw(saga_id, slot::smallint) IS NOT NULL;
SELECT result FROM saga.sagas WHERE saga_id IN (:act, :undo, :stuck, :waits) ORDER BY saga_id;

-- Numbers are reset by operators; what there is now stays.
RESET ROLE;
SET ROLE regress_saga_operator;
SELECT saga.reset_statistics('operations_wait');
SELECT scheduled, running, begun, begun_1d, p50_1d FROM saga.health WHERE definition = 'operations_wait';
RESET ROLE;
SELECT saga.abandon(saga_id, 'the test is over') = saga_id AS abandoned FROM saga.alive WHERE saga_id >= 46000000 ORDER BY saga_id;
SELECT * FROM saga_test.all_ended('operations%');
SET client_min_messages = warning;
DROP SCHEMA operations_test CASCADE;
DROP OWNED BY regress_saga_pg_monitor, regress_saga_closed;
DROP ROLE regress_saga_pg_monitor, regress_saga_closed;
