--
-- What people ask of sagas: each verb in each state that a saga can be in, with
-- what comes of it, or the error that refuses it; asked by the owner, an
-- operator or somebody who must not; in bulk, rolled back, out of order.
--
SELECT setval('saga.saga_id_seq', 4000000, false) AS ids_begin_at;
CREATE SCHEMA verbs_test AUTHORIZATION regress_saga_owner;
GRANT USAGE ON SCHEMA verbs_test TO PUBLIC;
SET ROLE regress_saga_owner;
CREATE FUNCTION verbs_test.act() RETURNS text LANGUAGE sql RETURN 'acted';
CREATE FUNCTION verbs_test.undo() RETURNS text LANGUAGE sql RETURN 'undid';
CREATE FUNCTION verbs_test.wait(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    -- after a retry, once: it is another attempt, at once
    IF context ->> 'attempt' = '1' OR context #>> '{input,patience}' IS NOT NULL THEN
        PERFORM saga.retry_later('1 day', 'not yet');
    END IF;
    RETURN 'waited';
END
$$;
CREATE FUNCTION verbs_test.fail() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'it failed'; END $$;
-- One definition for each state; each has what it takes to get there.
SELECT saga.define('verbs_waits', saga.step('first', 'verbs_test.act', 'verbs_test.undo'), saga.step('wait', 'verbs_test.wait', 'verbs_test.undo'), saga.step('last', 'verbs_test.act', 'verbs_test.undo'));
SELECT saga.define('verbs_pivot', saga.step('first', 'verbs_test.act', pivot => true), saga.step('wait', 'verbs_test.wait'));
SELECT saga.define('verbs_back', saga.step('first', 'verbs_test.act', 'verbs_test.wait'), saga.step('fail', 'verbs_test.fail'));
SELECT saga.define('verbs_stuck', saga.step('first', 'verbs_test.act', 'verbs_test.undo'), saga.step('second', 'verbs_test.act', 'verbs_test.fail', compensation_retry => saga.retry_policy(1)), saga.step('fail', 'verbs_test.fail'));
SELECT saga.define('verbs_stuck_forward', saga.step('first', 'verbs_test.act', pivot => true), saga.step('fail', 'verbs_test.fail', retry => saga.retry_policy(1)), saga.step('last', 'verbs_test.act'));
SELECT saga.define('verbs_ends', saga.step('first', 'verbs_test.act'));
SELECT saga.define('verbs_fails', saga.step('fail', 'verbs_test.fail'));
SELECT saga.define('verbs_parent', saga.child_step('child', 'verbs_ends'), saga.step('wait', 'verbs_test.wait'));
SELECT saga.define('verbs_confirms', saga.step('try', 'verbs_test.act', 'verbs_test.undo', confirmation => 'verbs_test.wait'));

-- Bring a saga of each state into being.
CREATE FUNCTION verbs_test.start(state text) RETURNS bigint LANGUAGE sql AS $$
    SELECT CASE state
        WHEN 'scheduled' THEN saga.begin('verbs_ends', start_at => now() + interval '1 day')
        WHEN 'waiting' THEN saga.begin('verbs_waits')
        WHEN 'waiting, past its pivot' THEN saga.begin('verbs_pivot')
        WHEN 'waiting, going back' THEN saga.begin('verbs_back')
        WHEN 'stuck' THEN saga.begin('verbs_stuck')
        WHEN 'stuck, past its pivot' THEN saga.begin('verbs_stuck_forward')
        WHEN 'paused' THEN saga.begin('verbs_waits')
        WHEN 'paused, going back' THEN saga.begin('verbs_back')
        WHEN 'held' THEN saga.begin('verbs_parent')
        WHEN 'waiting, being confirmed' THEN saga.begin('verbs_confirms')
        WHEN 'completed' THEN saga.begin('verbs_ends')
        WHEN 'compensated' THEN saga.begin('verbs_fails')
        WHEN 'abandoned' THEN saga.begin('verbs_waits')
    END
$$;
CREATE PROCEDURE verbs_test.bring(state text, INOUT id bigint DEFAULT NULL) LANGUAGE plpgsql AS $$
BEGIN
    id := verbs_test.start(state);
    COMMIT;
    IF state LIKE 'waiting%' OR state LIKE 'paused%' OR state IN ('scheduled', 'abandoned') THEN
        PERFORM saga_test.waits_for(id);
    ELSIF state = 'held' THEN
        PERFORM saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', id), 'the parent to wait', id);
        id := (SELECT saga_id FROM saga.sagas WHERE parent_id = id);
    ELSE
        PERFORM saga_test.outcome(id);
    END IF;
    COMMIT;
    IF state LIKE 'paused%' THEN
        PERFORM saga.pause(id);
    ELSIF state = 'abandoned' THEN
        PERFORM saga.abandon(id);
    END IF;
    COMMIT;
    IF state LIKE 'paused%' OR state = 'abandoned' THEN
        PERFORM saga_test.outcome(id);
    END IF;
END
$$;

-- Ask each verb of a saga in each state; what comes of it, or how it is refused.
CREATE TABLE verbs_test.answer (n integer GENERATED ALWAYS AS IDENTITY, state text, verb text, answer text, detail text, hint text, sqlstate text);
CREATE PROCEDURE verbs_test.ask_all(state text) LANGUAGE plpgsql AS $$
DECLARE
    v text;
    id bigint;
    m text; d text; h text; s text;
BEGIN
    FOREACH v IN ARRAY '{cancel,pause,resume,retry,skip,abandon}'::text[] LOOP
        IF id IS NULL THEN
            CALL verbs_test.bring(state, id);
        END IF;
        BEGIN
            m := NULL; d := NULL; h := NULL; s := NULL;
            EXECUTE format('SELECT saga.%I($1, $2)', v) USING id, 'because of ' || v;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT, s = RETURNED_SQLSTATE;
            m := replace(m, id::text, 'N');
            d := regexp_replace(d, 'saga \d+', 'saga P');
            h := regexp_replace(h, 'cancel\(\d+', 'cancel(P');
        END;
        COMMIT;
        IF m IS NULL THEN
            PERFORM saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', id), 'the verb to be applied', id);
            PERFORM saga_test.wait_until(format('(SELECT waiting_for IS NOT NULL OR finished_at IS NOT NULL FROM saga.sagas WHERE saga_id = %s)', id), 'the saga to settle', id);
            COMMIT;
            SELECT concat_ws(', ', status, 'waits for ' || waiting_for, CASE WHEN compensates THEN 'going back' END) INTO m FROM saga.sagas WHERE saga_id = id;
            id := NULL;
        END IF;
        INSERT INTO verbs_test.answer (state, verb, answer, detail, hint, sqlstate) VALUES (ask_all.state, v, m, d, h, s);
        COMMIT;
    END LOOP;
END
$$;
CALL verbs_test.ask_all('scheduled');
CALL verbs_test.ask_all('waiting');
CALL verbs_test.ask_all('waiting, past its pivot');
CALL verbs_test.ask_all('waiting, going back');
CALL verbs_test.ask_all('stuck');
CALL verbs_test.ask_all('stuck, past its pivot');
CALL verbs_test.ask_all('paused');
CALL verbs_test.ask_all('paused, going back');
CALL verbs_test.ask_all('waiting, being confirmed');
CALL verbs_test.ask_all('held');
CALL verbs_test.ask_all('completed');
CALL verbs_test.ask_all('compensated');
CALL verbs_test.ask_all('abandoned');
SELECT state, verb, answer FROM verbs_test.answer WHERE sqlstate IS NULL ORDER BY n;
SELECT state, verb, sqlstate, detail, hint FROM verbs_test.answer WHERE sqlstate IS NOT NULL ORDER BY n;
SELECT verb, answer, count(*) FROM verbs_test.answer WHERE sqlstate IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2;
-- What became of them stands in the history.
SELECT verb, reason, outcome, count(*) FROM saga.requests JOIN saga.sagas USING (saga_id) WHERE definition LIKE 'verbs%' GROUP BY 1, 2, 3 ORDER BY 1, 2;
SELECT count(saga.abandon(saga_id)) > 0 AS cleaned FROM saga.sagas WHERE definition LIKE 'verbs%' AND finished_at IS NULL;
SELECT count(*) > 0 AS ended FROM saga_test.all_ended('verbs%');

-- Arguments that make no sense.
SELECT saga.cancel(NULL), saga.pause(NULL), saga.resume(NULL), saga.retry(NULL), saga.skip(NULL), saga.abandon(NULL, 'why');
SELECT saga.cancel(0);
\echo :LAST_ERROR_SQLSTATE
SELECT saga.abandon(-1, 'why');
SELECT saga.retry(9223372036854775807, 'why', 'a');
CALL verbs_test.bring('stuck', NULL) \gset
SELECT saga.retry(:id, 'why', step => 'no such step');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.skip(:id, step => 'no such step');
-- A step that is there, but not the one.
SELECT saga.retry(:id, step => 'first');
SELECT saga.skip(:id, step => 'fail');
SELECT saga.skip(:id, step => 'second', reason => 'the right one') = :id AS skipped;
-- What has been asked counts, also before it is acted upon.
SELECT saga_test.outcome(:id);
CALL verbs_test.bring('waiting', NULL) \gset
BEGIN;
SELECT saga.pause(:id, 'wait a minute') = :id AS paused;
SELECT saga.pause(:id, 'again');
ROLLBACK;
BEGIN;
SELECT saga.pause(:id, 'wait a minute') = :id AS paused;
SELECT saga.resume(:id, 'no') = :id AS resumed;
SELECT saga.cancel(:id, 'enough') = :id AS cancelled;
SELECT verb, reason, requested_by, applied_at, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
COMMIT;
SELECT saga_test.outcome(:id);
SELECT verb, reason, requested_by, applied_at >= requested_at AS applied, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
-- Rolled back: never asked.
CALL verbs_test.bring('waiting', NULL) \gset
BEGIN;
SELECT saga.cancel(:id, 'no, not really') = :id AS cancelled;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT saga.abandon(:id) = :id AS abandoned;
ROLLBACK TO s;
COMMIT;
SELECT count(*) FROM saga.requests WHERE saga_id = :id;
SELECT status, waiting_for FROM saga.sagas WHERE saga_id = :id;
-- Asked in time, but committed too late: the saga has ended, and says so.
SELECT saga.begin('verbs_ends', start_at => clock_timestamp() + interval '200 ms') AS gone \gset
BEGIN;
SELECT saga.cancel(:gone, 'too late') = :gone AS cancelled;
SELECT saga_test.wait_until(format('(SELECT finished_at IS NOT NULL FROM saga.sagas WHERE saga_id = %s)', :gone), 'its end', :gone);
COMMIT;
SELECT saga_test.outcome(:gone);
SELECT verb, reason, outcome, applied_at IS NOT NULL AS answered FROM saga.requests WHERE saga_id = :gone;
-- Reasons: none, long, with quotes.
SELECT saga.pause(:id) = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT saga.resume(:id, 'it''s "fine"' || repeat('!', 5000)) = :id AS resumed;
SELECT saga_test.waits_for(:id);
SELECT verb, left(reason, 12) AS reason, length(reason), outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
-- A paused saga keeps its deadline from passing.
SELECT saga.begin('verbs_waits', deadline => clock_timestamp() + interval '1 s') AS late \gset
SELECT saga_test.waits_for(:late);
SELECT saga.pause(:late) = :late AS paused;
SELECT saga_test.outcome(:late);
SELECT saga_test.wait_until(format('(SELECT deadline < clock_timestamp() - interval ''200 ms'' FROM saga.sagas WHERE saga_id = %s)', :late), 'the deadline');
SELECT status, waiting_for FROM saga.sagas WHERE saga_id = :late;
SELECT saga.resume(:late) = :late AS resumed;
SELECT saga_test.outcome(:late);
SELECT error ->> 'sqlstate' AS sqlstate FROM saga.sagas WHERE saga_id = :late;
-- A scheduled one that is paused and resumed keeps its time.
CALL verbs_test.bring('scheduled', NULL) \gset s_
SELECT saga.pause(:s_id) = :s_id AS paused;
SELECT saga_test.outcome(:s_id);
SELECT saga.resume(:s_id) = :s_id AS resumed;
SELECT saga_test.waits_for(:s_id);
SELECT status, start_at > now() AS later FROM saga.sagas WHERE saga_id = :s_id;
SELECT saga.cancel(:s_id) = :s_id AS cancelled;
SELECT saga_test.outcome(:s_id);
-- Retry makes a waiting step due at once, and counts its attempts anew.
SELECT attempts, failures FROM saga.steps WHERE saga_id = :id AND step = 'wait';
SELECT saga.retry(:id, 'I cannot wait', 'wait') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts, result FROM saga_test.story(:id);

-- Who may: the owner, members of it, operators.  Nobody else, whatever is granted.
CALL verbs_test.bring('stuck', NULL) \gset
RESET ROLE;
SET ROLE regress_saga_stranger;
SELECT saga.retry(:id);
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT saga.retry(:id);
RESET ROLE;
SET ROLE regress_saga_other;
SELECT saga.retry(:id);
\echo :LAST_ERROR_SQLSTATE
SELECT saga.cancel(:id);
SELECT saga.pause(:id);
SELECT saga.resume(:id);
SELECT saga.skip(:id);
SELECT saga.abandon(:id);
SELECT count(*) FROM saga.requests WHERE saga_id = :id;
RESET ROLE;
SELECT count(*) FROM saga.requests WHERE saga_id = :id;
SET ROLE regress_saga_operator;
SELECT saga.begin('verbs_ends');
SELECT saga.retry(:id, 'by an operator') = :id AS retried;
SELECT saga_test.outcome(:id);
RESET ROLE;
GRANT regress_saga_owner TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT saga.retry(:id, 'by a member') = :id AS retried;
SELECT saga_test.outcome(:id);
RESET ROLE;
REVOKE regress_saga_owner FROM regress_saga_other;
SELECT saga.skip(:id, 'by a superuser') = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT verb, reason, regexp_replace(requested_by, '^' || session_user || '$', 'SUPERUSER') AS requested_by, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
-- Those who ask in a SECURITY DEFINER function ask as its owner.
SET ROLE regress_saga_owner;
CREATE FUNCTION verbs_test.abandon_any(id bigint) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ SELECT saga.abandon(id, 'for somebody') $$;
CALL verbs_test.bring('waiting', NULL) \gset
SET ROLE regress_saga_other;
SELECT verbs_test.abandon_any(:id) = :id AS abandoned;
SET ROLE regress_saga_owner;
SELECT saga_test.outcome(:id);
SELECT requested_by FROM saga.requests WHERE saga_id = :id;

-- In bulk, from a view.
SELECT count(saga.begin('verbs_stuck', key => 'bulk ' || n)) FROM generate_series(1, 20) n;
SELECT saga_test.wait_until($$ (SELECT count(*) FROM saga.stuck WHERE key LIKE 'bulk %') = 20 $$, 'twenty to get stuck');
SELECT count(saga.skip(saga_id, reason => 'done by hand')) FROM saga.stuck WHERE definition = 'verbs_stuck' AND key LIKE 'bulk %' AND substr(key, 6)::integer <= 15;
SELECT saga_test.wait_until($$ (SELECT count(*) FROM saga.stuck WHERE key LIKE 'bulk %') = 5 $$, 'fifteen to go on');
SELECT count(saga.abandon(saga_id, 'away with them')) FROM saga.stuck WHERE key LIKE 'bulk %';
SELECT * FROM saga_test.all_ended('verbs_stuck');
SELECT status, verb, reason, outcome, count(*) FROM saga.sagas JOIN saga.requests USING (saga_id) WHERE key LIKE 'bulk %' GROUP BY 1, 2, 3, 4 ORDER BY 1;
-- One that cannot stops them all: it is one transaction.
CALL verbs_test.bring('waiting', NULL) \gset
CALL verbs_test.bring('completed', NULL) \gset done_
SELECT saga.cancel(x) FROM unnest(ARRAY[:id, :done_id]) x;
SELECT count(*) FROM saga.requests WHERE saga_id = :id;

-- Where nothing may be written.
BEGIN READ ONLY;
SELECT saga.cancel(:id);
ROLLBACK;
CREATE FUNCTION verbs_test.sneak(id bigint) RETURNS bigint LANGUAGE sql AS 'SELECT saga.cancel(id)';
CREATE MATERIALIZED VIEW verbs_test.sneaky AS SELECT verbs_test.sneak(saga_id) FROM saga.sagas WHERE status = 'running';
-- In a prepared plan, and in PL/pgSQL that handles the error.
DO $$
DECLARE d text;
BEGIN
    PERFORM saga.resume(saga_id) FROM saga.sagas WHERE definition = 'verbs_waits' AND status = 'running';
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL;
    RAISE NOTICE '%', d;
END
$$;
SELECT saga.cancel(:id) = :id AS cancelled;


-- Elements of a step.
CREATE FUNCTION verbs_test.each(context jsonb) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    IF context ->> 'element' = 'later' THEN
        PERFORM saga.retry_later('1 day');
    END IF;
    RETURN context -> 'index';
END
$$;
SELECT saga.define('verbs_each', saga.step('each', 'verbs_test.each', foreach => 'items'), saga.step('after', 'verbs_test.each', foreach => 'each'));
SELECT saga.begin('verbs_each', '{"items": ["later", 1, "later"]}') AS id \gset
SELECT saga_test.waits_for(:id);
\set VERBOSITY default
SELECT saga.retry(:id, element => 1);
\echo :LAST_ERROR_SQLSTATE
SELECT saga.skip(:id, step => 'each', element => -1);
\echo :LAST_ERROR_SQLSTATE
DO $$
DECLARE
    id bigint := (SELECT saga_id FROM saga.sagas WHERE definition = 'verbs_each');
    attempt record;
    d text;
BEGIN
    FOR attempt IN SELECT * FROM (VALUES ('each', 3), ('each', 1), ('after', 0)) x(step, element) LOOP
        BEGIN
            PERFORM saga.skip(id, 'why', attempt.step, attempt.element);
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS d = PG_EXCEPTION_DETAIL;
            RAISE NOTICE '% %: % % (%)', attempt.step, attempt.element, SQLSTATE, replace(SQLERRM, id::text, 'N'), d;
        END;
    END LOOP;
END
$$;
SELECT saga.skip(:id, 'the last', 'each', 2) = :id AS skipped;
SELECT saga_test.wait_until(format('(SELECT status = ''skipped'' FROM saga.steps WHERE saga_id = %s AND element = 2)', :id), 'it to be skipped', :id);
SELECT step, element, outcome FROM saga.requests WHERE saga_id = :id;
SELECT element, status FROM saga.steps WHERE saga_id = :id AND step = 'each' ORDER BY 1;
SELECT saga.skip(:id, 'whichever it is', 'each') = :id AS skipped;
SELECT saga_test.outcome(:id);

-- Signals: how each is refused.
SELECT saga.define('verbs_signal', saga.timer_step('first', '1 day'), saga.signal_step('approved'), saga.signal_step('paid', '1 day', otherwise => '0'));
SELECT saga.define('verbs_signalled', saga.signal_step('approved'), saga.signal_step('paid', '20 ms', otherwise => '0'), saga.step('wait', 'verbs_test.wait', 'verbs_test.wait'));
CREATE FUNCTION verbs_test.signal(id bigint, signal text) RETURNS TABLE (answer text, detail text, hint text) LANGUAGE plpgsql AS $$
BEGIN
    answer := saga.signal(id, signal, '1');
    RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS answer = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    answer := SQLSTATE || ' ' || replace(answer, id::text, 'N');
    detail := regexp_replace(replace(detail, id::text, 'N'), '\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[-+]\d\d', 'TIME');
    RETURN NEXT;
END
$$;
SELECT saga.begin('verbs_signal', key => 'a key') AS id \gset
SELECT * FROM verbs_test.signal(:id, 'nothing');
SELECT * FROM verbs_test.signal(:id, 'first');
SELECT * FROM verbs_test.signal(:done_id, 'first');
SELECT * FROM verbs_test.signal(0, 'approved');
SELECT saga.signal(NULL::bigint, 'approved');
SELECT saga.signal(:id, 'approved', on_duplicate => NULL);
SELECT saga.signal(:id, 'approved', on_duplicate => 'return');
SELECT saga.signal('verbs_signal', NULL, 'approved');
SELECT saga.signal(NULL, 'a key', 'approved');
SELECT saga.signal('verbs_signal', 'no such key', 'approved');
SELECT saga.signal('no such definition', 'a key', 'approved');
-- A second one: in the same transaction, before it is acted upon, while it is kept.
BEGIN;
SELECT * FROM verbs_test.signal(:id, 'approved');
SELECT * FROM verbs_test.signal(:id, 'approved');
SELECT saga.signal('verbs_signal', 'a key', 'approved', '2'::jsonb, 'ignore');
ROLLBACK;
SELECT saga.signal('verbs_signal', 'a key', 'approved', '3'::jsonb);
SELECT saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', :id), 'it to be kept', :id);
SELECT * FROM verbs_test.signal(:id, 'approved');
SELECT status, result FROM saga.steps WHERE saga_id = :id AND step = 'approved';
SELECT detail FROM saga.explain(:id) WHERE topic = 'action of approved';
-- Members may, and others do not even learn that there is a saga with this key.
SET ROLE regress_saga_other;
SELECT * FROM verbs_test.signal(:id, 'paid');
SELECT saga.signal('verbs_signal', 'a key', 'paid');
SELECT saga.signal('verbs_signal', 'no such key', 'paid');
SET ROLE regress_saga_monitor;
SELECT saga.signal(:id, 'paid');
SET ROLE regress_saga_operator;
SELECT saga.signal('verbs_signal', 'a key', 'paid', 'null'::jsonb);
SET ROLE regress_saga_owner;
-- Its answer has been given, or its time is over.
SELECT saga.begin('verbs_signalled') AS late \gset
SELECT * FROM verbs_test.signal(:late, 'approved');
SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', :late), 'the last step', :late);
SELECT * FROM verbs_test.signal(:late, 'approved');
SELECT * FROM verbs_test.signal(:late, 'paid');
SELECT saga.signal(:late, 'paid', '1', on_duplicate => 'ignore');
SELECT step, result FROM saga.steps WHERE saga_id = :late ORDER BY position;
-- It has been asked to go back; it has ended.
SELECT saga.pause(:id) = :id AS paused;
BEGIN;
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT * FROM verbs_test.signal(:id, 'paid');
ROLLBACK;
SELECT saga.abandon(:id) = :id AS abandoned;
SELECT saga_test.outcome(:id);
SELECT * FROM verbs_test.signal(:id, 'paid');
SELECT verb, step, outcome, requested_by FROM saga.requests WHERE saga_id = :id ORDER BY id;
BEGIN READ ONLY;
SELECT saga.signal(:late, 'paid');
ROLLBACK;
SELECT count(saga.abandon(saga_id)) > 0 AS cleaned FROM saga.sagas WHERE definition LIKE 'verbs%' AND finished_at IS NULL;

SELECT count(*) > 0 AS ended FROM saga_test.all_ended('verbs%');
RESET ROLE;
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'verbs%';
DROP SCHEMA verbs_test CASCADE;
