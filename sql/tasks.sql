--
-- Participants outside: tasks are offered, claimed under a lease, and answered;
-- what an answer, its absence, and people do to the saga.  How participants meet
-- each other, and the rest of the server, is in the isolation tests.
--
SELECT setval('saga.saga_id_seq', 41000000, false) AS ids_begin_at, setval('saga.task_id_seq', 41000000, false) AS of_tasks;
-- Claim so many tasks, as soon as they are there.
CREATE FUNCTION saga_test.take(queue text, tasks integer DEFAULT 1, lease interval DEFAULT '1 hour')
RETURNS TABLE (id bigint, lease_token uuid, saga_id bigint, definition text, step text, element integer,
    operation saga.operation, task text, payload jsonb, attempt integer, idempotency_key text,
    traceparent text, lease_until timestamptz)
LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
    n integer;
BEGIN
    LOOP
        RETURN QUERY SELECT * FROM saga.claim_tasks(queue, tasks, lease, 'regress');
        GET DIAGNOSTICS n = ROW_COUNT;
        tasks := tasks - n;
        EXIT WHEN tasks = 0;
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for % more tasks of queue %', tasks, queue;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;
-- Wait until so many tasks of a saga have this status.
CREATE FUNCTION saga_test.have(id bigint, status text, tasks integer DEFAULT 1) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(
        format('(SELECT count(*) = %s FROM saga.tasks t WHERE t.saga_id = %s AND t.status = %L)', tasks, id, status),
        format('%s tasks of saga %s that are %s', tasks, id, status), id)
$$;
-- Wait until the engine has acted on all that was asked of a saga.
CREATE FUNCTION saga_test.applied(id bigint) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(format('NOT EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND outcome = ''pending'')', id),
        format('the answer to all requests of saga %s', id), id)
$$;
-- Wait until a saga waits for its next attempt.
CREATE FUNCTION saga_test.pauses(id bigint) RETURNS void LANGUAGE sql AS $$
    SELECT saga_test.wait_until(format('(SELECT waiting_for = ''next attempt'' FROM saga.sagas WHERE saga_id = %s)', id),
        format('saga %s to wait for its next attempt', id), id)
$$;
-- The tasks of a saga, in the order in which they were offered.
CREATE FUNCTION saga_test.tasks(id bigint)
RETURNS TABLE (step text, element integer, operation saga.operation, task text, attempt integer, status text)
LANGUAGE sql AS $$
    SELECT t.step, t.element, t.operation, t.task, t.attempt, t.status FROM saga.tasks t WHERE t.saga_id = $1 ORDER BY t.id
$$;
-- Was an action offered after a compensation of it?
CREATE FUNCTION saga_test.hanging(id bigint) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*) FROM saga.tasks a JOIN saga.tasks c USING (saga_id, step, element)
    WHERE a.saga_id = $1 AND a.operation = 'action' AND c.operation = 'compensation' AND a.id > c.id
$$;
CREATE FUNCTION saga_test.ship(charge jsonb, amount integer) RETURNS text LANGUAGE sql AS $$ SELECT amount || ' for ' || charge::text $$;
CREATE FUNCTION saga_test.echo(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT context $$;
CREATE FUNCTION saga_test.never() RETURNS boolean LANGUAGE sql AS $$ SELECT false $$;
CREATE FUNCTION saga_test.size(context jsonb) RETURNS integer LANGUAGE sql AS $$ SELECT length(context #>> '{results,charge,text}') $$;
CREATE FUNCTION saga_test.fail_round(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF context -> 'round' IS NULL AND context ->> 'operation' = 'action' THEN
        PERFORM saga.fail('the first round fails');
    END IF;
    RETURN '1';
END $$;
-- An answer that is rolled back with its subtransaction, and one that is kept.
CREATE FUNCTION saga_test.answer_in_subtransactions(task bigint, token uuid, id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        INSERT INTO saga_test.log (saga_id, what) VALUES (id, 'undone');
        PERFORM saga.complete_task(task, token, '"undone"');
        RAISE EXCEPTION 'undo';
    EXCEPTION WHEN raise_exception THEN
        INSERT INTO saga_test.log (saga_id, what) VALUES (id, 'kept');
    END;
    BEGIN
        PERFORM saga.complete_task(task, token, '"kept"');
        PERFORM saga.complete_task(task, token, '"another"');
    EXCEPTION WHEN SQLSTATE 'SG031' THEN
        PERFORM saga.complete_task(task, token, '"kept"');
    END;
END $$;
-- A claim that is rolled back with its subtransaction: twice the same task.
CREATE FUNCTION saga_test.claim_in_subtransactions(queue text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    claimed bigint[];
BEGIN
    FOR i IN 1 .. 2 LOOP
        BEGIN
            claimed[i] := id FROM saga.claim_tasks(queue);
            RAISE EXCEPTION 'undo';
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END LOOP;
    RETURN CASE WHEN claimed[1] = claimed[2] THEN 'the same' ELSE 'not the same' END;
END $$;
SET ROLE regress_saga_owner;

------------------------------------------------------------------------------
-- Claim and complete
------------------------------------------------------------------------------
SELECT saga.define('task',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('charge', 'tasks', action => 'charge card', compensation => 'refund card'),
    saga.step('ship', 'saga_test.ship'));
SELECT saga.begin('task', '{"amount": 7}', key => 'k', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT queue, status, saga_id = :id AS its, definition, step, element, operation, task, attempt,
    offered_at <= now() AS offered, claimed_at, lease_until, expires_at, ended_at, participant, extensions, progress, cancel_requested
FROM saga.tasks WHERE saga_id = :id;
SELECT saga_test.waits_for(:id) IS NOT NULL AS waits;
SELECT *, lease_until > now() + interval '59 s' AS minute, pg_typeof(id), pg_typeof(lease_token)
FROM (SELECT definition, step, element, operation, task, attempt, lease_until, id, lease_token,
             saga_id = :id AS its, payload ->> 'idempotency_key' = idempotency_key AS keyed,
             traceparent ~ '^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$' AND payload ->> 'traceparent' = traceparent AS traced
      FROM saga.claim_tasks('tasks', lease => '1 min', participant => 'host/1')) t \gset claimed_
\echo :claimed_definition :claimed_step :claimed_element :claimed_operation :claimed_task :claimed_attempt
\echo :claimed_traced :claimed_its :claimed_keyed
SELECT status, claimed_at <= now() AS claimed, lease_until = :'claimed_lease_until' AS lease, expires_at, participant, extensions, cancel_requested
FROM saga.tasks WHERE saga_id = :id;
-- Nobody else gets it.
SELECT count(*) FROM saga.claim_tasks('tasks');
SELECT saga.complete_task(:claimed_id, :'claimed_lease_token', '{"receipt": 42}');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT ended_at <= now() AS ended, lease_until, participant FROM saga.tasks WHERE saga_id = :id;

-- The payload is the context that a local step beside it gets.
SELECT saga.define('task_payload',
    saga.step('first', 'saga_test.act'),
    saga.step('local', 'saga_test.echo', after => '{first}'),
    saga.external_step('outside', 'tasks', after => '{first}'));
SELECT saga.begin('task_payload', '{"a": [1, {"b": null}], "text": "\u00e4\n\""}', key => 'payload') AS id \gset
SELECT id AS task, lease_token AS token, payload - 'step' - 'idempotency_key' - 'traceparent' AS payload, payload ->> 'step' AS step, task AS told
FROM saga_test.take('tasks') \gset
\echo :step :told
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT result - 'step' - 'idempotency_key' - 'traceparent' = :'payload' AS same, result ? 'results' AS whole
FROM saga.steps WHERE saga_id = :id AND step = 'local';
SELECT step, status, result FROM saga.steps WHERE saga_id = :id AND step = 'outside';

-- The oldest first, and no more than asked for.
SELECT saga.define('task_one', saga.external_step('one', 'tasks_order', compensation => 'undo one', retry => saga.retry_policy(3, '5 ms')));
SELECT saga.begin('task_one', '{"n": 1}') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.begin('task_one', '{"n": 2}') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.begin('task_one', '{"n": 3}') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.begin('task_one', '{"n": 4}') AS id \gset
SELECT saga_test.have(:id, 'ready');
CREATE TEMPORARY TABLE mine AS SELECT 1 AS claim, * FROM saga.claim_tasks('tasks_order', 1);
INSERT INTO mine SELECT 2, * FROM saga.claim_tasks('tasks_order', 2);
INSERT INTO mine SELECT 3, * FROM saga.claim_tasks('tasks_order', 2);
SELECT claim, payload #> '{input,n}' AS n FROM mine ORDER BY claim, saga_id;
SELECT count(DISTINCT id), count(DISTINCT lease_token), count(DISTINCT idempotency_key) FROM mine;
SELECT count(saga.complete_task(id, lease_token, to_jsonb(claim))) FROM mine;
SELECT * FROM saga_test.all_ended('task_one');

-- Wrong claims.
SELECT * FROM saga.claim_tasks(NULL);
SELECT * FROM saga.claim_tasks('');
SELECT * FROM saga.claim_tasks('no such queue');
SELECT * FROM saga.claim_tasks(repeat('x', 59));
SELECT * FROM saga.claim_tasks('tasks', NULL);
SELECT * FROM saga.claim_tasks('tasks', 0);
SELECT * FROM saga.claim_tasks('tasks', -1);
SELECT * FROM saga.claim_tasks('tasks', -2147483648);
SELECT * FROM saga.claim_tasks('tasks', lease => NULL);
SELECT * FROM saga.claim_tasks('tasks', lease => '0');
SELECT * FROM saga.claim_tasks('tasks', lease => '-1 s');
SELECT * FROM saga.claim_tasks('tasks', lease => '1 month -31 days');
SELECT * FROM saga.claim_tasks('tasks', lease => '1 day 1 us');
SELECT * FROM saga.claim_tasks('tasks', lease => '178000000 years');
SELECT * FROM saga.claim_tasks('tasks', 1001);
SELECT * FROM saga.claim_tasks('tasks', 2147483647);
SELECT * FROM saga.claim_tasks('tasks', participant => '');
SELECT * FROM saga.claim_tasks('tasks', participant => repeat('x', 201));
-- The largest there are.
SELECT saga.begin('task_one') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT id AS task, lease_token AS token, lease_until >= now() + interval '1 day' AS long FROM saga.claim_tasks('tasks_order', 1000, '1 day', repeat('x', 200)) \gset
\echo :long
SELECT status, length(participant) FROM saga.tasks WHERE saga_id = :id;

------------------------------------------------------------------------------
-- Answers
------------------------------------------------------------------------------
-- Nothing that is not this task's lease is accepted.
SELECT saga.complete_task(-1, :'token');
SELECT saga.complete_task(9223372036854775807, :'token');
SELECT saga.complete_task(NULL, :'token');
SELECT saga.complete_task(:task, NULL);
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, 'not a token');
SELECT saga.complete_task(:task, '00000000-0000-0000-0000-000000000000');
SELECT saga.fail_task(:task, '00000000-0000-0000-0000-000000000000', 'no');
SELECT saga.extend_lease(:task, '00000000-0000-0000-0000-000000000000');
SELECT saga.release_task(:task, '00000000-0000-0000-0000-000000000000');
SELECT saga.fail_task(-1, :'token', 'no');
SELECT saga.extend_lease(-1, :'token');
SELECT saga.release_task(-1, :'token');
SELECT saga.fail_task(NULL, :'token', 'no');
SELECT saga.extend_lease(NULL, :'token');
SELECT saga.extend_lease(:task, NULL);
SELECT saga.release_task(NULL, :'token');
SELECT saga.release_task(:task, NULL);
\set VERBOSITY default
SELECT saga.extend_lease(:task, :'token', NULL);
SELECT saga.extend_lease(:task, :'token', '0');
SELECT saga.extend_lease(:task, :'token', '-1 s');
SELECT saga.fail_task(:task, :'token', NULL);
SELECT saga.fail_task(:task, :'token', '');
SELECT saga.fail_task(:task, :'token', 'no', retryable => NULL);
SELECT saga.fail_task(:task, :'token', 'no', retry_after => '-1 s');
SELECT saga.fail_task(:task, :'token', 'no', outcome_unknown => NULL);
SELECT saga.fail_task(:task, :'token', 'no', sqlstate => 'abc');
SELECT saga.fail_task(:task, :'token', 'no', sqlstate => '00000');
SELECT saga.fail_task(:task, :'token', 'no', sqlstate => 'p0001');
SELECT saga.fail_task(:task, :'token', 'no', sqlstate => '');
-- It is claimed still.  The same answer is accepted twice, another one is not.
SELECT status FROM saga.tasks WHERE saga_id = :id;
SELECT saga.complete_task(:task, :'token', '{"a": 1, "b": [2]}');
SELECT saga.complete_task(:task, :'token', '{"b": [2], "a": 1}');
\set VERBOSITY terse
SELECT saga.complete_task(:task, :'token', '{"a": 2}');
\set VERBOSITY default
SELECT saga_test.outcome(:id);
SELECT saga.complete_task(:task, :'token', '{"a": 1, "b": [2]}');
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', '{"a": 2}');
SELECT saga.complete_task(:task, :'token');
SELECT saga.fail_task(:task, :'token', 'no');
SELECT saga.complete_task(:task, '00000000-0000-0000-0000-000000000000', '{"a": 1, "b": [2]}');
SELECT saga.extend_lease(:task, :'token');
SELECT saga.release_task(:task, :'token');
\set VERBOSITY default
SELECT * FROM saga_test.story(:id);
-- A failure is an answer, too.
SELECT saga.begin('task_one') AS id \gset
SELECT id AS task, lease_token AS token, idempotency_key AS key FROM saga_test.take('tasks_order') \gset
SELECT saga.fail_task(:task, :'token', 'declined', detail => 'by the bank');
SELECT saga.fail_task(:task, :'token', 'declined', detail => 'by the bank');
\set VERBOSITY sqlstate
SELECT saga.fail_task(:task, :'token', 'declined', false, detail => 'by the bank');
SELECT saga.fail_task(:task, :'token', 'declined');
SELECT saga.complete_task(:task, :'token');
\set VERBOSITY default
-- The next attempt has the same idempotency key, and another id and token.
SELECT id <> :task AS other_id, lease_token <> :'token' AS other_token, idempotency_key = :'key' AS same_key, attempt, payload -> 'attempt' AS in_payload, id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset second_
\echo :second_other_id :second_other_token :second_same_key :second_attempt :second_in_payload
\set VERBOSITY sqlstate
SELECT saga.complete_task(:second_task, :'token');
\set VERBOSITY default
-- The first one's answer, again, while the second is in work.
SELECT saga.fail_task(:task, :'token', 'declined', detail => 'by the bank');
SELECT saga.complete_task(:second_task, :'second_token', 'null');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT * FROM saga_test.tasks(:id);

------------------------------------------------------------------------------
-- Failures
------------------------------------------------------------------------------
SELECT saga.define('task_fail',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('charge', 'tasks_fail', compensation => 'refund',
        retry => saga.retry_policy(2, '5 ms', fail_on => '{40P01}')));
-- Out of attempts.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'first') FROM saga_test.take('tasks_fail');
SELECT saga.fail_task(id, lease_token, 'second') FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga_test.log(:id);
SELECT error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message FROM saga.sagas WHERE saga_id = :id;
-- For good: that it had no effect is known, so it is not compensated.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'declined', retryable => false) FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.tasks(:id);
-- ... or that is unknown, so it is.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'no answer', retryable => false, outcome_unknown => true) FROM saga_test.take('tasks_fail');
SELECT id AS task, lease_token AS token, operation, task AS told, payload -> 'outcome_unknown' AS unknown, payload -> 'results' AS results FROM saga_test.take('tasks_fail') \gset
\echo :operation :told :unknown :results
SELECT saga.complete_task(:task, :'token', '"not charged"');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
-- Unknown once is unknown for good, whatever the next attempt says.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'no answer', outcome_unknown => true) FROM saga_test.take('tasks_fail');
SELECT saga.fail_task(id, lease_token, 'declined', retryable => false) FROM saga_test.take('tasks_fail');
SELECT id AS task, lease_token AS token, operation, payload -> 'outcome_unknown' AS unknown FROM saga_test.take('tasks_fail') \gset
\echo :operation :unknown
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
-- ... unless it succeeds: then it is known.
SELECT saga.define('task_known',
    saga.external_step('charge', 'tasks_fail', compensation => 'refund', retry => saga.retry_policy(2, '5 ms')),
    saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_known', '{"fail": {"action last": 0}}') AS id \gset
SELECT saga.fail_task(id, lease_token, 'no answer', outcome_unknown => true) FROM saga_test.take('tasks_fail');
SELECT saga.complete_task(id, lease_token, '"receipt"') FROM saga_test.take('tasks_fail');
SELECT id AS task, lease_token AS token, operation, payload ? 'outcome_unknown' AS unknown, payload -> 'results' AS results FROM saga_test.take('tasks_fail') \gset
\echo :operation :unknown :results
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
-- A SQLSTATE of its own: worth another attempt, unless the policy says no.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'for the policy', sqlstate => '23505') FROM saga_test.take('tasks_fail');
SELECT attempt, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'never passing', sqlstate => '40P01') FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
-- Not before the time that the participant names; a person may be faster.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'closed', retry_after => '1 day') FROM saga_test.take('tasks_fail');
SELECT saga_test.pauses(:id);
SELECT next_attempt_at > now() + interval '23 hours' AS tomorrow FROM saga.sagas WHERE saga_id = :id;
SELECT count(*) FROM saga.claim_tasks('tasks_fail');
SELECT saga.retry(:id, 'it is open') = :id AS retried;
SELECT attempt, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
-- ... or do it by hand.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'closed', retry_after => '1 day') FROM saga_test.take('tasks_fail');
SELECT saga_test.pauses(:id);
SELECT saga.skip(:id, 'by telephone') = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
-- retry_after is no way around the policy.
SELECT saga.begin('task_fail') AS id \gset
SELECT saga.fail_task(id, lease_token, 'closed', retry_after => '1 ms') FROM saga_test.take('tasks_fail');
SELECT saga.fail_task(id, lease_token, 'closed', retry_after => '1 ms') FROM saga_test.take('tasks_fail');
SELECT saga_test.outcome(:id);
SELECT attempts FROM saga.steps WHERE saga_id = :id AND step = 'charge';

------------------------------------------------------------------------------
-- Several in one call
------------------------------------------------------------------------------
SELECT saga.define('task_many', saga.external_step('many', 'tasks_many', foreach => 'items', compensation => 'undo', retry => saga.retry_policy(2, '5 ms')));
SELECT saga.begin('task_many', '{"items": [0, 1, 2, 3, 4, 5]}') AS id \gset
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga_test.take('tasks_many', 6);
SELECT element, payload -> 'element' AS value, payload -> 'index' AS index, attempt FROM mine ORDER BY element;
SELECT count(DISTINCT idempotency_key) FROM mine;
SELECT array_agg(id ORDER BY element) AS ids, array_agg(lease_token ORDER BY element) AS tokens FROM mine \gset
-- Wrong ones.
\set wrong '''00000000-0000-0000-0000-000000000000''::uuid'
SELECT saga.complete_tasks(NULL, NULL);
SELECT saga.complete_tasks('{}', NULL);
SELECT saga.complete_tasks('{}', '{}');
SELECT saga.complete_tasks('{}', '{}', NULL, NULL);
SELECT saga.complete_tasks(:'ids', '{}');
SELECT saga.complete_tasks(:'ids', :'tokens', '{1}');
SELECT saga.complete_tasks(:'ids'::bigint[] || NULL::bigint, :'tokens'::uuid[] || :wrong);
SELECT saga.complete_tasks(:'ids'::bigint[], :'tokens'::uuid[] || :wrong);
SELECT saga.complete_tasks('{{1,2},{3,4}}', ARRAY[:wrong, :wrong, :wrong, :wrong]::uuid[]);
SELECT saga.fail_tasks(:'ids', :'tokens', NULL);
SELECT saga.fail_tasks(:'ids', :'tokens', '{no}');
SELECT saga.fail_tasks(:'ids', :'tokens', '{a,b,c,d,e,NULL}');
SELECT saga.extend_leases(:'ids', '{}');
SELECT saga.extend_leases(:'ids', :'tokens', '0');
SELECT saga.extend_leases(:'ids', :'tokens', progress => '{1}');
SELECT saga.release_tasks(:'ids', NULL);
-- One lease that is lost is an error for all ...
SELECT id, lease_token FROM mine WHERE element = 0 \gset
\set VERBOSITY sqlstate
SELECT saga.complete_tasks(ARRAY[:id, -1], ARRAY[:'lease_token', :wrong]::uuid[]);
SELECT saga.fail_tasks(ARRAY[:id, -1], ARRAY[:'lease_token', :wrong]::uuid[], '{a,b}');
SELECT saga.extend_leases(ARRAY[:id, -1], ARRAY[:'lease_token', :wrong]::uuid[]);
SELECT saga.release_tasks(ARRAY[:id, -1], ARRAY[:'lease_token', :wrong]::uuid[]);
\set VERBOSITY default
SELECT DISTINCT status FROM saga.tasks WHERE id = ANY (:'ids');
-- ... or left out.
SELECT e.id = :id AS its, lease_until > now() + interval '119 min' AS extended, cancel_requested
FROM saga.extend_leases(ARRAY[-1, :id], ARRAY[:wrong, :'lease_token']::uuid[], '2 hours', ARRAY['0', '{"done": 0.5}']::jsonb[], skip_lost => true) e;
SELECT progress, extensions FROM saga.tasks WHERE id = :id;
SELECT m.element FROM saga.complete_tasks(ARRAY[-1, :id], ARRAY[:wrong, :'lease_token']::uuid[], '{"\"lost\"","\"zero\""}', true) c JOIN mine m ON m.id = c;
-- Again with others: what is the same is accepted; the one among them that is
-- another answer is an error, whatever skip_lost says.
SELECT id, lease_token FROM mine WHERE element = 1 \gset next_
SELECT count(*) FROM saga.complete_tasks(ARRAY[:id, :next_id], ARRAY[:'lease_token', :'next_lease_token']::uuid[], '{"\"zero\"","\"one\""}');
\set VERBOSITY sqlstate
SELECT saga.complete_tasks(ARRAY[:id, :next_id], ARRAY[:'lease_token', :'next_lease_token']::uuid[], '{"\"zero\"","\"two\""}');
SELECT saga.complete_tasks(ARRAY[:id, :next_id], ARRAY[:'lease_token', :'next_lease_token']::uuid[], '{"\"zero\"","\"two\""}', true);
\set VERBOSITY default
-- The same task twice in one call.
SELECT id, lease_token FROM mine WHERE element = 2 \gset next_
SELECT count(*) FROM saga.complete_tasks(ARRAY[:next_id, :next_id], ARRAY[:'next_lease_token', :'next_lease_token']::uuid[], '{2,2}');
SELECT count(saga.complete_task(:next_id, :'next_lease_token', '2'));
-- Some fail, one is given back, one is done without a result.
SELECT m.element FROM saga.fail_tasks(
    (SELECT array_agg(id ORDER BY element) FROM mine WHERE element IN (3, 4)),
    (SELECT array_agg(lease_token ORDER BY element) FROM mine WHERE element IN (3, 4)),
    '{three,four}', retry_after => '1 ms') f JOIN mine m ON m.id = f ORDER BY 1;
SELECT count(*) FROM mine CROSS JOIN LATERAL saga.release_tasks(ARRAY[id], ARRAY[lease_token]) WHERE element = 5;
TRUNCATE mine;
INSERT INTO mine SELECT 2, * FROM saga_test.take('tasks_many', 3);
SELECT element, attempt FROM mine ORDER BY element;
SELECT count(*) FROM saga.complete_tasks((SELECT array_agg(id ORDER BY element) FROM mine), (SELECT array_agg(lease_token ORDER BY element) FROM mine),
    '{"{\"deep\": [1, null]}",null,NULL}');
SELECT saga_id AS id FROM mine LIMIT 1 \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT element, attempt, sqlstate, message FROM saga.attempts WHERE saga_id = :id ORDER BY element;

------------------------------------------------------------------------------
-- Leases
------------------------------------------------------------------------------
SELECT saga.define('task_lease', saga.external_step('work', 'tasks_lease', compensation => 'undo', timeout => '1 hour', retry => saga.retry_policy(2, '5 ms')));
-- One that is over: the attempt has failed, the task is offered again.
SELECT saga.begin('task_lease') AS id \gset
SELECT id AS task, lease_token AS token, idempotency_key AS key FROM saga_test.take('tasks_lease', 1, '1 ms') \gset
SELECT saga_test.have(:id, 'expired');
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', '"too late"');
SELECT saga.fail_task(:task, :'token', 'too late');
SELECT saga.extend_lease(:task, :'token');
SELECT saga.release_task(:task, :'token');
\set VERBOSITY default
SELECT count(*) FROM saga.complete_tasks(ARRAY[:task], ARRAY[:'token']::uuid[], skip_lost => true);
SELECT idempotency_key = :'key' AS same_key, attempt, id AS task, lease_token AS token FROM saga_test.take('tasks_lease') \gset second_
\echo :second_same_key :second_attempt
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', '"too late"');
SELECT saga.complete_task(:second_task, :'token', '"too late"');
\set VERBOSITY default
SELECT saga.complete_task(:second_task, :'second_token', '"in time"');
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.tasks(:id);
-- All of them: whether it was done is not known.
SELECT saga.begin('task_lease') AS id \gset
SELECT count(*) FROM saga_test.take('tasks_lease', 1, '1 ms');
SELECT saga_test.have(:id, 'expired');
SELECT count(*) FROM saga_test.take('tasks_lease', 1, '1 ms');
SELECT operation, attempt, payload -> 'outcome_unknown' AS unknown, id AS task, lease_token AS token FROM saga_test.take('tasks_lease') \gset
\echo :operation :attempt :unknown
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.tasks(:id);
-- Extended, with what has been done so far; never beyond the timeout of the attempt.
SELECT saga.begin('task_lease') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_lease', 1, '1 min') \gset
SELECT lease_until > now() + interval '1 min' AS later, cancel_requested FROM saga.extend_lease(:task, :'token', '10 min', '{"done": "half"}');
SELECT lease_until < expires_at AS within, progress, extensions FROM saga.tasks WHERE id = :task;
SELECT lease_until < now() + interval '1 min' AS shorter FROM saga.extend_lease(:task, :'token', '30 s');
SELECT progress, extensions FROM saga.tasks WHERE id = :task;
SELECT lease_until <= now() + interval '1 hour' AS bounded FROM saga.extend_lease(:task, :'token', '1 day', 'null');
SELECT lease_until = expires_at AS at_its_end, expires_at = claimed_at + interval '1 hour' AS timeout, progress, extensions FROM saga.tasks WHERE id = :task;
SELECT lease_until <= now() + interval '1 hour' AS bounded FROM saga.extend_lease(:task, :'token', '1 day');
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT saga.begin('task_lease') AS id \gset
SELECT id AS task, lease_token AS token, lease_until <= now() + interval '1 hour' AS bounded FROM saga_test.take('tasks_lease', 1, '1 day') \gset
\echo :bounded
-- Given back: the attempt does not count.
SELECT saga.release_task(:task, :'token');
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_lease') \gset second_
\echo :second_attempt
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token');
SELECT saga.release_task(:task, :'token');
\set VERBOSITY default
SELECT saga.release_task(:second_task, :'second_token');
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_lease') \gset
\echo :attempt
SELECT saga.fail_task(:task, :'token', 'once');
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_lease') \gset
\echo :attempt
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT attempts FROM saga.steps WHERE saga_id = :id;
-- The timeout of an attempt ends it, however long a lease was asked for.
SELECT saga.define('task_timeout', saga.external_step('work', 'tasks_lease', compensation => 'undo', timeout => '20 ms', retry => saga.retry_policy(1)));
SELECT saga.begin('task_timeout') AS id \gset
SELECT count(*) FROM saga_test.take('tasks_lease', 1, '1 day');
SELECT operation, payload -> 'outcome_unknown' AS unknown, id AS task, lease_token AS token FROM saga_test.take('tasks_lease') \gset
\echo :operation :unknown
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);

------------------------------------------------------------------------------
-- Compensations and confirmations
------------------------------------------------------------------------------
SELECT saga.define('task_undo',
    saga.external_step('charge', 'tasks_undo', compensation => 'refund', compensation_retry => saga.retry_policy(2, '5 ms')),
    saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_undo', '{"fail": {"action last": 0}}') AS id \gset
SELECT idempotency_key AS key, saga.complete_task(id, lease_token, '{"receipt": 1}') FROM saga_test.take('tasks_undo') \gset
SELECT operation, task AS told, idempotency_key <> :'key' AS other_key, payload -> 'results' AS results, payload ? 'outcome_unknown' AS unknown,
    id AS task, lease_token AS token FROM saga_test.take('tasks_undo') \gset
\echo :operation :told :other_key :results :unknown
-- It is retried, on any failure; out of attempts, or failed for good, it is stuck.
SELECT saga.fail_task(:task, :'token', 'not now', sqlstate => '23505');
SELECT attempt, saga.fail_task(id, lease_token, 'not now either') FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
SELECT step, operation, attempts FROM saga.stuck WHERE saga_id = :id;
SELECT saga.retry(:id, 'again') = :id AS retried;
SELECT attempt, saga.fail_task(id, lease_token, 'never', retryable => false) FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
SELECT saga.skip(:id, 'refunded by hand') = :id AS skipped;
SELECT saga_test.wait_until(format('(SELECT status FROM saga.sagas WHERE saga_id = %s) = ''compensated''', :id), 'its end', :id);
SELECT * FROM saga_test.story(:id);
SELECT saga_test.hanging(:id);
-- A lease of a compensation that is over.
SELECT saga.begin('task_undo', '{"fail": {"action last": 0}}') AS id \gset
SELECT saga.complete_task(id, lease_token) FROM saga_test.take('tasks_undo');
SELECT count(*) FROM saga_test.take('tasks_undo', 1, '1 ms');
SELECT saga_test.have(:id, 'expired');
SELECT operation, attempt, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
-- No compensation: nothing is offered on the way back.
SELECT saga.define('task_no_undo', saga.external_step('mail', 'tasks_undo'), saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_no_undo', '{"fail": {"action last": 0}}') AS id \gset
SELECT saga.complete_task(id, lease_token) FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- Try, confirm, cancel.
SELECT saga.define('task_confirm',
    saga.external_step('seat', 'tasks_undo', action => 'hold', compensation => 'free', confirmation => 'book', confirmation_retry => saga.retry_policy(0, '5 ms')),
    saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_confirm') AS id \gset
SELECT saga.complete_task(id, lease_token, '"12A"') FROM saga_test.take('tasks_undo');
SELECT operation, task, payload -> 'results' AS results, saga.fail_task(id, lease_token, 'not yet', sqlstate => '23505') FROM saga_test.take('tasks_undo');
SELECT operation, task, attempt, saga.complete_task(id, lease_token, '"booked"') FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT saga.begin('task_confirm', '{"fail": {"action last": 0}}') AS id \gset
SELECT saga.complete_task(id, lease_token, '"12A"') FROM saga_test.take('tasks_undo');
SELECT operation, task, saga.complete_task(id, lease_token, '"free"') FROM saga_test.take('tasks_undo');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);

-- A pivot: what comes after it is retried on any failure.
SELECT saga.define('task_pivot',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('go', 'tasks_pivot', pivot => true),
    saga.external_step('mail', 'tasks_pivot', retry => saga.retry_policy(3, '5 ms')));
SELECT saga.begin('task_pivot') AS id \gset
SELECT step, saga.complete_task(id, lease_token, '"gone"') FROM saga_test.take('tasks_pivot');
SELECT step, saga.fail_task(id, lease_token, 'full', sqlstate => '53100') FROM saga_test.take('tasks_pivot');
\set VERBOSITY sqlstate
SELECT saga.cancel(:id);
\set VERBOSITY default
SELECT step, attempt, saga.fail_task(id, lease_token, 'wrong', sqlstate => '23505') FROM saga_test.take('tasks_pivot');
SELECT step, attempt, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_pivot');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- A pivot that failed, for good, sends the saga back.
SELECT saga.begin('task_pivot') AS id \gset
SELECT step, saga.fail_task(id, lease_token, 'no', retryable => false) FROM saga_test.take('tasks_pivot');
SELECT saga_test.outcome(:id);
SELECT saga_test.log(:id);

-- Elements: so many at once; enough have succeeded.
SELECT saga.define('task_each',
    saga.external_step('each', 'tasks_each', compensation => 'undo', foreach => 'items', parallel => 2, quorum => 2, retry => saga.retry_policy(1)),
    saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_each', '{"items": ["a", "b", "c", "d"]}') AS id \gset
SELECT saga_test.have(:id, 'ready', 2);
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga.claim_tasks('tasks_each');
SELECT element, payload -> 'element' AS value FROM mine ORDER BY element;
SELECT saga.fail_task(id, lease_token, 'no', retryable => false) FROM mine WHERE element = 0;
SELECT element, saga.complete_task(id, lease_token, '"C"') FROM saga_test.take('tasks_each');
SELECT saga_test.have(:id, 'ready');
SELECT * FROM saga_test.tasks(:id) WHERE status = 'ready';
-- The second success: the one that waits is withdrawn.
SELECT saga.complete_task(id, lease_token, '"B"') FROM mine WHERE element = 1;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT element, status, result FROM saga.steps WHERE saga_id = :id AND step = 'each' ORDER BY element;
-- One that is in work then is awaited, and undone.
SELECT saga.begin('task_each', '{"items": ["a", "b", "c"], "fail": {}}') AS id \gset
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga_test.take('tasks_each', 2);
SELECT saga.complete_task(id, lease_token, '"A"') FROM mine WHERE element = 0;
INSERT INTO mine SELECT 2, * FROM saga_test.take('tasks_each', 1);
SELECT saga.complete_task(id, lease_token, '"B"') FROM mine WHERE element = 1;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE saga_id = %s AND element = 2)', :id), 'the third to be asked to give up', :id);
SELECT cancel_requested, saga.complete_task(id, lease_token, '"C"') FROM mine m CROSS JOIN LATERAL saga.extend_lease(m.id, m.lease_token) WHERE m.element = 2;
SELECT element, operation, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_each');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- It cannot be reached any more: all go back, what is in work at its end.
SELECT saga.begin('task_each', '{"items": ["a", "b", "c"]}') AS id \gset
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga_test.take('tasks_each', 2);
SELECT saga.fail_task(id, lease_token, 'no', retryable => false) FROM mine WHERE element = 0;
INSERT INTO mine SELECT 2, * FROM saga_test.take('tasks_each', 1);
SELECT saga.fail_task(id, lease_token, 'no', retryable => false) FROM mine WHERE element = 1;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE saga_id = %s AND element = 2)', :id), 'the third to be asked to give up', :id);
SELECT saga.fail_task(id, lease_token, 'given up', retryable => false) FROM mine WHERE element = 2;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);

-- A condition that is false: nothing is offered, now or later.
SELECT saga.define('task_only_if', saga.external_step('never', 'tasks_each', compensation => 'undo', only_if => 'saga_test.never'), saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_only_if') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.begin('task_only_if', '{"fail": {"action last": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status FROM saga.steps WHERE saga_id = :id ORDER BY position;
SELECT count(*) FROM saga.tasks WHERE saga_id = :id;

-- A savepoint: each round is an operation of its own.
SELECT saga.define('task_round',
    saga.step('s', 'saga_test.act', savepoint => true),
    saga.external_step('charge', 'tasks_each', compensation => 'refund'),
    saga.step('last', 'saga_test.fail_round'));
SELECT saga.begin('task_round') AS id \gset
SELECT idempotency_key AS key, payload ? 'round' AS round, saga.complete_task(id, lease_token, '1') FROM saga_test.take('tasks_each') \gset
SELECT operation, payload -> 'results' AS results, payload ? 'round' AS round, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_each');
SELECT operation, idempotency_key <> :'key' AS other_key, attempt, payload -> 'round' AS round, saga.complete_task(id, lease_token, '2') FROM saga_test.take('tasks_each');
SELECT saga_test.outcome(:id);
SELECT step, operation, round, status, result FROM saga.steps WHERE saga_id = :id ORDER BY round, position, operation;

------------------------------------------------------------------------------
-- Null compensation, and hanging actions
------------------------------------------------------------------------------
SELECT saga.define('task_cancel',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('charge', 'tasks_cancel', compensation => 'refund', retry => saga.retry_policy(2, '1 day', '1 day')));
-- Cancelled before anybody has claimed it.
SELECT saga.begin('task_cancel') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT * FROM saga_test.story(:id);
SELECT count(*) FROM saga.claim_tasks('tasks_cancel');
-- ... while it is in work, and completed.
SELECT saga.begin('task_cancel') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_cancel') \gset
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the cancel', :id);
SELECT cancel_requested FROM saga.extend_lease(:task, :'token');
SELECT status FROM saga.sagas WHERE saga_id = :id;
SELECT saga.complete_task(:task, :'token', '"receipt"');
SELECT operation, payload -> 'results' AS results, payload ? 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT * FROM saga_test.tasks(:id);
-- ... and failed: it is not attempted again, and there is nothing to undo.
SELECT saga.begin('task_cancel') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_cancel') \gset
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the cancel', :id);
SELECT saga.fail_task(:task, :'token', 'given up');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- ... and given back: nobody gets it.
SELECT saga.begin('task_cancel') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_cancel') \gset
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the cancel', :id);
SELECT saga.release_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- ... and its lease ends: nobody knows.
SELECT saga.begin('task_cancel') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_cancel') \gset
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the cancel', :id);
SELECT cancel_requested FROM saga.extend_lease(:task, :'token', '1 ms');
SELECT operation, payload -> 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', '"too late"');
\set VERBOSITY default
SELECT * FROM saga_test.tasks(:id);
SELECT saga_test.hanging(:id);
-- Its lease has ended, it waits for its next attempt: nobody knows either.
SELECT saga.begin('task_cancel') AS id \gset
SELECT count(*) FROM saga_test.take('tasks_cancel', 1, '1 ms');
SELECT saga_test.pauses(:id);
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.applied(:id);
SELECT operation, payload -> 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT saga_test.hanging(:id);
-- Its lease has ended, it is offered again and unclaimed: nobody knows of the first.
SELECT saga.begin('task_cancel') AS id \gset
SELECT count(*) FROM saga_test.take('tasks_cancel', 1, '1 ms');
SELECT saga_test.pauses(:id);
SELECT saga.retry(:id, 'now') = :id AS retried;
SELECT saga_test.have(:id, 'ready');
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.applied(:id);
SELECT operation, payload -> 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- ... and is paused in between: what is known does not change.
SELECT saga.begin('task_cancel') AS id \gset
SELECT count(*) FROM saga_test.take('tasks_cancel', 1, '1 ms');
SELECT saga_test.pauses(:id);
SELECT saga.retry(:id, 'now') = :id AS retried;
SELECT saga_test.have(:id, 'ready');
SELECT saga.pause(:id) = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT saga.resume(:id) = :id AS resumed;
SELECT saga.fail_task(id, lease_token, 'declined', retryable => false) FROM saga_test.take('tasks_cancel');
SELECT operation, payload -> 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- Completed and cancelled in one transaction.
SELECT saga.begin('task_cancel') AS id \gset
BEGIN;
SELECT saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga.cancel(:id) = :id AS cancelled;
COMMIT;
SELECT saga_test.outcome(:id);
SELECT saga.define('task_beside',
    saga.external_step('one', 'tasks_cancel', compensation => 'undo one', after => '{}'),
    saga.external_step('two', 'tasks_cancel', compensation => 'undo two', after => '{}'));
-- One branch fails: the other, unclaimed or in work.
SELECT saga.begin('task_beside') AS id \gset
SELECT saga_test.have(:id, 'ready', 2);
SELECT step AS failed, saga.fail_task(id, lease_token, 'no', retryable => false) FROM saga.claim_tasks('tasks_cancel', 1) \gset
SELECT saga_test.outcome(:id);
SELECT step = :'failed' AS failed, operation, status FROM saga.tasks WHERE saga_id = :id ORDER BY 1;
SELECT saga.begin('task_beside') AS id \gset
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga_test.take('tasks_cancel', 2);
SELECT saga.fail_task(id, lease_token, 'no', retryable => false) FROM mine WHERE step = 'one';
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE saga_id = %s AND step = ''two'')', :id), 'the other to be asked to give up', :id);
SELECT saga.complete_task(id, lease_token) FROM mine WHERE step = 'two';
SELECT step, operation, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id) ORDER BY 3, 1;

------------------------------------------------------------------------------
-- People, and time
------------------------------------------------------------------------------
-- Paused: what nobody has claimed is not claimable.
SELECT saga.begin('task_lease') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.pause(:id, 'wait') = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT count(*) FROM saga.claim_tasks('tasks_lease');
SELECT saga.resume(:id) = :id AS resumed;
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_lease') \gset
\echo :attempt
-- Paused in work: the answer counts, nothing follows until it is resumed.
SELECT saga.pause(:id, 'wait') = :id AS paused;
SELECT saga_test.applied(:id);
SELECT lease_until > now() AS extended, cancel_requested FROM saga.extend_lease(:task, :'token');
SELECT saga.fail_task(:task, :'token', 'once');
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.attempts WHERE saga_id = %s)', :id), 'the failure', :id);
SELECT count(*) FROM saga.claim_tasks('tasks_lease');
SELECT saga_test.outcome(:id);
SELECT saga.resume(:id) = :id AS resumed;
SELECT attempt, saga.complete_task(id, lease_token, '"done"') FROM saga_test.take('tasks_lease');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
-- Cancelled while paused.
SELECT saga.begin('task_lease') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.pause(:id) = :id AS paused;
SELECT saga_test.outcome(:id);
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.wait_until(format('(SELECT status FROM saga.sagas WHERE saga_id = %s) = ''compensated''', :id), 'its end', :id);
SELECT operation, status FROM saga_test.tasks(:id) ORDER BY 1, 2;
-- Abandoned: unclaimed, and in work.
SELECT saga.begin('task_lease') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.abandon(:id, 'not needed') = :id AS abandoned;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT count(*) FROM saga.claim_tasks('tasks_lease');
SELECT saga.begin('task_lease') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_lease') \gset
SELECT saga.abandon(:id, 'not needed') = :id AS abandoned;
SELECT saga_test.wait_until(format('(SELECT status FROM saga.sagas WHERE saga_id = %s) = ''abandoned''', :id), 'its end', :id);
SELECT saga.complete_task(:task, :'token', '"done"');
SELECT saga_test.have(:id, 'claimed', 0);
SELECT * FROM saga_test.tasks(:id);
SELECT status FROM saga.sagas WHERE saga_id = :id;

-- Nobody claims it in time.
SELECT saga.define('task_claim_timeout',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('charge', 'tasks_time', compensation => 'refund', claim_timeout => '20 ms', retry => saga.retry_policy(2, '5 ms')));
SELECT saga.begin('task_claim_timeout') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT count(*) FROM saga.claim_tasks('tasks_time');
-- It is no limit for one that is claimed.
SELECT saga.define('task_claim_in_time', saga.external_step('charge', 'tasks_time', claim_timeout => '1 day', timeout => '1 day'));
SELECT saga.begin('task_claim_in_time') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga.complete_task(id, lease_token) FROM saga_test.take('tasks_time');
SELECT saga_test.outcome(:id);
-- All attempts together take too long: between two of them, unclaimed, in work.
SELECT saga.define('task_total',
    saga.step('before', 'saga_test.act', 'saga_test.act'),
    saga.external_step('charge', 'tasks_time', compensation => 'refund', total_timeout => '1 s', retry => saga.retry_policy(0, '1 day', '1 day')));
SELECT saga.begin('task_total') AS id \gset
SELECT saga.fail_task(id, lease_token, 'not now') FROM saga_test.take('tasks_time');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga_test.log(:id);
SELECT saga.begin('task_total') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.tasks(:id);
SELECT saga.begin('task_total') AS id \gset
SELECT id AS task, lease_token AS token, lease_until < now() + interval '2 s' AS bounded FROM saga_test.take('tasks_time') \gset
\echo :bounded
SELECT operation, payload -> 'outcome_unknown' AS unknown, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_time');
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token');
\set VERBOSITY default
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.tasks(:id);
-- The deadline of the saga: unclaimed, and in work.
SELECT saga.begin('task_cancel', deadline => clock_timestamp() + interval '100 ms') AS id \gset
SELECT saga_test.outcome(:id);
SELECT error ->> 'sqlstate' AS sqlstate FROM saga.sagas WHERE saga_id = :id;
SELECT * FROM saga_test.tasks(:id) WHERE operation = 'compensation' OR status <> 'withdrawn';
SELECT saga.begin('task_cancel', deadline => clock_timestamp() + interval '2 s') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_cancel') \gset
SELECT saga_test.wait_until(format('(SELECT cancel_requested FROM saga.tasks WHERE id = %s)', :task), 'the deadline', :id);
SELECT saga.complete_task(:task, :'token');
SELECT operation, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_cancel');
SELECT saga_test.outcome(:id);
SELECT error ->> 'sqlstate' AS sqlstate FROM saga.sagas WHERE saga_id = :id;

-- Another version, while its task is offered, and while it is in work.
SELECT saga.define('task_move', saga.external_step('charge', 'tasks_move', compensation => 'refund'), saga.step('last', 'saga_test.act'));
SELECT saga.begin('task_move') AS id \gset offered_
SELECT saga_test.have(:offered_id, 'ready');
SELECT saga.begin('task_move') AS id \gset claimed_
SELECT saga_test.have(:claimed_id, 'ready');
SELECT saga.define('task_move',
    saga.step('first', 'saga_test.act', after => '{}'),
    saga.external_step('charge', 'tasks_move', compensation => 'refund all', after => '{}'),
    saga.step('last', 'saga_test.act', after => '{first,charge}'));
SELECT saga.migrate(:offered_id) = :offered_id AS asked;
SELECT saga_test.applied(:offered_id);
SELECT verb, outcome FROM saga.requests WHERE saga_id = :offered_id;
TRUNCATE mine;
INSERT INTO mine SELECT 1, * FROM saga_test.take('tasks_move', 2);
SELECT saga_id = :offered_id AS migrated, step, attempt FROM mine ORDER BY saga_id;
SELECT saga.complete_task(id, lease_token, '1') FROM mine WHERE saga_id = :offered_id;
SELECT saga_test.outcome(:offered_id);
SELECT saga_test.log_sorted(:offered_id);
SELECT version FROM saga.sagas WHERE saga_id = :offered_id;
SELECT saga.migrate(:claimed_id) = :claimed_id AS asked;
SELECT saga_test.applied(:claimed_id);
SELECT verb, outcome FROM saga.requests WHERE saga_id = :claimed_id;
SELECT saga.complete_task(id, lease_token, '2') FROM mine WHERE saga_id = :claimed_id;
SELECT saga_test.outcome(:claimed_id);
SELECT saga_test.log_sorted(:claimed_id);
SELECT step, result FROM saga.steps WHERE saga_id = :claimed_id AND step = 'charge';
SELECT version FROM saga.sagas WHERE saga_id = :claimed_id;

------------------------------------------------------------------------------
-- The participant's transaction
------------------------------------------------------------------------------
-- Claim and answer in one.
SELECT saga.begin('task_one') AS id \gset
BEGIN;
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset
SELECT saga.complete_task(:task, :'token', '"at once"');
SELECT status FROM saga.tasks WHERE id = :task;
SELECT saga.complete_task(:task, :'token', '"at once"');
COMMIT;
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- A claim that is rolled back never was.
SELECT saga.begin('task_one') AS id \gset
BEGIN;
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_order') \gset
SELECT status FROM saga.tasks WHERE id = :task;
ROLLBACK;
SELECT status, participant FROM saga.tasks WHERE id = :task;
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token');
\set VERBOSITY default
-- Nor an answer, with all that was written beside it.
SELECT id AS task, lease_token AS token, attempt FROM saga_test.take('tasks_order') \gset
\echo :attempt
BEGIN;
INSERT INTO saga_test.log (saga_id, what) VALUES (:id, 'rolled back');
SELECT saga.complete_task(:task, :'token', '"rolled back"');
ROLLBACK;
SELECT status FROM saga.tasks WHERE id = :task;
-- In a subtransaction, likewise.
SELECT saga_test.answer_in_subtransactions(:task, :'token', :id);
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT what FROM saga_test.log WHERE saga_id = :id;
SELECT saga.begin('task_one') AS id \gset
SELECT saga_test.have(:id, 'ready');
SELECT saga_test.claim_in_subtransactions('tasks_order');
SELECT status FROM saga.tasks WHERE saga_id = :id;
SELECT saga.complete_task(id, lease_token) FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
-- Rolled back to a savepoint.
SELECT saga.begin('task_one') AS id \gset
BEGIN;
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset
SAVEPOINT s;
SELECT saga.fail_task(:task, :'token', 'no', false);
ROLLBACK TO s;
SELECT saga.complete_task(:task, :'token', '"after all"');
COMMIT;
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- With one snapshot for all of it.
SELECT saga.begin('task_one') AS id \gset
SELECT saga_test.have(:id, 'ready');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT id AS task, lease_token AS token FROM saga.claim_tasks('tasks_order') \gset
SELECT lease_until > now() AS extended FROM saga.extend_lease(:task, :'token');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT saga.complete_task(:task, :'token', '"repeatable"');
SELECT saga.complete_task(:task, :'token', '"repeatable"');
COMMIT;
SELECT saga_test.outcome(:id);
SELECT saga.begin('task_one') AS id \gset
SELECT saga_test.have(:id, 'ready');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT id AS task, lease_token AS token FROM saga.claim_tasks('tasks_order') \gset
SELECT saga.fail_task(:task, :'token', 'once');
COMMIT;
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT saga.release_task(:task, :'token');
COMMIT;
SELECT attempt, saga.complete_task(id, lease_token) FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
-- Read only: no claim, no answer.
SELECT saga.begin('task_one') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset
BEGIN READ ONLY;
SELECT * FROM saga.claim_tasks('tasks_order');
ROLLBACK;
BEGIN READ ONLY;
SELECT saga.complete_task(:task, :'token');
ROLLBACK;
BEGIN READ ONLY;
SELECT saga.extend_lease(:task, :'token');
ROLLBACK;
BEGIN READ ONLY;
SELECT status FROM saga.tasks WHERE id = :task;
COMMIT;
SELECT saga.complete_task(:task, :'token', '"written"');
SELECT saga_test.outcome(:id);

------------------------------------------------------------------------------
-- What a participant may send
------------------------------------------------------------------------------
SELECT saga.define('task_size', saga.external_step('charge', 'tasks_order', compensation => 'undo', retry => saga.retry_policy(1)), saga.step('size', 'saga_test.size'));
SELECT saga.begin('task_size') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.take('tasks_order') \gset
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', '{"text": "\u0000"}');
SELECT saga.complete_task(:task, :'token', '{"text": ');
SELECT saga.extend_lease(:task, :'token', progress => '"\u0000"');
\set VERBOSITY default
SELECT lease_until > now() AS extended FROM saga.extend_lease(:task, :'token', progress => to_jsonb(repeat('p', 1000000)));
SELECT length(progress #>> '{}') FROM saga.tasks WHERE id = :task;
SELECT saga.complete_task(:task, :'token', jsonb_build_object('text', repeat('x', 1000000)));
SELECT saga.complete_task(:task, :'token', jsonb_build_object('text', repeat('x', 1000000)));
\set VERBOSITY sqlstate
SELECT saga.complete_task(:task, :'token', jsonb_build_object('text', repeat('x', 999999) || 'y'));
\set VERBOSITY default
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- What does not look like a result; deep nesting; names that mean something elsewhere.
SELECT saga.begin('task_size') AS id \gset
SELECT saga.complete_task(id, lease_token, (repeat('[', 1000) || repeat(']', 1000))::jsonb) FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
SELECT length(result::text) FROM saga.steps WHERE saga_id = :id AND step = 'charge';
SELECT saga.begin('task_size') AS id \gset
SELECT saga.complete_task(id, lease_token, '{"text": "a\"b\\c\n\u001f\u2028''; DROP TABLE saga.task; --", "sqlstate": "SG001", "results": {}, "saga_id": -1}') FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
SELECT result FROM saga.steps WHERE saga_id = :id AND step = 'charge';
SELECT saga.begin('task_size') AS id \gset
SELECT saga.fail_task(id, lease_token, E'two\nlines \u001b[31m', detail => repeat('d', 1000000), sqlstate => 'SG001') FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, length(detail) > 0 AS detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('task_size') AS id \gset
SELECT saga.fail_task(id, lease_token, ' ', detail => '') FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, detail FROM saga.attempts WHERE saga_id = :id;
SELECT saga.begin('task_size') AS id \gset
SELECT saga.fail_task(id, lease_token, repeat('e', 1000000)) FROM saga_test.take('tasks_order');
SELECT saga_test.outcome(:id);
SELECT left(message, 3) FROM saga.attempts WHERE saga_id = :id;

-- Nothing is left.
RESET ROLE;
SELECT count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed');
SELECT s.definition, s.status, count(*) FROM saga.sagas s WHERE s.definition LIKE 'task%' AND finished_at IS NULL GROUP BY 1, 2;
DROP FUNCTION saga_test.take, saga_test.have, saga_test.applied, saga_test.pauses, saga_test.tasks, saga_test.hanging, saga_test.ship, saga_test.echo, saga_test.never,
    saga_test.size, saga_test.fail_round, saga_test.answer_in_subtransactions, saga_test.claim_in_subtransactions;
