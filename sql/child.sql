--
-- Child sagas: begun once, held until their parent is decided, compensated with
-- it; cancel goes down.
--
SELECT setval('saga.saga_id_seq', 26000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.child_input(parcel text) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('parcel', parcel) $$;
CREATE FUNCTION saga_test.pass_on(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT jsonb_build_object('fail', context #> '{input,child_fail}', 'parcel', 'p') $$;
CREATE FUNCTION saga_test.bad_input(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '[1]'::jsonb $$;
CREATE SEQUENCE saga_test.tries;
GRANT ALL ON SEQUENCE saga_test.tries TO PUBLIC;
CREATE FUNCTION saga_test.third_time(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('saga_test.tries') < 3 THEN
        PERFORM saga.fail('not yet');
    END IF;
    RETURN 'lucky';
END $$;
-- The tree of a saga, with what became of it.
CREATE FUNCTION saga_test.tree(id bigint) RETURNS TABLE (definition text, status saga.saga_status, log text) LANGUAGE sql AS $$
    WITH RECURSIVE t AS (
        SELECT s.saga_id, s.definition, s.status, 0 AS depth FROM saga.sagas s WHERE s.saga_id = id
        UNION ALL
        SELECT s.saga_id, s.definition, s.status, t.depth + 1 FROM t JOIN saga.sagas s ON s.parent_id = t.saga_id)
    SELECT repeat('  ', depth) || t.definition, t.status, saga_test.log(t.saga_id) FROM t ORDER BY depth, t.definition, t.saga_id
$$;
SET ROLE regress_saga_owner;
SELECT saga.define('kid', saga.step('k1', 'saga_test.act', 'saga_test.act'), saga.step('k2', 'saga_test.act', 'saga_test.act'));
SELECT saga.define('mother',
    saga.step('m1', 'saga_test.act', 'saga_test.act'),
    saga.child_step('kid', definition => 'kid', input => 'saga_test.pass_on'),
    saga.step('m2', 'saga_test.act', 'saga_test.act'));
SELECT step, kind, child, action FROM saga.definition_steps WHERE definition = 'mother' ORDER BY position;
-- All is well.
SELECT saga.begin('mother') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT step, operation, status, result FROM saga_test.story(:id);
-- The child goes back: so does its parent.
SELECT saga.begin('mother', '{"child_fail": {"action k2": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT a.sqlstate, a.detail FROM saga.attempts a WHERE saga_id = :id;
-- The parent goes back: so does the child that was done.
SELECT saga.begin('mother', '{"fail": {"action m2": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
-- Held, while its parent runs; nobody but the parent ends that.
SELECT saga.define('mother_waits', saga.child_step('kid', definition => 'kid', input => 'saga_test.pass_on'), saga.signal_step('go'));
SELECT saga.begin('mother_waits') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.sagas WHERE parent_id = %s AND status = ''held'')', :id), 'the child to be held', :id);
SELECT saga_id AS kid FROM saga.sagas WHERE parent_id = :id \gset
SELECT waiting_for FROM saga.sagas WHERE saga_id = :kid;
\set VERBOSITY sqlstate
SELECT saga.cancel(:kid);
\set VERBOSITY default
SELECT saga.signal(:id, 'go');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
-- Cancel goes down, also to a child that runs.
SELECT saga.define('kid_waits', saga.step('k1', 'saga_test.act', 'saga_test.act'), saga.signal_step('never'));
SELECT saga.define('mother_of_waiting', saga.step('m1', 'saga_test.act', 'saga_test.act'), saga.child_step('kid', definition => 'kid_waits'));
SELECT saga.begin('mother_of_waiting') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.sagas WHERE parent_id = %s AND waiting_for = ''signal'')', :id), 'the child to wait', :id);
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE topic = 'child' OR detail LIKE '%child saga%';
SELECT saga.cancel(:id, 'enough') = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
-- Grandchildren.
SELECT saga.define('grandmother', saga.child_step('mother', definition => 'mother'), saga.step('g', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('grandmother') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT saga.begin('grandmother', '{"fail": {"action g": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT count(DISTINCT root_id) FROM saga.sagas WHERE root_id = :id OR saga_id = :id;
-- Several, one for each element, and with confirmations of their own, which wait
-- for the parent.
SELECT saga.define('kid_confirmed', saga.step('k', 'saga_test.act', 'saga_test.act', confirmation => 'saga_test.act'));
SELECT saga.define('mother_of_many', saga.child_step('kids', definition => 'kid_confirmed', foreach => 'parcels', parallel => 2), saga.step('last', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('mother_of_many', '{"parcels": [{"n": 1}, {"n": 2}, {"n": 3}]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT saga.begin('mother_of_many', '{"parcels": [{"n": 1}, {"n": 2}, {"n": 3}], "fail": {"action last": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
-- The input is wrong.
SELECT saga.define('mother_wrong', saga.child_step('kid', definition => 'kid', input => 'saga_test.bad_input'));
SELECT saga.begin('mother_wrong') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
-- Definitions that cannot be.
SELECT saga.define('mother_wrong2', saga.child_step('kid', definition => 'nobody'));
SELECT saga.define('kid_pivot', saga.step('p', 'saga_test.act', pivot => true));
SELECT saga.define('mother_wrong2', saga.step('m', 'saga_test.act', 'saga_test.act'), saga.child_step('kid', definition => 'kid_pivot'));
SELECT saga.define('mother_pivot', saga.step('m', 'saga_test.act', 'saga_test.act'), saga.child_step('kid', definition => 'kid_pivot', pivot => true));
SELECT saga.begin('mother_pivot') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
-- Behind the pivot the step is tried again, with a child of its own each time.
SELECT saga.define('kid_lucky', saga.step('k', 'saga_test.third_time'));
SELECT saga.define('mother_behind', saga.step('m', 'saga_test.act', pivot => true),
    saga.child_step('kid', definition => 'kid_lucky', retry => saga.retry_policy(5, '5 ms')));
SELECT saga.begin('mother_behind') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
SELECT step, attempt, sqlstate, detail FROM saga.attempts WHERE saga_id = :id ORDER BY attempt;
SELECT saga.result(:id);
-- The child's definition is gone, or disabled, when its turn has come.
SELECT saga.configure('kid_confirmed', enabled => false);
SELECT saga.begin('mother_of_many', '{"parcels": [{}]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT message FROM saga.attempts WHERE saga_id = :id;
SELECT saga.configure('kid_confirmed', enabled => true);
-- Abandoned parents let their children go.
SELECT saga.begin('mother_waits') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.sagas WHERE parent_id = %s AND status = ''held'')', :id), 'the child to be held', :id);
SELECT saga.abandon(:id, 'never mind') = :id AS abandoned;
SELECT saga_test.outcome(saga_id) FROM saga.sagas WHERE parent_id = :id;
SELECT * FROM saga_test.tree(:id);
-- A stuck child: its parent waits; once it is resolved, both end.
SELECT saga.begin('mother', '{"child_fail": {"action k2": 0, "compensation k1": 0}}') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.sagas WHERE parent_id = %s)', :id), 'the child', :id);
SELECT saga_id AS kid FROM saga.sagas WHERE parent_id = :id \gset
RESET ROLE;
SET ROLE regress_saga_owner;
SELECT saga.cancel(:id, 'stuck') = :id AS cancelled;
SELECT saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', :id), 'the cancel', :id);
SELECT saga.abandon(:kid, 'by hand') = :kid AS abandoned;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tree(:id);
RESET ROLE;
DROP FUNCTION saga_test.third_time, saga_test.child_input, saga_test.pass_on, saga_test.bad_input, saga_test.tree;
DROP SEQUENCE saga_test.tries;
