--
-- Loops over data: a step once for each element, with its own attempts, result
-- and compensation; parallel and quorum.
--
SELECT setval('saga.saga_id_seq', 21000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.reserve(sku text, qty int DEFAULT 1) RETURNS text LANGUAGE sql AS $$ SELECT sku || ' x ' || qty $$;
CREATE FUNCTION saga_test.unreserve(reserve text, sku text) RETURNS text LANGUAGE sql AS $$ SELECT reserve || ' of ' || sku || ' back' $$;
CREATE FUNCTION saga_test.count_lots(reserve jsonb, items jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT jsonb_array_length(reserve) || ' of ' || jsonb_array_length(items) $$;
CREATE FUNCTION saga_test.plan(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context #> '{input,plan}' $$;
CREATE FUNCTION saga_test.where_am_i(element jsonb, index int) RETURNS text LANGUAGE sql AS $$ SELECT index || ': ' || element $$;
CREATE FUNCTION saga_test.whole(element jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'got ' || element::text $$;
CREATE FUNCTION saga_test.is_even(element int) RETURNS boolean LANGUAGE sql AS $$ SELECT element % 2 = 0 $$;
CREATE FUNCTION saga_test.elements(id bigint)
RETURNS TABLE (step text, element integer, operation saga.operation, status saga.operation_status, result jsonb, error text)
LANGUAGE sql AS $$
    SELECT s.step, s.element, s.operation, s.status, s.result, s.error ->> 'message'
    FROM saga.steps s WHERE s.saga_id = id ORDER BY s.position, s.element, s.operation
$$;
SET ROLE regress_saga_owner;

-- Fields of the element fill the parameters; the result is an array.
SELECT saga.define('each',
    saga.step('reserve', 'saga_test.reserve', 'saga_test.unreserve', foreach => 'items'),
    saga.step('count', 'saga_test.count_lots'),
    saga.step('last', 'saga_test.act'));
SELECT step, foreach, parallel, quorum FROM saga.definition_steps WHERE definition = 'each' ORDER BY position;
SELECT saga.begin('each', '{"items": [{"sku": "A", "qty": 2}, {"sku": "B"}, {"sku": "C", "qty": 3}]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.elements(:id);
-- Each has its own compensation.
SELECT saga.begin('each', '{"items": [{"sku": "A", "qty": 2}, {"sku": "B"}], "fail": {"action last": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.elements(:id);
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE detail LIKE '%2 of 2 elements%';
-- No elements: done at once, with an empty array.
SELECT saga.begin('each', '{"items": []}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, element, status, result FROM saga.steps WHERE saga_id = :id ORDER BY position;
-- Wrong data.
SELECT saga.begin('each', '{"items": {"sku": "A"}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('each', '{"items": "A"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('each', '{"items": null}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('each', '{"items": [1]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;

-- Elements of an earlier step's result, by position and as they are.
SELECT saga.define('each_planned',
    saga.step('plan', 'saga_test.plan'),
    saga.step('where', 'saga_test.where_am_i', foreach => 'plan.parcels'));
SELECT saga.begin('each_planned', '{"plan": {"parcels": ["x", {"y": 1}, null, [2, 3]]}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- A foreach over the results of another one.
SELECT saga.define('each_twice',
    saga.step('one', 'saga_test.act', foreach => 'items'),
    saga.step('two', 'saga_test.where_am_i', foreach => 'one'));
SELECT saga.begin('each_twice', '{"items": ["a", "b"]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

-- A failure of one fails the step: the others are undone.
SELECT saga.define('each_act',
    saga.step('act', 'saga_test.act', 'saga_test.act', foreach => 'items', retry => saga.retry_policy(2, '5 ms', retry_on => '{P0}')));
SELECT saga.begin('each_act', '{"items": [0, 1, 2], "fail": {"action act 1": 1}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT element, attempts, status FROM saga.steps WHERE saga_id = :id ORDER BY 1;
SELECT step, element, operation, attempt, round FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('each_act', '{"items": [0, 1, 2], "fail": {"action act 1": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*) FILTER (WHERE operation = 'action' AND status = 'succeeded') =
       count(*) FILTER (WHERE operation = 'compensation' AND status = 'succeeded') AS undone FROM saga.steps WHERE saga_id = :id;
SELECT error ->> 'step' AS step, error ->> 'element' AS element, error ->> 'message' AS message FROM saga.sagas WHERE saga_id = :id;

-- A single jsonb is the context, as in any step, unless it is named element.
SELECT saga.define('each_whole', saga.step('whole', 'saga_test.whole', foreach => 'items'));
SELECT saga.begin('each_whole', '{"items": [{"a": 1}, 2]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

-- A condition is asked for each element.
SELECT saga.define('each_even', saga.step('act', 'saga_test.act', foreach => 'items', only_if => 'saga_test.is_even'));
SELECT saga.begin('each_even', '{"items": [1, 2, 3, 4]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

-- A quorum: enough have succeeded, the others are skipped or undone.
SELECT saga.define('each_quorum',
    saga.step('act', 'saga_test.act', 'saga_test.act', foreach => 'items', parallel => 1, quorum => 2, retry => saga.retry_policy(1)),
    saga.step('after', 'saga_test.act', foreach => 'act'));
SELECT saga.begin('each_quorum', '{"items": [0, 1, 2, 3], "fail": {"action act 0": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT element, status, result FROM saga.steps WHERE saga_id = :id AND step = 'act' AND operation = 'action' ORDER BY 1;
SELECT saga.result(:id);
-- It cannot be reached any more.
SELECT saga.begin('each_quorum', '{"items": [0, 1, 2], "fail": {"action act 0": 0, "action act 1": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
-- It is larger than the array.
SELECT saga.begin('each_quorum', '{"items": [0]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;

-- Many elements, at most ten at once.
SELECT saga.define('each_many',
    saga.step('act', 'saga_test.act', 'saga_test.act', foreach => 'items', parallel => 10),
    saga.step('last', 'saga_test.act', retry => saga.retry_policy(1)));
SELECT saga.begin('each_many', jsonb_build_object('items', (SELECT jsonb_agg(i) FROM generate_series(1, 500) i))) AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*), count(DISTINCT what) FROM saga_test.log WHERE saga_id = :id;
SELECT saga.begin('each_many', jsonb_build_object('items', (SELECT jsonb_agg(i) FROM generate_series(1, 300) i),
    'fail', '{"action last": 0}'::jsonb)) AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*), count(DISTINCT what) FROM saga_test.log WHERE saga_id = :id;

RESET ROLE;
DROP FUNCTION saga_test.reserve, saga_test.unreserve, saga_test.count_lots, saga_test.plan, saga_test.where_am_i, saga_test.is_even, saga_test.whole, saga_test.elements;
