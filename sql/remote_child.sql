--
-- Child sagas of another database, as it asks for them: begun once for each attempt,
-- told to go back or to complete, and followed by what they report, which is told
-- until it is acknowledged.
--
SELECT setval('saga.saga_id_seq', 47000000, false) AS ids_begin_at;
CREATE ROLE regress_saga_parent LOGIN;
CREATE ROLE regress_saga_parent_other LOGIN;
SELECT saga.grant_usage('regress_saga_parent'), saga.grant_remote('regress_saga_parent'), saga.grant_remote('regress_saga_parent_other');
CREATE SCHEMA far_child;
GRANT USAGE, CREATE ON SCHEMA far_child TO regress_saga_parent, regress_saga_parent_other;
-- The coordinator and the sagas of these tests.
CREATE FUNCTION far_child.coordinator() RETURNS uuid LANGUAGE sql AS $$ SELECT 'fa000000-0000-0000-0000-000000000000'::uuid $$;
CREATE FUNCTION far_child.token(n integer) RETURNS uuid LANGUAGE sql AS $$ SELECT ('fa000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid $$;
CREATE FUNCTION far_child.ask(n integer, step text, operation text, definition text DEFAULT '', context jsonb DEFAULT '{}',
    begun_at timestamptz DEFAULT '2030-01-01', OUT outcome text, OUT child boolean) LANGUAGE sql AS $$
    SELECT outcome, result ? 'saga_id' FROM saga.participate_child(far_child.coordinator(), far_child.token(n), step, operation,
        definition, context, begun_at => begun_at)
$$;
-- The reports of an answer, without what differs between runs; one may be there twice.
CREATE FUNCTION far_child.show(reports jsonb) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT report FROM (
        SELECT concat_ws(' ', right(r ->> 'token', 4), r ->> 'step', 'attempt ' || (r ->> 'attempt'), r #>> '{report,status}',
            CASE WHEN r #> '{report,refused}' = 'true' THEN 'refused' END,
            CASE WHEN r #> '{report,too_large}' = 'true' THEN 'too large' END,
            r #>> '{report,result}', r #>> '{report,cause,message}') AS report, (r ->> 'id')::bigint AS id
        FROM jsonb_array_elements(reports) r) x
    GROUP BY report ORDER BY min(id)
$$;
CREATE FUNCTION far_child.wait_for(n integer, step text, status text) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(format($s$(SELECT s.status FROM saga.remote_parent p JOIN saga.saga s ON s.id = p.saga_id
        WHERE p.token = %L AND p.step = %L ORDER BY p.attempt DESC LIMIT 1) = %L$s$, far_child.token(n), step, status), 'a child')
$$ SECURITY DEFINER;
CREATE FUNCTION far_child.ids(reports jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT '{' || string_agg(r ->> 'id', ',') || '}' FROM jsonb_array_elements(reports) r
$$;
CREATE FUNCTION far_child.act(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF context ->> 'operation' = 'action' AND context #>> '{input,fail}' = context ->> 'step' THEN
        PERFORM saga.fail('told to');
    END IF;
    RETURN jsonb_build_object('did', context ->> 'step', 'for', context #> '{input,for}');
END $$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA far_child TO PUBLIC;

SET ROLE regress_saga_parent;
SELECT saga.define('far_kid', saga.step('k1', 'far_child.act', 'far_child.act'), saga.step('k2', 'far_child.act', 'far_child.act'));
SELECT saga.define('far_kid_waits', saga.step('k1', 'far_child.act', 'far_child.act'), saga.signal_step('go'));
SELECT saga.define('far_kid_pivot', saga.step('k1', 'far_child.act', pivot => true), saga.signal_step('go'));
-- Begun once.  What it reports is told until it is acknowledged.
SELECT * FROM far_child.ask(1, 'a', 'action', 'far_kid', '{"input": {"for": 1}, "saga_id": 7, "depth": 3, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}');
SELECT * FROM far_child.ask(1, 'a', 'action', 'far_kid', '{"input": {"for": 1}, "saga_id": 7}');
CALL saga.follow_children(far_child.coordinator(), NULL, '1 min', NULL, NULL, 'hello') \gset
SELECT far_child.show(:'reports');
SELECT :'echo' AS echo, :'history' AS history \gset before_
SELECT :'before_echo';
SELECT status, waiting_for, parent_id, root_id = saga_id AS is_root, remote_parent_id, remote_coordinator, traceparent FROM saga.sagas WHERE definition = 'far_kid';
SELECT topic, detail FROM saga.explain(47000000) WHERE topic IN ('parent', 'waits for');
RESET ROLE;
SELECT depth, parent_id, parent_step FROM saga.saga WHERE id = 47000000;
SET ROLE regress_saga_parent;
\set VERBOSITY terse
SELECT saga.cancel(47000000);
\set VERBOSITY default
CALL saga.follow_children(far_child.coordinator(), NULL, '0', NULL, NULL) \gset
SELECT far_child.show(:'reports'), :'history' = :'before_history' AS same_history;
\echo :{?echo}
SELECT far_child.ids(:'reports') AS ids \gset
-- Not by another role, nor for another database.
SET ROLE regress_saga_parent_other;
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
\echo :{?reports}
\set VERBOSITY sqlstate
SELECT * FROM far_child.ask(1, 'a', 'compensation');
SELECT * FROM far_child.ask(1, 'b', 'action', 'far_kid');
\set VERBOSITY default
SET ROLE regress_saga_parent;
CALL saga.follow_children(far_child.token(1), :'ids', '0', NULL, NULL) \gset
\echo :{?reports}
CALL saga.follow_children(far_child.coordinator(), NULL, '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
\echo :{?reports}
-- Who asks again is told again.
SELECT * FROM far_child.ask(1, 'a', 'action', 'far_kid');
CALL saga.follow_children(far_child.coordinator(), NULL, '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
-- It goes back; and again, which changes nothing.
SELECT * FROM far_child.ask(1, 'a', 'compensation');
CALL saga.follow_children(far_child.coordinator(), :'ids', '1 min', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT * FROM far_child.ask(1, 'a', 'compensation');
\set VERBOSITY terse
SELECT * FROM far_child.ask(1, 'a', 'confirmation');
\set VERBOSITY default
-- It completes.
SELECT * FROM far_child.ask(2, 'a', 'action', 'far_kid');
SELECT far_child.wait_for(2, 'a', 'held');
SELECT * FROM far_child.ask(2, 'a', 'confirmation');
SELECT far_child.wait_for(2, 'a', 'completed');
SELECT * FROM far_child.ask(2, 'a', 'confirmation');
CALL saga.follow_children(far_child.coordinator(), NULL, '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
SELECT * FROM far_child.ask(2, 'a', 'action', 'far_kid');
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
-- It fails: the next attempt has another one; but that keeps it for the ones after it.
SELECT * FROM far_child.ask(3, 'a', 'action', 'far_kid', '{"input": {"fail": "k2"}, "attempt": 1}');
SELECT far_child.wait_for(3, 'a', 'compensated');
SELECT * FROM far_child.ask(3, 'a', 'action', 'far_kid', '{"attempt": 1}');
SELECT * FROM far_child.ask(3, 'a', 'action', 'far_kid', '{"attempt": 2}');
SELECT far_child.wait_for(3, 'a', 'held');
SELECT * FROM far_child.ask(3, 'a', 'action', 'far_kid', '{"attempt": 4}');
RESET ROLE;
SELECT attempt, s.status FROM saga.remote_parent p JOIN saga.saga s ON s.id = p.saga_id WHERE p.token = far_child.token(3) ORDER BY attempt;
SET ROLE regress_saga_parent;
CALL saga.follow_children(far_child.coordinator(), NULL, '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
-- Of what was not begun: never to be.
SELECT * FROM far_child.ask(4, 'a', 'compensation');
SELECT * FROM far_child.ask(4, 'b', 'recall');
SELECT * FROM far_child.ask(4, 'b', 'recall');
SELECT * FROM far_child.ask(4, 'b', 'compensation');
\set VERBOSITY terse
SELECT * FROM far_child.ask(4, 'a', 'action', 'far_kid');
SELECT * FROM far_child.ask(4, 'b', 'action', 'far_kid');
\set VERBOSITY default
-- One that runs is recalled: that is the end of the action, not its compensation.
SELECT * FROM far_child.ask(5, 'a', 'action', 'far_kid_waits');
SELECT * FROM far_child.ask(5, 'a', 'recall');
CALL saga.follow_children(far_child.coordinator(), NULL, '1 min', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
RESET ROLE;
SELECT step, operation, void FROM saga.barrier WHERE token = far_child.token(5);
SET ROLE regress_saga_parent;
-- With a pivot: not where it may have to go back; and one that has passed it says so.
SELECT * FROM far_child.ask(6, 'a', 'action', 'far_kid_pivot');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM far_child.ask(6, 'a', 'action', 'far_kid_pivot', '{"undoable": false}');
SELECT saga_test.wait_until($$EXISTS (SELECT FROM saga.sagas WHERE definition = 'far_kid_pivot' AND waiting_for = 'signal')$$, 'the pivot');
SELECT * FROM far_child.ask(6, 'a', 'recall');
CALL saga.follow_children(far_child.coordinator(), :'ids', '1 min', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
-- Too deep.
\set VERBOSITY terse
SELECT * FROM far_child.ask(7, 'a', 'action', 'far_kid', '{"depth": 999}');
SELECT far_child.wait_for(7, 'a', 'held');
SELECT * FROM far_child.ask(7, 'b', 'action', 'far_kid', '{"depth": 1000}');
-- What cannot be.
SELECT * FROM far_child.ask(8, 'a', 'action', 'nobody');
SELECT * FROM far_child.ask(8, 'a', 'action', 'far_kid', '{"input": [1]}');
SELECT * FROM far_child.ask(8, 'a', 'action', 'far_kid', '[]');
SELECT * FROM far_child.ask(8, 'a', 'action', 'far_kid', '{"attempt": 0}');
SELECT * FROM far_child.ask(8, 'a', 'action', 'far_kid', '{"depth": "x"}');
SELECT * FROM far_child.ask(8, 'a', 'destruction', 'far_kid');
SELECT * FROM far_child.ask(8, '', 'action', 'far_kid');
SELECT * FROM far_child.ask(8, 'a', 'action', NULL);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM far_child.ask(8, 'a', 'action', 'far_kid');
ROLLBACK;
BEGIN;
CALL saga.follow_children(far_child.coordinator(), NULL, '0');
ROLLBACK;
CALL saga.follow_children(NULL, NULL, '0');
CALL saga.follow_children(far_child.coordinator(), NULL, '-1 s');
\set VERBOSITY default
-- What was rolled back was not begun.
BEGIN;
SELECT * FROM far_child.ask(9, 'a', 'action', 'far_kid_waits');
ROLLBACK;
SELECT * FROM far_child.ask(9, 'a', 'action', 'far_kid_waits');
-- The parent has ended: its children are on their own, and no more are begun.
SELECT * FROM far_child.ask(9, 'b', 'action', 'far_kid');
SELECT far_child.wait_for(9, 'b', 'held');
SELECT * FROM far_child.ask(9, 'b', 'release');
SELECT * FROM far_child.ask(9, 'b', 'release');
\set VERBOSITY terse
SELECT * FROM far_child.ask(9, 'c', 'action', 'far_kid');
\set VERBOSITY default
SELECT saga.signal(max(saga_id), 'go') FROM saga.sagas WHERE definition = 'far_kid_waits';
SELECT far_child.wait_for(9, 'a', 'completed'), far_child.wait_for(9, 'b', 'completed');
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
-- Also if that was said of all that began before then; what has ended is forgotten.
SELECT * FROM far_child.ask(10, 'a', 'action', 'far_kid_waits', '{}', '2029-01-01');
SELECT * FROM far_child.ask(11, 'a', 'action', 'far_kid_waits', '{}', '2029-01-01');
SELECT * FROM far_child.ask(12, 'a', 'action', 'far_kid', '{}', '2029-01-01');
SELECT * FROM far_child.ask(12, 'a', 'confirmation', begun_at => '2029-01-01');
SELECT far_child.wait_for(12, 'a', 'completed');
SELECT saga.forget_barriers(far_child.coordinator(), '2029-06-01', ARRAY[far_child.token(11)]);
RESET ROLE;
SELECT right(token::text, 4) AS token, step, let_go FROM saga.remote_parent WHERE begun_at < '2030-01-01' ORDER BY token;
SET ROLE regress_saga_parent;
SELECT saga.signal(saga_id, 'go') FROM saga.sagas WHERE definition = 'far_kid_waits' AND finished_at IS NULL ORDER BY saga_id;
SELECT far_child.wait_for(10, 'a', 'completed'), far_child.wait_for(11, 'a', 'held');
SELECT * FROM far_child.ask(11, 'a', 'confirmation', begun_at => '2029-01-01');
SELECT far_child.wait_for(11, 'a', 'completed');
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
-- A result that is too large for the way stays here.
CREATE FUNCTION far_child.large(context jsonb) RETURNS text LANGUAGE sql AS $$ SELECT repeat('x', 33 * 1024 * 1024) $$;
SELECT saga.define('far_kid_large', saga.step('k1', 'far_child.large', 'far_child.act'));
SELECT * FROM far_child.ask(13, 'a', 'action', 'far_kid_large');
CALL saga.follow_children(far_child.coordinator(), :'ids', '1 min', NULL, NULL) \gset
SELECT far_child.show(:'reports');
SELECT far_child.ids(:'reports') AS ids \gset
CALL saga.follow_children(far_child.coordinator(), :'ids', '0', NULL, NULL) \gset
SELECT * FROM far_child.ask(13, 'a', 'compensation');
SELECT far_child.wait_for(13, 'a', 'compensated');
RESET ROLE;
-- Whom nobody follows any more.
SELECT right(token::text, 4) AS token, step, attempt FROM saga.remote_parent p
WHERE coordinator = far_child.coordinator() AND EXISTS (SELECT FROM saga.saga s WHERE s.id = p.saga_id AND s.due_at IS NOT NULL) ORDER BY token;
SET client_min_messages = warning;
SELECT saga.abandon(saga_id) > 0 AS abandoned FROM saga.sagas WHERE finished_at IS NULL AND remote_coordinator = far_child.coordinator();
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.sagas WHERE finished_at IS NULL AND remote_coordinator = far_child.coordinator())', 'all to end');
DELETE FROM saga.child_report WHERE coordinator = far_child.coordinator();
DELETE FROM saga.remote_parent WHERE coordinator = far_child.coordinator();
DELETE FROM saga.barrier WHERE coordinator = far_child.coordinator();
DELETE FROM saga.barrier_horizon WHERE coordinator = far_child.coordinator();
SELECT saga.drop_definition(name, true) FROM saga.definitions WHERE name LIKE 'far\_kid%';
DROP SCHEMA far_child CASCADE;
DROP OWNED BY regress_saga_parent, regress_saga_parent_other;
DROP ROLE regress_saga_parent, regress_saga_parent_other;
