--
-- Looking: the views and what each role sees in them, saga.explain() in every
-- state, saga.result(), waiting for a saga, and how many run at once.  And the
-- surface as a whole: every object has a comment, nothing is granted to PUBLIC.
--
SELECT setval('saga.saga_id_seq', 5000000, false) AS ids_begin_at;

-- What there is.  A change here is a change of the interface.
SELECT c.relname AS view, string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), E',\n' ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind = 'v' GROUP BY 1 ORDER BY 1;
SELECT p.proname AS routine, replace(pg_get_function_arguments(p.oid), ', ', E',\n') AS arguments, p.provolatile AS v, p.proparallel AS p, pg_get_function_result(p.oid) AS result
FROM pg_proc p WHERE p.pronamespace = 'saga'::regnamespace ORDER BY p.proname COLLATE "C", pg_get_function_arguments(p.oid) COLLATE "C";
-- Without a comment: tables, views, sequences, their columns where they are for
-- users, types, functions.  (Partitions are as their parents.)
SELECT c.oid::regclass AS no_comment FROM pg_class c
WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'c') AND NOT c.relispartition
  AND obj_description(c.oid, 'pg_class') IS NULL
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'i')
ORDER BY 1;
SELECT c.relname AS view, a.attname AS column_without_comment FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind = 'v' AND col_description(c.oid, a.attnum) IS NULL ORDER BY 1, a.attnum;
SELECT p.oid::regprocedure AS no_comment FROM pg_proc p WHERE p.pronamespace = 'saga'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL ORDER BY 1;
SELECT t.typname AS no_comment FROM pg_type t WHERE t.typnamespace = 'saga'::regnamespace AND t.typtype IN ('e', 'd', 'r') AND obj_description(t.oid, 'pg_type') IS NULL ORDER BY 1;
SELECT i.indexrelid::regclass AS no_comment FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'saga'::regnamespace AND NOT c.relispartition AND obj_description(c.oid, 'pg_class') IS NULL
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid) ORDER BY 1;
SELECT obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'saga';
-- Granted to PUBLIC; not owned by the extension's owner; definers without a search_path.
SELECT c.relname AS granted FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = 'saga'::regnamespace AND a.grantee = 0;
SELECT p.proname AS granted FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE p.pronamespace = 'saga'::regnamespace AND a.grantee = 0;
SELECT nspname AS granted FROM pg_namespace n, aclexplode(n.nspacl) a WHERE nspname = 'saga' AND a.grantee = 0;
SELECT p.proname AS definer FROM pg_proc p WHERE p.pronamespace = 'saga'::regnamespace AND p.prosecdef AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);
SELECT c.relname AS no_barrier FROM pg_class c WHERE c.relnamespace = 'saga'::regnamespace AND c.relkind = 'v' AND NOT coalesce('security_barrier=true' = ANY (c.reloptions), false)
  -- but for those that show what another one lets through
  AND EXISTS (SELECT FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
      WHERE r.ev_class = c.oid AND d.refobjid NOT IN (c.oid, 'saga.sagas_raw'::regclass, 'saga.coordinator'::regclass, 'pg_database'::regclass));

------------------------------------------------------------------------------
-- Who sees what
------------------------------------------------------------------------------

CREATE SCHEMA views_test AUTHORIZATION regress_saga_owner;
GRANT USAGE, CREATE ON SCHEMA views_test TO PUBLIC;
SET ROLE regress_saga_owner;
CREATE FUNCTION views_test.act() RETURNS text LANGUAGE sql RETURN 'acted';
CREATE FUNCTION views_test.fail() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it failed' USING ERRCODE = '40001'; END $$;
CREATE FUNCTION views_test.later() RETURNS text LANGUAGE sql AS $$ SELECT saga.retry_later('1 day', 'not yet')::text $$;
CREATE FUNCTION views_test.later_once(context jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF context ->> 'attempt' = '1' THEN PERFORM saga.retry_later('20 ms'); END IF; END $$;
CREATE FUNCTION views_test.sleep(seconds float8) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(seconds)';
CREATE FUNCTION views_test.undo() RETURNS text LANGUAGE sql RETURN 'undid';
SELECT saga.define('views_act', saga.step('act', 'views_test.act', 'views_test.undo', timeout => '5 s'));
SELECT saga.define('views_stuck', saga.step('act', 'views_test.act', 'views_test.fail', compensation_retry => saga.retry_policy(2, '5 ms')),
    saga.step('fail', 'views_test.fail', retry => saga.retry_policy(1), isolation => 'serializable'));
SELECT saga.configure('views_act', retention => '1 day', max_running => 100);
SELECT saga.begin('views_act', '{"secret": 1}', key => 'mine') AS id \gset
SELECT saga.begin('views_stuck', '{"secret": 2}', key => 'stuck') AS stuck \gset
SELECT saga_test.outcome(:id), saga_test.outcome(:stuck);
SELECT saga.retry(:stuck, 'try it') = :stuck AS retried;
SELECT saga_test.outcome(:stuck);
SELECT name, version, owner, enabled, max_running, deadline, retention, steps, version_created_at >= created_at AS times FROM saga.definitions WHERE name LIKE 'views%' ORDER BY name;
SELECT definition, version, position, step, kind, pivot, action, compensation, timeout, compensation_timeout, isolation, durable FROM saga.definition_steps WHERE definition LIKE 'views%' ORDER BY definition, position;
SELECT definition, step, retry ->> 'max_attempts' AS attempts, compensation_retry ->> 'max_attempts' AS compensation_attempts FROM saga.definition_steps WHERE definition LIKE 'views%' ORDER BY definition, position;

CREATE FUNCTION views_test.seen() RETURNS TABLE (definitions bigint, definition_steps bigint, sagas bigint, steps bigint, attempts bigint, stuck bigint, requests bigint, result jsonb, explained bigint) LANGUAGE sql AS $$
    SELECT (SELECT count(*) FROM saga.definitions WHERE name LIKE 'views%'),
           (SELECT count(*) FROM saga.definition_steps WHERE definition LIKE 'views%'),
           (SELECT count(*) FROM saga.sagas WHERE definition LIKE 'views%'),
           (SELECT count(*) FROM saga.steps WHERE saga_id >= 5000000 AND saga_id < 6000000),
           (SELECT count(*) FROM saga.attempts WHERE saga_id >= 5000000 AND saga_id < 6000000),
           (SELECT count(*) FROM saga.stuck WHERE definition LIKE 'views%'),
           (SELECT count(*) FROM saga.requests WHERE saga_id >= 5000000 AND saga_id < 6000000),
           saga.result(5000000), (SELECT count(*) FROM saga.explain(5000001))
$$;
SELECT * FROM views_test.seen();
RESET ROLE;
SET ROLE regress_saga_other;
SELECT * FROM views_test.seen();
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT * FROM views_test.seen();
RESET ROLE;
SET ROLE regress_saga_operator;
SELECT * FROM views_test.seen();
RESET ROLE;
SELECT * FROM views_test.seen();
SET ROLE regress_saga_stranger;
SELECT count(*) FROM saga.sagas;
RESET ROLE;
-- Members see what the role sees; those who may begin see the definition.
GRANT regress_saga_owner TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT * FROM views_test.seen();
RESET ROLE;
REVOKE regress_saga_owner FROM regress_saga_other;
SET ROLE regress_saga_owner;
SELECT saga.grant_begin('views_act', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT name, owner FROM saga.definitions WHERE name LIKE 'views%';
SELECT saga.begin('views_act', key => 'of another') AS other \gset
SELECT saga_test.outcome(:other);
SELECT saga_id = :other AS mine, owner FROM saga.sagas WHERE definition LIKE 'views%';
RESET ROLE;
SET ROLE regress_saga_owner;
-- The definition's owner does not see the sagas that others begin of it.
SELECT count(*) FROM saga.sagas WHERE saga_id = :other;
-- No table is readable.
SELECT count(*) FROM saga.saga;
SELECT count(*) FROM saga.saga_0;
SELECT count(*) FROM saga.message;
SELECT count(*) FROM saga.branch;
SET ROLE regress_saga_monitor;
SELECT count(*) FROM saga.step;
SET ROLE regress_saga_owner;
-- The barrier holds: a cheap function in WHERE sees no row of others.
CREATE FUNCTION views_test.leak(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'leaked %', t; RETURN true; END $$;
SET ROLE regress_saga_other;
SELECT key FROM saga.sagas WHERE CASE WHEN saga_id BETWEEN 5000000 AND 5999999 THEN views_test.leak(key) END AND definition LIKE 'views%';
SET ROLE regress_saga_owner;

------------------------------------------------------------------------------
-- saga.explain()
------------------------------------------------------------------------------

-- With times and processes hidden.
CREATE FUNCTION views_test.explain(id bigint) RETURNS TABLE (topic text, detail text) LANGUAGE sql SET datestyle = 'ISO' AS $$
    SELECT topic, regexp_replace(regexp_replace(detail, '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-]\d\d', 'TIME', 'g'), 'process \d+', 'process PID') FROM saga.explain(id)
$$;
SELECT * FROM saga.explain(0);
SELECT * FROM saga.explain(NULL);
SELECT * FROM views_test.explain(:id);
SELECT * FROM views_test.explain(:stuck);
SELECT saga.begin('views_act', start_at => now() + interval '1 day', deadline => now() + interval '2 days') AS id \gset
SELECT * FROM views_test.explain(:id);
SELECT saga.abandon(:id, 'of no use') = :id AS abandoned;
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain(:id);
-- Waits for its next attempt: asked for, or after an error.
SELECT saga.define('views_later', saga.step('act', 'views_test.act'), saga.step('later', 'views_test.later'), saga.step('last', 'views_test.act'));
SELECT saga.begin('views_later', key => 'a key') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT * FROM views_test.explain(:id);
SELECT saga.pause(:id, 'coffee first') = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain(:id);
SELECT saga.resume(:id) = :id AS resumed;
SELECT saga_test.waits_for(:id);
SELECT saga.cancel(:id, 'enough') = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain(:id);
SELECT saga.define('views_retry', saga.step('act', 'views_test.act', 'views_test.undo'), saga.step('fail', 'views_test.fail', retry => saga.retry_policy(2, '1 day', '1 day')));
SELECT saga.begin('views_retry') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT * FROM views_test.explain(:id);
SELECT saga.retry(:id) = :id AS retried;
SELECT saga_test.wait_until(format('(SELECT attempts = 2 FROM saga.steps WHERE saga_id = %s AND step = ''fail'')', :id), 'the second attempt', :id);
SELECT attempts, failures, status FROM saga.steps WHERE saga_id = :id AND step = 'fail';
SELECT saga.skip(:id) = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain(:id);
-- Runs just now.
SELECT saga.define('views_sleep', saga.step('sleep', 'views_test.sleep', timeout => '1 min', retry => saga.retry_policy(1)));
SELECT saga.begin('views_sleep', '{"seconds": 60}') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.workers WHERE saga_id = %s)', :id), 'a worker to run it', :id);
SELECT * FROM views_test.explain(:id);
SELECT process, database = current_database() AS here, role, state, reason, saga_id = :id AS this, step, operation, attempt, since < clock_timestamp() AS since FROM saga.workers WHERE saga_id = :id;
RESET ROLE;
SELECT backend_type, usename, datname = current_database() AS here, replace(query, :'id', 'N') AS query FROM pg_stat_activity WHERE pid = (SELECT pid FROM saga.workers WHERE saga_id = :id);
SET ROLE regress_saga_other;
SELECT count(*) FROM saga.workers WHERE saga_id = :id;
SET ROLE regress_saga_monitor;
SELECT count(*) FROM saga.workers WHERE saga_id = :id;
SET ROLE regress_saga_owner;
-- (A cancel does not interrupt what runs; somebody who owns it may.)
SELECT saga.cancel(:id, 'too slow') = :id AS cancelled;
SELECT pg_cancel_backend(pid) FROM saga.workers WHERE saga_id = :id;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM views_test.explain(:id);
-- No worker: why.
RESET ROLE;
CREATE ROLE regress_saga_locked LOGIN;
SELECT saga.grant_usage('regress_saga_locked');
GRANT CONNECT ON DATABASE :"DBNAME" TO regress_saga_owner, regress_saga_other;
REVOKE CONNECT ON DATABASE :"DBNAME" FROM PUBLIC;
SET ROLE regress_saga_locked;
SELECT saga.define('views_locked', saga.step('act', 'views_test.act'));
SELECT saga.begin('views_locked') AS id \gset
SELECT saga_test.wait_until($$ EXISTS (SELECT FROM saga.workers WHERE role = 'regress_saga_locked' AND reason IS NOT NULL) $$, 'the reason');
SELECT * FROM views_test.explain(:id);
SELECT process, pid, database = current_database() AS here, role, state, reason FROM saga.workers WHERE role = 'regress_saga_locked';
-- The sagas of others go on, and a person's word is heard all the same.
SET ROLE regress_saga_owner;
SELECT saga.begin('views_act') AS mine \gset
SELECT saga_test.outcome(:mine);
SET ROLE regress_saga_locked;
SELECT saga.pause(:id, 'while it cannot') = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT saga.resume(:id) = :id AS resumed;
RESET ROLE;
GRANT CONNECT ON DATABASE :"DBNAME" TO PUBLIC;
REVOKE CONNECT ON DATABASE :"DBNAME" FROM regress_saga_owner, regress_saga_other;
SELECT saga_test.outcome(:id);

------------------------------------------------------------------------------
-- saga.result(), saga.wait(), saga.wait_within()
------------------------------------------------------------------------------

SET ROLE regress_saga_owner;
SELECT saga.define('views_soon', saga.step('act', 'views_test.act'), saga.step('later', 'views_test.later_once'), saga.step('last', 'views_test.act'));
SELECT saga.result(:mine), saga.result(:stuck), saga.result(0), saga.result(NULL), saga.result(:other);
SELECT saga.begin('views_soon') AS id \gset
CALL saga.wait(:id);
SELECT saga.result(:id);
SELECT saga.begin('views_soon') AS id \gset
SELECT saga.wait_within(:id);
SELECT saga.begin('views_later') AS later \gset
CALL saga.wait(:later, '0');
CALL saga.wait(:later, timeout => '100 ms');
SELECT saga.wait_within(:later, '100 ms');
CALL saga.wait(:stuck, '10 ms');
-- One that gets its end meanwhile.
SELECT saga.begin('views_act', start_at => clock_timestamp() + interval '300 ms') AS id \gset
CALL saga.wait(:id, '30 s');
-- In PL/pgSQL, where it may commit.
DO $$
DECLARE
    id bigint := saga.begin('views_act');
    s text;
BEGIN
    COMMIT;
    CALL saga.wait(id, '30 s', s);
    RAISE NOTICE 'it has %', s;
END
$$;
-- Where that is not possible.
BEGIN;
CALL saga.wait(:later, '1 s');
ROLLBACK;
CREATE FUNCTION views_test.wait(id bigint) RETURNS text LANGUAGE plpgsql AS $$ DECLARE s text; BEGIN CALL saga.wait(id, '1 s', s); RETURN s; END $$;
SELECT views_test.wait(:later);
DO $$
DECLARE s text;
BEGIN
    CALL saga.wait(5000000, '1 s', s);
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE '%: %', SQLSTATE, SQLERRM;
END
$$;
BEGIN;
SELECT saga.begin('views_act') AS id \gset
SELECT saga.wait_within(:id);
ROLLBACK;
BEGIN;
SELECT saga.wait_within(:later, '10 ms');
SELECT saga.pause(:later) = :later AS paused;
SELECT saga.wait_within(:later, '10 ms');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT saga.wait_within(:later);
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT saga.wait_within(:later);
ROLLBACK;
SELECT saga.wait_within(:later, '61 s');
SELECT saga.wait_within(:later, '-1 s');
SELECT saga.wait_within(:later, NULL);
SELECT saga.wait_within(NULL);
SELECT saga.wait_within(0);
CALL saga.wait(0);
CALL saga.wait(NULL);
CALL saga.wait(:later, NULL);
CALL saga.wait(:later, '-1 s');
CALL saga.wait(:later, '2 years');
BEGIN READ ONLY;
SELECT saga.wait_within(:mine);
COMMIT;
-- statement_timeout and a cancel end it.
SET statement_timeout = '100 ms';
CALL saga.wait(:later, '1 min');
SELECT saga.wait_within(:later, '1 min');
RESET statement_timeout;
SET ROLE regress_saga_other;
CALL saga.wait(:later);
SELECT saga.wait_within(:mine);
SET ROLE regress_saga_monitor;
CALL saga.wait(:mine);
SELECT saga.wait_within(:mine);
SET ROLE regress_saga_owner;
SELECT saga.abandon(:later) = :later AS abandoned, saga.abandon(:stuck) = :stuck AS abandoned;
SELECT * FROM saga_test.all_ended('views%');

------------------------------------------------------------------------------
-- max_running
------------------------------------------------------------------------------

SELECT saga.define('views_places', saga.step('act', 'views_test.act', 'views_test.undo'), saga.step('later', 'views_test.later_once'), saga.step('last', 'views_test.act'));
SELECT saga.configure('views_places', max_running => 3);
SELECT count(saga.begin('views_places')) FROM generate_series(1, 30);
SELECT * FROM saga_test.all_ended('views_places');
-- Never more than three at once.
SELECT max(n) <= 3 AS at_most FROM (SELECT count(*) AS n FROM saga.sagas a JOIN saga.sagas b ON b.started_at <= a.started_at AND b.finished_at > a.started_at
    WHERE a.definition = 'views_places' AND b.definition = 'views_places' GROUP BY a.saga_id) x;
-- One at a time, in the order in which they came.
SELECT saga.define('views_one', saga.step('act', 'views_test.act', 'views_test.undo'), saga.step('later', 'views_test.later'), saga.step('last', 'views_test.act'));
SELECT saga.configure('views_one', max_running => 1);
SELECT saga.begin('views_one', key => '1') AS one \gset
SELECT saga_test.waits_for(:one);
SELECT saga.begin('views_one', key => '2') AS two \gset
SELECT saga_test.waits_for(:two);
SELECT saga.begin('views_one', key => '3') AS three \gset
SELECT saga_test.waits_for(:three);
SELECT saga.begin('views_one', key => '4', deadline => clock_timestamp() + interval '500 ms') AS four \gset
SELECT saga_test.outcome(:four);
SELECT saga.begin('views_one', key => '5') AS five \gset
SELECT saga_test.waits_for(:five);
SELECT key, status, waiting_for, step, started_at IS NOT NULL AS started, error ->> 'sqlstate' AS sqlstate FROM saga.sagas WHERE definition = 'views_one' ORDER BY key;
SELECT * FROM views_test.explain(:two);
-- A place that is given back goes to the next; those who leave the line are passed.
SELECT saga.cancel(:two, 'no patience') = :two AS cancelled;
SELECT saga_test.outcome(:two);
SELECT saga.skip(:one) = :one AS skipped;
SELECT saga_test.outcome(:one);
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', :three), 'its place', :three);
SELECT key, status, waiting_for FROM saga.sagas WHERE definition = 'views_one' ORDER BY key;
-- Whoever is paused keeps its place.
SELECT saga.pause(:three) = :three AS paused;
SELECT saga_test.outcome(:three);
SELECT waiting_for FROM saga.sagas WHERE saga_id = :five;
-- More places, at once.
SELECT saga.configure('views_one', max_running => 2);
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', :five), 'its place', :five);
SELECT saga.begin('views_one', key => '6') AS six \gset
SELECT saga_test.waits_for(:six);
SELECT saga.begin('views_one', key => '7') AS seven \gset
SELECT saga_test.waits_for(:seven);
SELECT saga.configure('views_one', max_running => 0);
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', :six), 'its place', :six);
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', :seven), 'its place', :seven);
SELECT max_running FROM saga.definitions WHERE name = 'views_one';
SELECT count(saga.abandon(saga_id)) FROM saga.sagas WHERE definition LIKE 'views_one' AND finished_at IS NULL;
SELECT * FROM saga_test.all_ended('views_one');

------------------------------------------------------------------------------
-- Every shape of control flow, as the views and saga.explain() show it
------------------------------------------------------------------------------

-- Branches may run in several workers, so ids are hidden too.
CREATE FUNCTION views_test.explain_shape(id bigint) RETURNS TABLE (topic text, detail text) LANGUAGE sql AS $$
    SELECT topic, regexp_replace(regexp_replace(detail, 'saga \d+', 'saga N', 'g'), '^\d+ of views', 'N of views') FROM views_test.explain(id)
$$;
CREATE FUNCTION views_test.no() RETURNS boolean LANGUAGE sql RETURN false;
CREATE FUNCTION views_test.each(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF context #>> '{element,do}' = 'later' THEN
        PERFORM saga.retry_later('1 day', 'not yet');
    ELSIF context #>> '{element,do}' = 'fail' THEN
        RAISE EXCEPTION 'element % failed', context -> 'index';
    END IF;
    RETURN context -> 'index';
END
$$;
SELECT saga.define('views_graph',
    saga.step('first', 'views_test.act', 'views_test.undo', after => '{}'),
    saga.step('pack', 'views_test.each', 'views_test.each', after => '{first}', foreach => 'items', parallel => 20, quorum => 3),
    saga.step('abroad', 'views_test.act', after => '{first}', only_if => 'views_test.no'),
    saga.signal_step('approved', '3 days', otherwise => '{"by": "nobody"}', after => '{first}'),
    saga.timer_step('cool_off', '14 days', after => '{first}'),
    saga.step('try', 'views_test.act', 'views_test.undo', confirmation => 'views_test.act', after => '{first}', exclusive => 'sku', exclusive_until => 'last', exclusive_timeout => '5 min'),
    saga.step('last', 'views_test.act', after => '{pack,abroad,approved,cool_off,try}'));
SELECT position, step, kind, after, only_if, foreach, parallel, quorum, wait, otherwise FROM saga.definition_steps WHERE definition = 'views_graph' ORDER BY position;
SELECT step, confirmation, confirmation_timeout, confirmation_retry ->> 'max_attempts' AS attempts, exclusive, exclusive_until, exclusive_timeout FROM saga.definition_steps WHERE definition = 'views_graph' AND exclusive IS NOT NULL;
SELECT saga.begin('views_graph', '{"sku": "A", "items": [{}, {"do": "later"}, {"do": "fail"}, {"do": "later"}, {"do": "later"}, {"do": "later"}, {"do": "later"}, {"do": "later"}, {"do": "later"}, {"do": "later"}, {"do": "later"}]}') AS id \gset
SELECT saga_test.wait_until(format('(SELECT count(*) = 16 FROM saga.steps WHERE saga_id = %s AND status <> ''pending'' AND (status <> ''running'' OR step IN (''approved'', ''cool_off'')))', :id), 'all branches', :id);
SELECT * FROM views_test.explain_shape(:id);
SELECT position, step, operation, element, round, status, next_attempt_at IS NOT NULL AS again, waits_until IS NOT NULL AS until, cancelled, surplus, unknown FROM saga.steps WHERE saga_id = :id AND (element IS NULL OR element < 4) ORDER BY position, element;
SELECT step, operation, element, round, message FROM saga.attempts WHERE saga_id = :id;
SELECT lock, status, step, until_step FROM saga.locks WHERE saga_id = :id;
-- One that waits for the lock, and then for the signal.
SELECT saga.begin('views_graph', '{"sku": "A", "items": [{}, {}, {}]}', deadline => clock_timestamp() + interval '1 day') AS second \gset
SELECT saga_test.wait_until(format('(SELECT count(*) = 7 FROM saga.steps WHERE saga_id = %1$s AND status <> ''pending'' AND (status <> ''running'' OR step IN (''approved'', ''cool_off''))) AND EXISTS (SELECT FROM saga.locks WHERE saga_id = %1$s)', :second), 'all branches', :second);
SELECT * FROM views_test.explain_shape(:second) WHERE topic NOT LIKE 'action%' OR topic = 'action of try' OR topic = 'action of pack';
SELECT saga.signal(:second, 'approved', '{"by": "Ada"}') AS signalled;
SELECT saga_test.wait_until(format('(SELECT status = ''succeeded'' FROM saga.steps WHERE saga_id = %s AND step = ''approved'')', :second), 'the signal to arrive', :second);
SELECT verb, step, element, outcome FROM saga.requests WHERE saga_id = :second;
SELECT saga.cancel(:second) = :second AS cancelled;
SELECT saga_test.outcome(:second);
SELECT * FROM views_test.explain_shape(:second);
-- People decide about elements: the quorum is reached.
SELECT saga.skip(:id, 'by hand', 'pack', 2);
SELECT saga.skip(:id, 'by hand', 'pack', element) = :id AS skipped FROM unnest(ARRAY[1, 3]) element;
SELECT saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', :id), 'the requests to be applied', :id);
SELECT verb, step, element, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
SELECT * FROM views_test.explain_shape(:id) WHERE topic = 'action of pack' OR topic = 'lock';
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain_shape(:id) WHERE topic LIKE 'compensation%';

-- Several operations are stuck; the result of a foreach step.
SELECT saga.define('views_each', saga.step('first', 'views_test.act', pivot => true), saga.step('each', 'views_test.each', foreach => 'items', parallel => 1, retry => saga.retry_policy(1)));
SELECT saga.begin('views_each', '{"items": [{}, {"do": "fail"}, {}, {"do": "fail"}, {}]}') AS id \gset
SELECT saga_test.wait_until(format('(SELECT element = 1 FROM saga.stuck WHERE saga_id = %s)', :id), 'one to get stuck', :id);
SELECT step, operation, element, operations, attempts, last_error ->> 'message' AS error, cause IS NOT NULL AS cause FROM saga.stuck WHERE saga_id = :id;
SELECT * FROM views_test.explain_shape(:id) WHERE topic <> 'cause';
SELECT saga.skip(saga_id, 'by hand', step, element) = :id AS skipped FROM saga.stuck WHERE saga_id = :id;
SELECT saga_test.wait_until(format('(SELECT element = 3 FROM saga.stuck WHERE saga_id = %s)', :id), 'the next one to get stuck', :id);
SELECT step, element, operations FROM saga.stuck WHERE saga_id = :id;
SELECT saga.skip(saga_id, 'by hand') = :id AS skipped FROM saga.stuck WHERE saga_id = :id;
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT saga.begin('views_each', '{"items": []}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM views_test.explain_shape(:id);
SELECT saga.result(:id);

-- A savepoint: rounds, another way.
SELECT saga.define('views_savepoint',
    saga.step('keep', 'views_test.act', 'views_test.undo', savepoint => true, and_then => 'other', recoveries => 2),
    saga.step('try', 'views_test.act', 'views_test.undo', after => '{keep}'),
    saga.step('fail', 'views_test.fail', after => '{try}', retry => saga.retry_policy(1)),
    saga.step('other', 'views_test.later', after => '{keep}'),
    saga.step('last', 'views_test.act', after => '{fail,other}'));
SELECT step, savepoint, and_then, recoveries FROM saga.definition_steps WHERE definition = 'views_savepoint' ORDER BY position;
SELECT saga.begin('views_savepoint') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT * FROM views_test.explain_shape(:id);
SELECT position, step, operation, round, status FROM saga.steps WHERE saga_id = :id ORDER BY position, round, operation;
SELECT step, round, outcome FROM saga.attempts WHERE saga_id = :id;
SELECT saga.skip(:id) = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

-- Parents and children.
SELECT saga.define('views_leaf', saga.step('leaf', 'views_test.act', 'views_test.undo'));
SELECT saga.define('views_branch', saga.child_step('leaf', 'views_leaf'), saga.step('own', 'views_test.act', 'views_test.undo'));
SELECT saga.define('views_root', saga.child_step('branch', 'views_branch'), saga.child_step('leaves', 'views_leaf', foreach => 'items'), saga.signal_step('go'));
SELECT step, kind, child FROM saga.definition_steps WHERE definition = 'views_root' ORDER BY position;
SELECT saga.begin('views_root', '{"items": [{"a": 1}, {"a": 2}]}') AS id \gset
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''signal'' FROM saga.sagas WHERE saga_id = %s)', :id), 'it to wait for its signal', :id);
SELECT * FROM views_test.explain_shape(:id);
SELECT definition, status, waiting_for, parent_id = :id AS child, root_id = :id AS in_tree, result FROM saga.sagas WHERE root_id = :id ORDER BY saga_id;
SELECT saga_id AS branch FROM saga.sagas WHERE parent_id = :id AND definition = 'views_branch' \gset
SELECT * FROM views_test.explain_shape(:branch);
SELECT saga_id AS leaf FROM saga.sagas WHERE parent_id = :branch \gset
SELECT * FROM views_test.explain_shape(:leaf);
SELECT step, element, child_id IS NOT NULL AS child FROM saga.steps WHERE saga_id = :id ORDER BY position, element;
SELECT saga.signal(:id, 'go') AS signalled;
SELECT saga_test.outcome(:id);
SELECT definition, status FROM saga.sagas WHERE root_id = :id ORDER BY saga_id;
SELECT * FROM views_test.explain_shape(:id);
-- Others see nothing of it, by whatever way.
SET ROLE regress_saga_other;
SELECT count(*) FROM saga.explain(:id);
SELECT count(*) FROM saga.explain_raw(:id);
SELECT count(*) FROM saga.explain_tree(:id, :id);
SELECT saga.explain_pause(:id);
SELECT count(*) FROM saga.locks;
SET ROLE regress_saga_monitor;
SELECT count(*) FROM saga.explain_raw(:id);
SELECT count(*) FROM saga.explain_tree(:id, :branch);
SET ROLE regress_saga_owner;

RESET ROLE;
SELECT count(*) FROM saga.lock;
SELECT * FROM saga_test.all_ended('views%');
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'views%';
DROP SCHEMA views_test CASCADE;
DROP OWNED BY regress_saga_locked;
DROP ROLE regress_saga_locked;
