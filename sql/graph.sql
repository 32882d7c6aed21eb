--
-- Parallel branches and choices: steps in a graph, back along the same graph.
--
SELECT setval('saga.saga_id_seq', 20000000, false) AS ids_begin_at;
SET ROLE regress_saga_owner;
CREATE FUNCTION pg_temp.s(name text, VARIADIC after text[]) RETURNS jsonb LANGUAGE sql AS $$
    SELECT saga.step(name, 'saga_test.act', 'saga_test.act', after => after,
                     compensation_retry => saga.retry_policy(2, '5 ms'))
$$;

-- A diamond: a, then b and c beside each other, then d.
SELECT saga.define('graph_diamond',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    pg_temp.s('b', 'a'), pg_temp.s('c', 'a'), pg_temp.s('d', 'b', 'c'));
SELECT saga.begin('graph_diamond') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id), saga_test.in_order(:id, 'action a', 'action b', 'action d'),
    saga_test.in_order(:id, 'action a', 'action c', 'action d');
SELECT * FROM saga_test.story(:id);

-- It goes back in the reverse of the dependencies.
SELECT saga.begin('graph_diamond', '{"fail": {"action d": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id), saga_test.in_order(:id, 'compensation b', 'compensation a'),
    saga_test.in_order(:id, 'compensation c', 'compensation a');

-- When a branch fails its sibling comes to a known outcome, and is undone.
SELECT saga.begin('graph_diamond', '{"fail": {"action b": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.in_order(:id, 'action a', 'compensation a'),
    (SELECT count(*) FILTER (WHERE what = 'action c') = count(*) FILTER (WHERE what = 'compensation c')
     FROM saga_test.log WHERE saga_id = :id) AS sibling_is_undone,
    (SELECT count(*) FROM saga_test.log WHERE saga_id = :id AND what LIKE '% d') AS of_d;

-- A compensation that is stuck waits for a person, and the
-- steps before it wait for that.
SELECT saga.begin('graph_diamond', '{"fail": {"action d": 0, "compensation b": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, attempts FROM saga.stuck WHERE saga_id = :id;
SELECT saga.skip(:id, 'done by hand', 'b') = :id AS skipped;
SELECT saga_test.wait_until(format('(SELECT status FROM saga.sagas WHERE saga_id = %s) = ''compensated''', :id),
    'the way back', :id);
SELECT saga_test.log_sorted(:id);

-- All steps at once, and a step after some of them.
SELECT saga.define('graph_wide',
    saga.step('a', 'saga_test.act', after => '{}'),
    saga.step('b', 'saga_test.act', after => '{}'),
    saga.step('c', 'saga_test.act', after => '{}'),
    saga.step('d', 'saga_test.act', after => '{b,a}'),
    saga.step('e', 'saga_test.act', after => '{}'));
SELECT saga.begin('graph_wide') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id), saga_test.in_order(:id, 'action a', 'action d'), saga_test.in_order(:id, 'action b', 'action d');

-- A step has the results of what it comes after, and of nothing else.
CREATE FUNCTION pg_temp.nothing() RETURNS void LANGUAGE sql AS '';
RESET ROLE;
CREATE FUNCTION saga_test.results(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context -> 'results' $$;
CREATE FUNCTION saga_test.wants_b(b text, c text DEFAULT 'nothing') RETURNS text LANGUAGE sql AS $$ SELECT b || ' and ' || c $$;
SET ROLE regress_saga_owner;
SELECT saga.define('graph_results',
    saga.step('a', 'saga_test.act', after => '{}'),
    saga.step('b', 'saga_test.act', after => '{a}'),
    saga.step('c', 'saga_test.act', after => '{a}'),
    saga.step('of_b', 'saga_test.results', after => '{b}'),
    saga.step('by_name', 'saga_test.wants_b', after => '{b}'));
SELECT saga.begin('graph_results') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, result FROM saga_test.story(:id) WHERE step IN ('of_b', 'by_name') ORDER BY 1;

-- What is listed in another order is the same graph: steps are sorted.
SELECT saga.define('graph_order',
    saga.step('last', 'saga_test.act', after => '{middle}'),
    saga.step('middle', 'saga_test.act', after => '{first}'),
    saga.step('first', 'saga_test.act', after => '{}'));
SELECT position, step, after FROM saga.definition_steps WHERE definition = 'graph_order' ORDER BY 1;
SELECT saga.begin('graph_order') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- A pivot in one branch: once it has succeeded the other branch goes forward too.
SELECT saga.define('graph_pivot',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.step('pivot', 'saga_test.act', pivot => true),
    saga.step('beside', 'saga_test.act', 'saga_test.act', after => '{a}', retry => saga.retry_policy(3, '50 ms')));
SELECT saga.begin('graph_pivot', '{"fail": {"action beside": 2}}') AS id \gset
SELECT saga_test.outcome(:id) IN ('completed', 'compensated') AS ended;

------------------------------------------------------------------------------
-- Choices
------------------------------------------------------------------------------
RESET ROLE;
CREATE FUNCTION saga_test.is_abroad(country text) RETURNS boolean LANGUAGE sql AS $$
    SELECT CASE WHEN country <> '?' THEN country <> 'NO' END
$$;
CREATE FUNCTION saga_test.condition_fails(context jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cannot tell';
END $$;
CREATE FUNCTION saga_test.condition_writes(context jsonb) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO saga_test.log (saga_id, what) VALUES ((context ->> 'saga_id')::bigint, 'the condition');
    RETURN false;
END $$;
SET ROLE regress_saga_owner;
SELECT saga.define('choice',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.step('customs', 'saga_test.act', 'saga_test.act', only_if => 'saga_test.is_abroad'),
    saga.step('after_customs', 'saga_test.results', 'saga_test.act'),
    saga.step('last', 'saga_test.act'));
SELECT step, only_if FROM saga.definition_steps WHERE definition = 'choice' AND only_if IS NOT NULL;
-- Taken, not taken, and null, which is not taken.
SELECT saga.begin('choice', '{"country": "SE"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
SELECT saga.begin('choice', '{"country": "NO"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT saga.begin('choice', '{"country": "?"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- What was not taken has nothing to compensate.
SELECT saga.begin('choice', '{"country": "NO", "fail": {"action last": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE detail LIKE '%only if%' OR detail LIKE '%not taken%';
-- A condition that fails is a failed attempt; what one writes is undone.
SELECT saga.define('choice_fails', saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.step('b', 'saga_test.act', only_if => 'saga_test.condition_fails'));
SELECT saga.begin('choice_fails') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga.define('choice_writes', saga.step('a', 'saga_test.act', only_if => 'saga_test.condition_writes'));
SELECT saga.begin('choice_writes') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- An argument of a condition is required like any other.
SELECT saga.begin('choice');
-- A pivot that is not taken counts as passed.
SELECT saga.define('choice_pivot',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.step('p', 'saga_test.act', pivot => true, only_if => 'saga_test.is_abroad'),
    saga.step('b', 'saga_test.act', retry => saga.retry_policy(5, '5 ms')));
SELECT saga.begin('choice_pivot', '{"country": "NO", "fail": {"action b": 2}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

RESET ROLE;
DROP FUNCTION saga_test.results, saga_test.wants_b, saga_test.is_abroad, saga_test.condition_fails, saga_test.condition_writes;
