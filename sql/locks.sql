--
-- Semantic locks: sagas whose lock is equal take turns.
--
SELECT setval('saga.saga_id_seq', 27000000, false) AS ids_begin_at;
CREATE FUNCTION saga_test.takes_lock(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.lock(context #>> '{input,lock}', (context #>> '{input,timeout}')::interval);
    PERFORM saga_test.act(context);
    PERFORM saga.lock(context #>> '{input,lock}');
    RETURN 'has it';
END $$;
CREATE FUNCTION saga_test.swallows_lock(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        PERFORM saga.lock(context #>> '{input,lock}');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    PERFORM saga_test.act(context);
    RETURN 'has it';
END $$;
SET ROLE regress_saga_owner;
SELECT saga.define('taking_turns', saga.step('a', 'saga_test.act', 'saga_test.act'), saga.signal_step('go'), saga.step('b', 'saga_test.act'));
SELECT saga.configure('taking_turns', exclusive => 'sku', exclusive_timeout => '10 min');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definitions WHERE name = 'taking_turns';
-- Two of the same, one of another.
SELECT saga.begin('taking_turns', '{"sku": "A"}') AS first, saga.begin('taking_turns', '{"sku": "A"}') AS second, saga.begin('taking_turns', '{"sku": "B"}') AS third \gset
SELECT saga_test.waits_for(:first), saga_test.waits_for(:second), saga_test.waits_for(:third);
SELECT lock, kind, saga_id - 27000000 AS saga, status, position, expires_at IS NOT NULL AS expires,
    ARRAY(SELECT h - 27000000 FROM unnest(held_by) h) AS held_by FROM saga.locks ORDER BY lock, status, position;
SELECT count(*) > 0 AS explained FROM saga.explain(:second) WHERE detail LIKE '%lock%';
SELECT saga.signal(id, 'go') FROM unnest(ARRAY[:first, :second, :third]::bigint[]) id;
SELECT saga_test.outcome(:first), saga_test.outcome(:second), saga_test.outcome(:third);
SELECT min(n) FILTER (WHERE saga_id = :second AND what = 'action a') > max(n) FILTER (WHERE saga_id = :first) AS in_turn FROM saga_test.log WHERE saga_id IN (:first, :second);
SELECT count(*) FROM saga.locks;
-- The input must have it.
SELECT saga.begin('taking_turns', '{}');
SELECT saga.begin('taking_turns', '{"sku": ["A"]}');
-- Waiting ends.
SELECT saga.configure('taking_turns', exclusive_timeout => '100 ms');
SELECT saga.begin('taking_turns', '{"sku": "A"}') AS first \gset
SELECT saga_test.waits_for(:first);
SELECT saga.begin('taking_turns', '{"sku": "A"}') AS second \gset
SELECT saga_test.outcome(:second);
SELECT error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message FROM saga.sagas WHERE saga_id = :second;
-- A cancelled one leaves the line, and one that ends gives it back.
SELECT saga.configure('taking_turns', exclusive_timeout => '0');
SELECT saga.begin('taking_turns', '{"sku": "A"}') AS second, saga.begin('taking_turns', '{"sku": "A"}') AS third \gset
SELECT saga_test.waits_for(:second), saga_test.waits_for(:third);
SELECT saga.cancel(:second) = :second AS cancelled;
SELECT saga_test.outcome(:second);
SELECT saga.cancel(:first) = :first AS cancelled;
SELECT saga_test.outcome(:first);
SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''signal''', :third), 'its turn', :third);
SELECT saga.signal(:third, 'go');
SELECT saga_test.outcome(:third);
SELECT saga.configure('taking_turns', exclusive => '');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definitions WHERE name = 'taking_turns';

-- Of a step, from there on, until another one has ended.
SELECT saga.define('turns_step',
    saga.step('before', 'saga_test.act'),
    saga.step('inside', 'saga_test.act', 'saga_test.act', exclusive => 'sku', exclusive_until => 'until'),
    saga.signal_step('until'),
    saga.signal_step('later'));
SELECT saga.begin('turns_step', '{"sku": 7}') AS first \gset
SELECT saga_test.waits_for(:first);
SELECT saga.begin('turns_step', '{"sku": 7}') AS second \gset
SELECT saga_test.waits_for(:second);
SELECT step, lock, status, until_step FROM saga.locks ORDER BY status;
SELECT saga.signal(:first, 'until');
SELECT saga_test.wait_until(format('(SELECT waiting_for FROM saga.sagas WHERE saga_id = %s) = ''signal''', :second), 'its turn', :second);
SELECT saga.signal(:first, 'later'), saga.signal(:second, 'until'), saga.signal(:second, 'later');
SELECT saga_test.outcome(:first), saga_test.outcome(:second);
SELECT saga.begin('turns_step', '{"sku": null}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;

-- In a step function.
SELECT saga.define('turns_call', saga.step('a', 'saga_test.takes_lock', 'saga_test.act'), saga.signal_step('go'));
SELECT saga.begin('turns_call', '{"lock": "stock-A", "timeout": "1 hour"}') AS first \gset
SELECT saga_test.waits_for(:first);
SELECT saga.begin('turns_call', '{"lock": "stock-A", "timeout": "1 hour"}') AS second \gset
SELECT saga_test.waits_for(:second);
SELECT lock, step, status FROM saga.locks ORDER BY status;
SELECT saga.signal(:first, 'go'), saga.signal(:second, 'go');
SELECT saga_test.outcome(:first), saga_test.outcome(:second);
SELECT saga_test.log(:first), saga_test.log(:second);
SELECT saga.begin('turns_call', '{"lock": "stock-A", "timeout": "1 hour"}') AS first \gset
SELECT saga_test.waits_for(:first);
SELECT saga.begin('turns_call', '{"lock": "stock-A", "timeout": "50 ms"}') AS second \gset
SELECT saga_test.outcome(:second);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :second;
SELECT saga.signal(:first, 'go');
SELECT saga_test.outcome(:first);
-- Swallowing the error does not help.
SELECT saga.define('turns_swallow', saga.step('a', 'saga_test.swallows_lock'));
SELECT saga.begin('turns_swallow', '{"lock": "stock-A"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);
-- Wrong ones.
SELECT saga.lock('outside of a step');
SELECT saga.begin('turns_call', '{"lock": "", "timeout": "1 s"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('turns_call', '{"lock": null, "timeout": "1 s"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('turns_call', '{"lock": "x", "timeout": "-1 s"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;

-- Two that wait for each other: the younger one goes back at once.
SELECT saga.define('circle',
    saga.step('one', 'saga_test.act', 'saga_test.act', exclusive => 'first'),
    saga.signal_step('go'),
    saga.step('two', 'saga_test.act', 'saga_test.act', exclusive => 'second'));
SELECT saga.begin('circle', '{"first": "X", "second": "Y"}') AS first, saga.begin('circle', '{"first": "Y", "second": "X"}') AS second \gset
SELECT saga_test.waits_for(:first), saga_test.waits_for(:second);
SELECT saga.signal(:first, 'go'), saga.signal(:second, 'go');
SELECT saga_test.outcome(:first), saga_test.outcome(:second);
SELECT error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message FROM saga.sagas WHERE saga_id = :second;
-- Three.
SELECT saga.begin('circle', '{"first": "X", "second": "Y"}') AS a, saga.begin('circle', '{"first": "Y", "second": "Z"}') AS b, saga.begin('circle', '{"first": "Z", "second": "X"}') AS c \gset
SELECT saga_test.waits_for(:a), saga_test.waits_for(:b), saga_test.waits_for(:c);
SELECT saga.signal(:a, 'go'), saga.signal(:b, 'go'), saga.signal(:c, 'go');
SELECT saga_test.outcome(:a), saga_test.outcome(:b), saga_test.outcome(:c);
-- A child shares what its parent has.
SELECT saga.define('circle_kid', saga.step('k', 'saga_test.act', 'saga_test.act', exclusive => 'first'));
SELECT saga.define('circle_mother', saga.step('m', 'saga_test.act', 'saga_test.act', exclusive => 'first'), saga.child_step('kid', definition => 'circle_kid'));
SELECT saga.begin('circle_mother', '{"first": "X"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*) FROM saga.locks;
RESET ROLE;
DROP FUNCTION saga_test.takes_lock, saga_test.swallows_lock;
