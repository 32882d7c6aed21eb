--
-- Savepoints: back only to there, and forward again, so many times.
--
SELECT setval('saga.saga_id_seq', 23000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.rounds(id bigint)
RETURNS TABLE (step text, operation saga.operation, round integer, status saga.operation_status) LANGUAGE sql AS $$
    SELECT s.step, s.operation, s.round, s.status FROM saga.steps s WHERE s.saga_id = id
    ORDER BY s.round, s.position, s.operation
$$;
-- Fails in the rounds that the input names.
CREATE FUNCTION saga_test.act_round(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF context #> '{input,rounds}' @> coalesce(context -> 'round', '0') AND context ->> 'operation' = 'action' THEN
        PERFORM saga.fail('this round fails');
    END IF;
    RETURN saga_test.act(context);
END $$;
SET ROLE regress_saga_owner;
SELECT saga.define('point',
    saga.step('a', 'saga_test.act', 'saga_test.act'),
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true, recoveries => 2),
    saga.step('b', 'saga_test.act', 'saga_test.act'),
    saga.step('c', 'saga_test.act_round', 'saga_test.act'));
SELECT step, savepoint, and_then, recoveries FROM saga.definition_steps WHERE definition = 'point' ORDER BY position;
-- Nothing fails.
SELECT saga.begin('point', '{"rounds": []}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- It goes back to s and forward again, once.
SELECT saga.begin('point', '{"rounds": [0]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
SELECT * FROM saga_test.rounds(:id);
SELECT step, round, attempt, message FROM saga.attempts WHERE saga_id = :id ORDER BY started_at;
SELECT count(*) > 0 AS explained FROM saga.explain(:id) WHERE detail LIKE '%savepoint%1 of 2%';
-- Twice; and then all the way.
SELECT saga.begin('point', '{"rounds": [0, 1]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.begin('point', '{"rounds": [0, 1, 2]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- A failure before the savepoint is none of its business.
SELECT saga.begin('point', '{"rounds": [], "fail": {"action s": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- Another way.
SELECT saga.define('point_other',
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true, and_then => 'train'),
    saga.step('fly', 'saga_test.act', 'saga_test.act'),
    saga.step('taxi', 'saga_test.act'),
    saga.step('train', 'saga_test.act', 'saga_test.act', after => '{s}'),
    saga.step('walk', 'saga_test.act', after => '{train}'),
    saga.step('arrive', 'saga_test.act', after => '{taxi,walk}'));
SELECT saga.begin('point_other') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
SELECT saga.begin('point_other', '{"fail": {"action taxi": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- Both ways fail.
SELECT saga.begin('point_other', '{"fail": {"action taxi": 0, "action walk": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- One within the other: first the inner, then the outer, then all the way.
SELECT saga.define('point_nested',
    saga.step('outer', 'saga_test.act', 'saga_test.act', savepoint => true),
    saga.step('inner', 'saga_test.act', 'saga_test.act', savepoint => true),
    saga.step('c', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('point_nested', '{"fail": {"action c": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- A branch beside it stays as it is.
SELECT saga.define('point_beside',
    saga.step('beside', 'saga_test.act', 'saga_test.act', after => '{}'),
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true, after => '{}'),
    saga.step('b', 'saga_test.act_round', 'saga_test.act', after => '{s}'));
SELECT saga.begin('point_beside', '{"rounds": [0]}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log_sorted(:id);

-- A signal that comes on the way back to a savepoint is for the next round, one
-- of before the savepoint stays.
SELECT saga.define('point_signal',
    saga.signal_step('before'),
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true),
    saga.signal_step('go'),
    saga.step('b', 'saga_test.act', 'saga_test.act', compensation_retry => saga.retry_policy(3, '1 day', '1 day')),
    saga.step('c', 'saga_test.act_round', 'saga_test.act'));
SELECT saga.begin('point_signal', '{"rounds": [0], "fail": {"compensation b": 1}}') AS id \gset
SELECT saga.signal(:id, 'before', '"kept"'), saga.signal(:id, 'go', '"first"');
SELECT saga_test.waits_for(:id);
SELECT saga.signal(:id, 'go', '"second"');
\set VERBOSITY sqlstate
SELECT saga.signal(:id, 'go', '"third"');
SELECT saga.signal(:id, 'before', '"again"');
\set VERBOSITY default
SELECT saga.signal(:id, 'go', '"third"', on_duplicate => 'ignore');
SELECT status, verb, r.step, outcome FROM saga.requests r JOIN saga.sagas USING (saga_id) WHERE saga_id = :id ORDER BY r.id;
SELECT saga.retry(:id, 'now') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT step, round, status, result FROM saga.steps WHERE saga_id = :id AND operation = 'action' ORDER BY round, position;
SELECT verb, step, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;
-- Without one the new round waits anew; its signal may come later.
SELECT saga.begin('point_signal', '{"rounds": [0]}') AS id \gset
SELECT saga.signal(:id, 'before'), saga.signal(:id, 'go', '"first"');
SELECT saga_test.waits_for(:id);
SELECT step, round, status, result FROM saga.steps WHERE saga_id = :id AND step = 'go' ORDER BY round;
SELECT saga.signal(:id, 'go', '"second"');
SELECT saga_test.outcome(:id);
SELECT step, round, status, result FROM saga.steps WHERE saga_id = :id AND step = 'go' ORDER BY round;
-- Cancelled on the way: the signal was for a round that does not come.
SELECT saga.begin('point_signal', '{"rounds": [0], "fail": {"compensation b": 1}}') AS id \gset
SELECT saga.signal(:id, 'before'), saga.signal(:id, 'go', '"first"');
SELECT saga_test.waits_for(:id);
SELECT saga.signal(:id, 'go', '"second"');
SELECT saga.cancel(:id, 'no more') = :id AS cancelled;
SELECT saga.retry(:id, 'now') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT verb, step, outcome FROM saga.requests WHERE saga_id = :id ORDER BY id;

-- Cancelled on the way to a savepoint: all the way.
SELECT saga.define('point_cancel',
    saga.step('s', 'saga_test.act', 'saga_test.act', savepoint => true),
    saga.step('b', 'saga_test.act', 'saga_test.act', compensation_retry => saga.retry_policy(3, '1 day', '1 day')),
    saga.step('c', 'saga_test.act', 'saga_test.act'));
SELECT saga.begin('point_cancel', '{"fail": {"action c": 0, "compensation b": 1}}') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.cancel(:id, 'no more') = :id AS cancelled;
SELECT saga.retry(:id, 'now') = :id AS retried;
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- Wrong ones.
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', pivot => true, savepoint => true));
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', pivot => true), saga.step('b', 'saga_test.act', savepoint => true));
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', savepoint => true, and_then => 'a'));
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', savepoint => true, and_then => 'z'));
SELECT saga.define('point_wrong', saga.step('z', 'saga_test.act'), saga.step('a', 'saga_test.act', savepoint => true, and_then => 'z'));
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', savepoint => true, recoveries => 0));
SELECT saga.define('point_wrong', saga.step('a', 'saga_test.act', recoveries => 2));
RESET ROLE;
DROP FUNCTION saga_test.rounds, saga_test.act_round;
