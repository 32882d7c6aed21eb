--
-- Without workers (saga.enabled is off): sagas are begun and wait, and CALL
-- saga.run() and saga.recover() advance the caller's own in its session, with
-- the same engine, leaving the session as it was.
--
SELECT setval('saga.saga_id_seq', 8000000, false) AS ids_begin_at;
CREATE SCHEMA foreground_test;
GRANT USAGE ON SCHEMA foreground_test TO regress_saga_owner;
ALTER SYSTEM SET saga.enabled = off;
SELECT pg_reload_conf();
SELECT saga_test.wait_until($$ NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'saga worker') $$, 'the workers to leave');
SHOW saga.enabled;

CREATE TABLE foreground_test.note (n bigint GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION foreground_test.write(what text) RETURNS text LANGUAGE sql AS 'INSERT INTO foreground_test.note (what) VALUES (what) RETURNING what';
CREATE FUNCTION foreground_test.erase(what text) RETURNS text LANGUAGE sql AS 'INSERT INTO foreground_test.note (what) VALUES (''not '' || what) RETURNING what';
CREATE FUNCTION foreground_test.fail() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it failed'; END $$;
CREATE FUNCTION foreground_test.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
CREATE FUNCTION foreground_test.later() RETURNS void LANGUAGE sql AS $$ SELECT saga.retry_later('1 day') $$;
SELECT saga.define('fore_write', saga.step('write', 'foreground_test.write', 'foreground_test.erase'), saga.step('again', 'foreground_test.write'));
SELECT saga.define('fore_fail', saga.step('write', 'foreground_test.write', 'foreground_test.erase'), saga.step('fail', 'foreground_test.fail'));
SELECT saga.define('fore_stuck', saga.step('write', 'foreground_test.write', 'foreground_test.fail', compensation_retry => saga.retry_policy(1)), saga.step('fail', 'foreground_test.fail'));
SELECT saga.define('fore_later', saga.step('write', 'foreground_test.write', 'foreground_test.erase'), saga.step('later', 'foreground_test.later'));

-- It waits.
SELECT saga.begin('fore_write', '{"what": "one"}') AS id \gset
CALL saga.wait(:id, '50 ms');
SELECT topic, detail FROM saga.explain(:id) WHERE topic IN ('status', 'waits for', 'no worker');
-- One saga.
CALL saga.run(:id);
SELECT * FROM saga_test.story(:id);
CALL saga.run(:id);
SELECT saga.begin('fore_fail', '{"what": "two"}') AS id \gset
CALL saga.run(:id);
SELECT * FROM saga_test.story(:id);
SELECT what FROM foreground_test.note ORDER BY n;
SELECT saga.begin('fore_later', '{"what": "three"}') AS later \gset
CALL saga.run(:later);
CALL saga.run(:later);
SELECT saga.cancel(:later, 'no') = :later AS cancelled;
CALL saga.run(:later);
SELECT saga.begin('fore_write', '{"what": "four"}', start_at => now() + interval '1 day') AS scheduled \gset
CALL saga.run(:scheduled);
SELECT saga.abandon(:scheduled) = :scheduled AS abandoned;
CALL saga.run(:scheduled);
SELECT saga.begin('fore_stuck', '{"what": "five"}') AS stuck \gset
CALL saga.run(:stuck);
SELECT step, operation, attempts FROM saga.stuck WHERE saga_id = :stuck;
SELECT saga.skip(:stuck) = :stuck AS skipped;
CALL saga.run(:stuck);
-- All that is due, so many, for so long.
DELETE FROM foreground_test.note;
SELECT count(saga.begin('fore_write', jsonb_build_object('what', n))) FROM generate_series(1, 10) n;
CALL saga.recover(max => 3);
SELECT status, count(*) FROM saga.sagas WHERE saga_id > :stuck AND saga_id < 9000000 GROUP BY status ORDER BY status;
CALL saga.recover(time_budget => '0');
CALL saga.recover();
CALL saga.recover();
SELECT count(*), count(DISTINCT what) FROM foreground_test.note;
SELECT count(saga.begin(CASE n % 3 WHEN 0 THEN 'fore_write' WHEN 1 THEN 'fore_fail' ELSE 'fore_later' END, jsonb_build_object('what', 'many ' || n))) FROM generate_series(1, 300) n;
CALL saga.recover();
SELECT definition, status, waiting_for, count(*) FROM saga.sagas WHERE input ->> 'what' LIKE 'many %' GROUP BY 1, 2, 3 ORDER BY 1;
SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE definition = 'fore_later' AND finished_at IS NULL;
CALL saga.recover();
-- In PL/pgSQL, where it may commit.
SELECT saga.begin('fore_write', '{"what": "in a procedure"}') AS id \gset
DO $$
DECLARE operations bigint; finished bigint; remaining boolean; leases bigint; woken bigint; unserved text[];
BEGIN
    CALL saga.recover(10, '10 s', operations, finished, remaining, leases, woken, unserved);
    RAISE NOTICE '% operations, % finished, remaining %', operations, finished, remaining;
END
$$;
-- Alerts are sent.
LISTEN saga_alert;
SELECT saga.begin('fore_stuck', '{"what": "six"}') AS id \gset
\o |sed -n 's/"at": "[^"]*", "id": [0-9]*, //; s/ received from server process with PID [0-9]*//p'
CALL saga.recover();
SELECT 1;
\o
UNLISTEN saga_alert;
SELECT saga.abandon(:id) = :id AS abandoned;
CALL saga.run(:id);

-- Arguments that make no sense.
CALL saga.run(0);
CALL saga.run(NULL);
CALL saga.recover(0);
CALL saga.recover(NULL);
CALL saga.recover(time_budget => '-1 s');
CALL saga.recover(time_budget => NULL);
-- Where it cannot commit, or must not run.
SELECT saga.begin('fore_write', '{"what": "refused"}') AS id \gset
BEGIN;
CALL saga.run(:id);
ROLLBACK;
BEGIN;
CALL saga.recover();
ROLLBACK;
CREATE FUNCTION foreground_test.run(id bigint) RETURNS text LANGUAGE plpgsql AS $$ DECLARE s text; BEGIN CALL saga.run(id, s); RETURN s; END $$;
SELECT foreground_test.run(:id);
CREATE PROCEDURE foreground_test.recover_as_definer(INOUT o bigint, INOUT f bigint) LANGUAGE plpgsql SECURITY DEFINER AS $$ DECLARE r boolean; l bigint; w bigint; u text[]; BEGIN CALL saga.recover(1, '1 s', o, f, r, l, w, u); END $$;
CALL foreground_test.recover_as_definer(NULL, NULL);
SET default_transaction_read_only = on;
CALL saga.recover();
RESET default_transaction_read_only;
-- As somebody else than who is logged in: a step could go back to that one.
\set VERBOSITY terse
SET ROLE regress_saga_owner;
CALL saga.recover();
CALL saga.run(:id);
RESET ROLE;
SET SESSION AUTHORIZATION regress_saga_owner;
CALL saga.recover();
RESET SESSION AUTHORIZATION;
-- The sagas of others.
SET ROLE regress_saga_owner;
SELECT saga.define('fore_others', saga.step('now', 'now'));
SELECT saga.begin('fore_others') AS others \gset
RESET ROLE;
\set VERBOSITY sqlstate
CALL saga.run(:others);
\set VERBOSITY default
CALL saga.recover();
SELECT status, started_at FROM saga.sagas WHERE saga_id = :others;
-- In a step.
CREATE FUNCTION foreground_test.nested() RETURNS text LANGUAGE plpgsql AS $$ DECLARE o bigint; f bigint; r boolean; l bigint; w bigint; u text[]; BEGIN CALL saga.recover(1, '1 s', o, f, r, l, w, u); RETURN o; END $$;
SELECT saga.define('fore_nested', saga.step('nested', 'foreground_test.nested'));
SELECT saga.begin('fore_nested') AS id \gset
CALL saga.run(:id);
SELECT * FROM saga_test.failures(:id);

-- The session stays as it was.
CREATE FUNCTION foreground_test.leave() RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text := concat_ws(' | ', current_setting('work_mem'), current_setting('search_path'), current_user = session_user, current_setting('transaction_isolation'));
BEGIN
    SET work_mem = '3MB';
    SET search_path = nowhere;
    SET ROLE regress_saga_owner;
    EXECUTE 'DECLARE left_open CURSOR WITH HOLD FOR SELECT 1';
    RETURN found;
END
$$;
SELECT saga.define('fore_leave', saga.step('leave', 'foreground_test.leave', isolation => 'repeatable read'), saga.step('leave again', 'foreground_test.leave'));
SET work_mem = '5MB';
SET search_path = foreground_test, public;
SET default_transaction_isolation = 'serializable';
PREPARE mine AS SELECT 'prepared before';
DECLARE mine CURSOR WITH HOLD FOR SELECT 'declared before';
CREATE TEMP TABLE mine AS SELECT 'there before' AS what;
SELECT pg_advisory_lock(8000000);
SELECT saga.begin('fore_leave') AS id \gset
CALL saga.run(:id);
SELECT step, status, result FROM saga_test.story(:id);
SELECT current_setting('work_mem') AS work_mem, current_setting('search_path') AS search_path, current_user = session_user AS own_role, current_setting('transaction_isolation') AS isolation;
EXECUTE mine;
FETCH mine;
SELECT * FROM mine;
SELECT name FROM pg_cursors ORDER BY 1;
SELECT pg_advisory_unlock(8000000);
RESET default_transaction_isolation;
RESET work_mem;
RESET search_path;
DEALLOCATE mine;
CLOSE mine;
DROP TABLE mine;
-- statement_timeout ends the CALL; the attempt is on record.
SELECT saga.define('fore_sleep', saga.step('write', 'foreground_test.write', 'foreground_test.erase'), saga.step('sleep', 'foreground_test.sleep'));
SELECT saga.begin('fore_sleep', '{"what": "sleep"}') AS id \gset
SET statement_timeout = '500 ms';
CALL saga.run(:id);
RESET statement_timeout;
SELECT step, operation, status, attempts FROM saga_test.story(:id);
SELECT step, operation, attempt, outcome, passing, sqlstate FROM saga_test.failures(:id);
SELECT saga.cancel(:id) = :id AS cancelled;
CALL saga.run(:id);

-- Trees: whoever runs the parent runs its children, and theirs, to the end.
CREATE FUNCTION foreground_test.tree(id bigint) RETURNS TABLE (definition text, status saga.saga_status, log text) LANGUAGE sql AS $$
    WITH RECURSIVE t AS (
        SELECT s.saga_id, s.definition, s.status, 0 AS depth, ARRAY[s.saga_id] AS path FROM saga.sagas s WHERE s.saga_id = id
        UNION ALL
        SELECT s.saga_id, s.definition, s.status, t.depth + 1, t.path || s.saga_id FROM t JOIN saga.sagas s ON s.parent_id = t.saga_id)
    SELECT repeat('  ', depth) || t.definition, t.status, saga_test.log(t.saga_id) FROM t ORDER BY path
$$;
CREATE PROCEDURE foreground_test.run_until_ended(id bigint, INOUT status text DEFAULT NULL) LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
BEGIN
    LOOP
        CALL saga.run(id, status);
        EXIT WHEN status NOT IN ('running', 'compensating');
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for saga % to end', id;
        END IF;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$;
CREATE PROCEDURE foreground_test.recover_until_ended(id bigint, INOUT status text DEFAULT NULL, most bigint DEFAULT 1000) LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
    operations bigint;
    finished bigint;
    remaining boolean;
    leases bigint;
    woken bigint;
    unserved text[];
BEGIN
    LOOP
        CALL saga.recover(most, '10 s', operations, finished, remaining, leases, woken, unserved);
        status := (SELECT s.status FROM saga.sagas s WHERE s.saga_id = id);
        EXIT WHEN status NOT IN ('running', 'compensating');
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for saga % to end', id;
        END IF;
        PERFORM pg_sleep(0.005);
    END LOOP;
END
$$;
SELECT saga.define('fore_kid', saga.step('k1', 'saga_test.act', 'saga_test.act'), saga.step('k2', 'saga_test.act', 'saga_test.act'));
SELECT saga.define('fore_middle', saga.step('m', 'saga_test.act', 'saga_test.act'), saga.child_step('kid', definition => 'fore_kid'));
SELECT saga.define('fore_tree',
    saga.step('first', 'saga_test.act', 'saga_test.act'),
    saga.child_step('middle', definition => 'fore_middle'),
    saga.child_step('kids', definition => 'fore_kid', foreach => 'list'),
    saga.step('last', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('fore_tree', '{"list": [{"n": 1}, {"n": 2}]}') AS id \gset
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
-- Back from the last step; from a grandchild; from one of the elements.
SELECT saga.begin('fore_tree', '{"list": [{"n": 1}, {"n": 2}], "fail": {"action last": 0}}') AS id \gset
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
SELECT saga.begin('fore_tree', '{"list": [{"n": 1}], "fail": {"action k2": 0}}') AS id \gset
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
SELECT saga.begin('fore_tree', '{"list": [{"n": 1}, {"fail": {"action k2": 0}}]}') AS id \gset
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
-- saga.recover() goes on with the children that it has begun, and with their parents.
SELECT count(saga.begin('fore_tree', jsonb_build_object('list', '[{"n": 1}, {"n": 2}]'::jsonb, 'fail', CASE n WHEN 2 THEN '{"action last": 0}'::jsonb END))) FROM generate_series(1, 3) n;
SELECT max(saga_id) AS last FROM saga.sagas WHERE definition = 'fore_tree' \gset
CALL saga.recover();
CALL saga.recover();
SELECT definition, status, count(*) FROM saga.sagas WHERE saga_id > :last - 3 AND saga_id < 9000000 GROUP BY 1, 2 ORDER BY 1, 2;
SELECT * FROM foreground_test.tree(:last - 1);
-- ... one at a time, too.
SELECT saga.begin('fore_tree', '{"list": [{"n": 1}]}') AS id \gset
CALL foreground_test.recover_until_ended(:id, most => 1);
CALL saga.recover();
SELECT * FROM foreground_test.tree(:id);
-- A child that is done is held until its parent is run; then its confirmations follow.
SELECT saga.define('fore_confirmed', saga.signal_step('go'), saga.step('k', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act'));
SELECT saga.define('fore_mother', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.child_step('kid', definition => 'fore_confirmed'), saga.step('last', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('fore_mother') AS id \gset
CALL saga.run(:id);
SELECT saga_id AS kid FROM saga.sagas WHERE parent_id = :id \gset
SELECT saga.signal(:kid, 'go');
CALL saga.run(:kid);
SELECT * FROM foreground_test.tree(:id);
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
-- What was asked of the child is found through its parent.
SELECT saga.begin('fore_mother') AS id \gset
CALL saga.run(:id);
SELECT saga.signal(saga_id, 'go') FROM saga.sagas WHERE parent_id = :id;
CALL saga.run(:id);
SELECT saga.begin('fore_mother') AS id \gset
CALL saga.run(:id);
SELECT saga.cancel(saga_id) > 0 AS cancelled FROM saga.sagas WHERE parent_id = :id;
CALL saga.run(:id);
SELECT * FROM foreground_test.tree(:id);
SELECT saga.begin('fore_mother') AS id \gset
CALL saga.run(:id);
SELECT saga.cancel(:id) = :id AS cancelled;
CALL saga.recover();
SELECT * FROM foreground_test.tree(:id);
-- Timers: not before their time.
SELECT saga.define('fore_day', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.timer_step('day', '1 day'), saga.step('last', 'saga_test.act'));
SELECT saga.begin('fore_day') AS id \gset
CALL saga.run(:id);
CALL saga.run(:id);
CALL saga.recover();
SELECT status, waiting_for FROM saga.sagas WHERE saga_id = :id;
SELECT saga.cancel(:id) = :id AS cancelled;
CALL saga.run(:id);
SELECT saga_test.log(:id);
SELECT saga.define('fore_timer', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.timer_step('soon', '5 ms'), saga.timer_step('later', '20 ms', after => '{first}'), saga.step('last', 'saga_test.act', after => '{soon,later}'));
SELECT saga.begin('fore_timer') AS id \gset
CALL foreground_test.run_until_ended(:id);
SELECT saga_test.log(:id);
SELECT saga.begin('fore_timer') AS id \gset
CALL foreground_test.recover_until_ended(:id);
SELECT saga_test.log(:id);
-- One that fires in a child, with the parent beside it.
SELECT saga.define('fore_clock', saga.child_step('timer', definition => 'fore_timer'), saga.timer_step('beside', '10 ms', after => '{}'), saga.step('end', 'saga_test.act', after => '{timer,beside}'));
SELECT saga.begin('fore_clock') AS id \gset
CALL foreground_test.run_until_ended(:id);
SELECT * FROM foreground_test.tree(:id);
SELECT saga.begin('fore_clock') AS id \gset
CALL foreground_test.recover_until_ended(:id);
SELECT * FROM foreground_test.tree(:id);
-- Signals: waited for, kept, late.
SELECT saga.define('fore_signal', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.signal_step('go'), saga.step('last', 'saga_test.act'));
SELECT saga.begin('fore_signal') AS id \gset
CALL saga.run(:id);
SELECT status, waiting_for FROM saga.sagas WHERE saga_id = :id;
SELECT saga.signal(:id, 'go', '"now"');
CALL saga.run(:id);
SELECT step, status, result FROM saga_test.story(:id);
SELECT saga.begin('fore_signal') AS id \gset
SELECT saga.signal(:id, 'go', '"before"');
CALL saga.run(:id);
SELECT step, status, result FROM saga_test.story(:id);
SELECT saga.begin('fore_signal') AS id \gset
CALL saga.recover();
SELECT saga.signal(:id, 'go', '"recovered"');
CALL saga.recover();
SELECT step, status, result FROM saga_test.story(:id);
SELECT saga.define('fore_late', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.signal_step('go', timeout => '5 ms'));
SELECT saga.begin('fore_late') AS id \gset
CALL foreground_test.run_until_ended(:id);
SELECT step, sqlstate, message FROM saga_test.failures(:id);
SELECT saga_test.log(:id);
SELECT saga.define('fore_late', saga.step('first', 'saga_test.act', 'saga_test.act'), saga.signal_step('go', timeout => '5 ms', otherwise => '"nobody"'));
SELECT saga.begin('fore_late') AS id \gset
CALL foreground_test.recover_until_ended(:id);
SELECT step, status, result FROM saga_test.story(:id);

-- Back to workers: what waited goes on.
SELECT saga.begin('fore_write', '{"what": "for a worker"}') AS id \gset
ALTER SYSTEM RESET saga.enabled;
SELECT pg_reload_conf();
SELECT saga_test.outcome(:id);
SELECT saga_test.outcome(:others);
-- The two get along.
SELECT count(saga.begin('fore_write', '{"what": "both"}')) FROM generate_series(1, 1000);
CALL saga.recover(100000, '1 min') \gset both_
SELECT * FROM saga_test.all_ended('fore_write');
SELECT count(*) FROM foreground_test.note WHERE what = 'both';
SELECT * FROM saga_test.all_ended('fore%');
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'fore%';
DROP SCHEMA foreground_test CASCADE;
