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
DECLARE operations bigint; finished bigint;
BEGIN
    CALL saga.recover(10, '10 s', operations, finished);
    RAISE NOTICE '% operations, % finished', operations, finished;
END
$$;
-- Alerts are sent.
LISTEN saga_alert;
SELECT saga.begin('fore_stuck', '{"what": "six"}') AS id \gset
\o |sed -n 's/"id": [0-9]*, //; s/ received from server process with PID [0-9]*//p'
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
CREATE PROCEDURE foreground_test.recover_as_definer(INOUT o bigint, INOUT f bigint) LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN CALL saga.recover(1, '1 s', o, f); END $$;
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
CREATE FUNCTION foreground_test.nested() RETURNS text LANGUAGE plpgsql AS $$ DECLARE o bigint; f bigint; BEGIN CALL saga.recover(1, '1 s', o, f); RETURN o; END $$;
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

-- Back to workers: what waited goes on.
SELECT saga.begin('fore_write', '{"what": "for a worker"}') AS id \gset
ALTER SYSTEM RESET saga.enabled;
SELECT pg_reload_conf();
SELECT saga_test.outcome(:id);
SELECT saga_test.outcome(:others);
-- The two get along.
SELECT count(saga.begin('fore_write', '{"what": "both"}')) FROM generate_series(1, 1000);
CALL saga.recover(100000, '1 min', NULL, NULL) \gset both_
SELECT * FROM saga_test.all_ended('fore_write');
SELECT count(*) FROM foreground_test.note WHERE what = 'both';
SELECT * FROM saga_test.all_ended('fore%');
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'fore%';
DROP SCHEMA foreground_test CASCADE;
