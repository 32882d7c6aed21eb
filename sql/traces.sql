--
-- Traces: which trace a saga belongs to, the span that each operation is, what
-- those who carry it out are told of it, and who may look.
--
SELECT setval('saga.saga_id_seq', 50000000, false) AS ids_begin_at;
CREATE SCHEMA traces_test;
GRANT USAGE ON SCHEMA traces_test TO PUBLIC;
-- What a step was told, and its compensation; it fails as often as the input says.
CREATE TABLE traces_test.told (n bigint GENERATED ALWAYS AS IDENTITY, saga_id bigint, what text, traceparent text);
GRANT SELECT, INSERT ON traces_test.told TO PUBLIC;
CREATE FUNCTION traces_test.note(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO traces_test.told (saga_id, what, traceparent)
    VALUES ((context ->> 'saga_id')::bigint, concat_ws(' ', context ->> 'operation', context ->> 'step', context ->> 'index'),
            context ->> 'traceparent');
    RETURN to_jsonb(context ->> 'traceparent');
END
$$;
CREATE FUNCTION traces_test.fail(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    times integer := context #> '{input,fail}';
BEGIN
    PERFORM traces_test.note(context);
    IF (context ->> 'attempt')::integer <= times THEN
        RAISE EXCEPTION 'attempt % failed', context ->> 'attempt' USING ERRCODE = '40001', DETAIL = context ->> 'traceparent';
    END IF;
    RETURN to_jsonb(context ->> 'traceparent');
END
$$;
-- The spans of a tree of sagas, as a tree, without what differs between runs.
CREATE FUNCTION traces_test.tree(id bigint) RETURNS TABLE (span text, kind text, status text, message text, ended boolean, events integer)
LANGUAGE sql SET jit = off AS $$
    WITH RECURSIVE t AS (
        SELECT s.*, 0 AS depth, ARRAY[s.start_time] AS path FROM saga.spans s WHERE s.saga_id = id AND s.name = s.attributes ->> 'saga.definition'
        UNION ALL
        SELECT s.*, t.depth + 1, t.path || s.start_time FROM t JOIN saga.spans s ON s.parent_span_id = t.span_id AND s.trace_id = t.trace_id
        WHERE s.saga_id >= 50000000)
    SELECT repeat('  ', depth) || name || coalesce(' ' || (attributes ->> 'saga.element'), '') || coalesce(', round ' || (attributes ->> 'saga.round'), ''),
           kind, status_code, status_message, ended, jsonb_array_length(events) FROM t ORDER BY path, name COLLATE "C"
$$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA traces_test TO PUBLIC;

-- What saga.begin() is given has to be a traceparent.
SET ROLE regress_saga_owner;
SELECT saga.define('trace', saga.step('one', 'traces_test.note', 'traces_test.note'), saga.step('two', 'traces_test.fail',
    retry => saga.retry_policy(2, '1 ms', jitter => 0)));
\set VERBOSITY terse
SELECT saga.begin('trace', traceparent => 'nothing');
SELECT saga.begin('trace', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331');
SELECT saga.begin('trace', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0');
SELECT saga.begin('trace', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g');
SELECT saga.begin('trace', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more');
SELECT saga.begin('trace', traceparent => '00-00000000000000000000000000000000-b7ad6b7169203331-01');
SELECT saga.begin('trace', traceparent => '00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01');
SELECT saga.begin('trace', traceparent => 'ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01');
SELECT saga.begin('trace', traceparent => '01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more');
SELECT saga.begin('trace', traceparent => '01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-' || repeat('m', 500));
\set VERBOSITY default
-- Of a later version the beginning counts.
SELECT saga.begin('trace', traceparent => 'cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09-what.the-future.will-be-like') AS id \gset
SELECT saga_test.outcome(:id);
SELECT trace_id, parent_span_id, sampled FROM saga.spans WHERE saga_id = :id AND name = 'trace';
SELECT what, traceparent ~ '^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$' AS told FROM traces_test.told WHERE saga_id = :id ORDER BY n;

-- A trace of its own: one for each saga, of which nothing shows the token.
SELECT saga.begin('trace', '{"fail": 1}') AS id \gset
SELECT saga.begin('trace') AS other \gset
SELECT saga_test.outcome(:id), saga_test.outcome(:other);
SELECT count(DISTINCT trace_id), count(DISTINCT span_id) = count(*) AS distinct, bool_and(sampled) AS sampled,
    bool_and(trace_id ~ '^[0-9a-f]{32}$' AND span_id ~ '^[0-9a-f]{16}$') AS hexadecimal
FROM saga.spans WHERE saga_id IN (:id, :other);
SELECT * FROM traces_test.tree(:id);
-- Each operation was told its own span, in all attempts the same.
SELECT t.what, count(*), bool_and(t.traceparent = format('00-%s-%s-01', s.trace_id, s.span_id)) AS its_own
FROM traces_test.told t JOIN saga.spans s ON s.saga_id = t.saga_id AND s.name = t.what WHERE t.saga_id = :id GROUP BY 1 ORDER BY 1;
-- A failed attempt is an event.
SELECT e ->> 'name' AS event, e -> 'attributes' ->> 'exception.type' AS type, e -> 'attributes' ->> 'exception.message' AS message,
    e -> 'attributes' ->> 'saga.attempt' AS attempt, e -> 'attributes' ->> 'saga.attempt.outcome' AS outcome,
    e -> 'attributes' ->> 'exception.stacktrace' LIKE 'DETAIL:  00-%CONTEXT:  PL/pgSQL%' AS stacktrace,
    to_timestamp((e ->> 'time_unix_nano')::numeric / 1000000000) = (e ->> 'time')::timestamptz AS same,
    (e ->> 'time')::timestamptz BETWEEN s.start_time AND s.end_time AS within
FROM saga.spans s, jsonb_array_elements(s.events) e WHERE saga_id = :id;
SELECT name, attributes - 'saga.id' - 'db.namespace' AS attributes FROM saga.spans WHERE saga_id = :id ORDER BY start_time, name DESC;
SELECT name, start_time < end_time AND start_time >= min(start_time) OVER () AND end_time <= max(end_time) OVER () AS in_order,
    to_timestamp(start_time_unix_nano::numeric / 1000000000) = start_time AND to_timestamp(end_time_unix_nano::numeric / 1000000000) = end_time AS same,
    saga_end_time = max(end_time) OVER () AS till_its_end
FROM saga.spans WHERE saga_id = :id ORDER BY name DESC;

-- A saga that goes back, and what it was asked for; the one who begins the trace
-- does not record it.
SELECT saga.begin('trace', '{"fail": 9}', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM traces_test.tree(:id);
SELECT bool_or(sampled) AS sampled, bool_and(parent_span_id = 'b7ad6b7169203331') FILTER (WHERE name = 'trace') AS parent FROM saga.spans WHERE saga_id = :id;
SELECT count(*) FROM traces_test.told WHERE saga_id = :id AND traceparent ~ '^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-00$';
SELECT attributes ->> 'error.type' AS error, attributes ->> 'db.response.status_code' AS code FROM saga.spans WHERE saga_id = :id ORDER BY start_time, name DESC;
SELECT saga.define('trace_waits', saga.step('one', 'traces_test.note', 'traces_test.note'), saga.signal_step('go'));
SELECT saga.begin('trace_waits', key => 'w') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT * FROM traces_test.tree(:id);
SELECT name, end_time, end_time_unix_nano, saga_end_time FROM saga.spans WHERE saga_id = :id AND NOT ended ORDER BY name;
SELECT saga.cancel(:id, reason => 'not wanted');
SELECT saga_test.outcome(:id);
SELECT * FROM traces_test.tree(:id);
SELECT e ->> 'name' AS event, e -> 'attributes' AS attributes FROM saga.spans s, jsonb_array_elements(s.events) e WHERE saga_id = :id;
-- Stuck: not ended, since it can be attempted again.
SELECT saga.define('trace_stuck', saga.step('one', 'traces_test.note', 'traces_test.fail', compensation_retry => saga.retry_policy(2, '1 ms')),
    saga.signal_step('go'));
SELECT saga.begin('trace_stuck', '{"fail": 3}') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.cancel(:id);
SELECT saga_test.outcome(:id);
SELECT * FROM traces_test.tree(:id);
SELECT saga.retry(:id);
SELECT saga_test.wait_until(format('(SELECT status = ''compensated'' FROM saga.sagas WHERE saga_id = %s)', :id), 'its end', :id);
SELECT * FROM traces_test.tree(:id);

-- Elements and rounds are spans of their own.
SELECT saga.define('trace_many', saga.step('each', 'traces_test.note', foreach => 'list'), saga.step('here', 'traces_test.note', savepoint => true),
    saga.step('again', 'traces_test.note', 'traces_test.note'), saga.step('two', 'saga_test.act'));
SELECT saga.begin('trace_many', '{"list": [1, 2], "fail": {"action two": 0}}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT count(*), count(DISTINCT span_id), count(DISTINCT trace_id) AS traces FROM saga.spans WHERE saga_id = :id;
SELECT span, status FROM traces_test.tree(:id) ORDER BY span COLLATE "C";
SELECT count(*), count(DISTINCT t.traceparent), bool_and(EXISTS (SELECT FROM saga.spans s WHERE s.saga_id = t.saga_id
        AND t.traceparent = format('00-%s-%s-01', s.trace_id, s.span_id) AND t.what LIKE s.name || '%')) AS known
FROM traces_test.told t WHERE t.saga_id = :id;

-- A child is in the trace of its parent, behind the operation that began it.
SELECT saga.define('trace_child', saga.step('inner', 'traces_test.note', 'traces_test.note'));
SELECT saga.define('trace_parent', saga.child_step('child', 'trace_child'), saga.step('two', 'traces_test.fail', retry => saga.retry_policy(1)));
SELECT saga.begin('trace_parent', '{"fail": 1}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM traces_test.tree(:id);
SELECT (c.attributes ->> 'saga.parent.id')::bigint = :id AS parent, (o.attributes ->> 'saga.child.id')::bigint = c.saga_id AS child
FROM saga.spans o JOIN saga.spans c ON c.parent_span_id = o.span_id WHERE o.saga_id = :id AND o.name = 'action child';
SELECT s.traceparent = format('00-%s-%s-01', o.trace_id, o.span_id) AS traceparent
FROM saga.spans o JOIN saga.sagas s ON s.parent_id = o.saga_id WHERE o.saga_id = :id AND o.name = 'action child';

-- A participant is told the span of its task.
SELECT saga.create_queue('traces');
SELECT saga.define('trace_task', saga.external_step('charge', 'traces', action => 'charge card'));
SELECT saga.begin('trace_task', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.tasks WHERE saga_id = %s AND status = ''ready'')', :id), 'the task', :id);
SELECT id AS task, lease_token AS token, traceparent AS told, payload ->> 'traceparent' = traceparent AS in_payload FROM saga.claim_tasks('traces') \gset
SELECT :'in_payload' AS in_payload, :'told' = format('00-%s-%s-01', trace_id, span_id) AS told, kind, ended FROM saga.spans WHERE saga_id = :id AND name = 'action charge';
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT kind, status_code, attributes - 'saga.id' - 'messaging.message.id' AS attributes, attributes ->> 'messaging.message.id' = :'task' AS message, ended
FROM saga.spans WHERE saga_id = :id AND name = 'action charge';

-- What another database says of its trace is taken if it is one.
RESET ROLE;
SELECT saga.grant_remote('regress_saga_owner');
SET ROLE regress_saga_owner;
SELECT outcome FROM saga.participate_child('fb000000-0000-0000-0000-000000000000', 'fb000000-0000-0000-0000-000000000001', 'a', 'action', 'trace',
    '{"saga_id": 7, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"}', begun_at => '2030-01-01');
SELECT outcome FROM saga.participate_child('fb000000-0000-0000-0000-000000000000', 'fb000000-0000-0000-0000-000000000002', 'a', 'action', 'trace',
    '{"saga_id": 7, "traceparent": {"a": 1}}', begun_at => '2030-01-01');
SELECT outcome FROM saga.participate_child('fb000000-0000-0000-0000-000000000000', 'fb000000-0000-0000-0000-000000000003', 'a', 'action', 'trace',
    '{"saga_id": 7, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}', begun_at => '2030-01-01');
SELECT s.traceparent, p.parent_span_id FROM saga.sagas s JOIN saga.spans p USING (saga_id)
WHERE s.definition = 'trace' AND s.remote_parent_id = 7 AND p.name = 'trace' ORDER BY saga_id;

SELECT DISTINCT r.outcome FROM generate_series(1, 3) n, saga.participate_child('fb000000-0000-0000-0000-000000000000',
    ('fb000000-0000-0000-0000-00000000000' || n)::uuid, 'a', 'release', '', '{}', begun_at => '2030-01-01') r;
SELECT * FROM saga_test.all_ended('trace%');

-- Who sees no saga sees no span of it; nobody sees a token.
SET ROLE regress_saga_other;
SELECT count(*) FROM saga.spans WHERE saga_id >= 50000000;
SET ROLE regress_saga_stranger;
SELECT count(*) FROM saga.spans;
SET ROLE regress_saga_monitor;
SELECT count(*) > 20 AS many FROM saga.spans WHERE saga_id >= 50000000;
RESET ROLE;
SELECT count(*) FROM saga.spans p JOIN saga.saga s ON s.id = p.saga_id
WHERE p.saga_id >= 50000000 AND strpos(replace(p::text, '-', ''), replace(s.token::text, '-', '')) > 0;
SELECT count(*) FROM saga.spans p JOIN saga.saga s ON s.id = p.saga_id
WHERE p.saga_id >= 50000000 AND (strpos(replace(s.token::text, '-', ''), p.span_id) > 0 OR strpos(p.trace_id, left(replace(s.token::text, '-', ''), 16)) > 0);
-- The functions behind it compute, and no more.
SELECT * FROM saga.trace_raw('00000000-0000-0000-0000-000000000001', NULL);
SELECT * FROM saga.trace_raw('00000000-0000-0000-0000-000000000001', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00');
SELECT * FROM saga.trace_raw(NULL, NULL);
SELECT saga.span_raw('00000000-0000-0000-0000-000000000001', 'charge', 'action', 0, 0), saga.span_raw('00000000-0000-0000-0000-000000000001', 'charge', 'action', 0, 1),
    saga.span_raw('00000000-0000-0000-0000-000000000001', 'charge', 'action', 1, 0), saga.span_raw('00000000-0000-0000-0000-000000000001', NULL, 'action', 1, 0);
SELECT saga.span_raw('00000000-0000-0000-0000-000000000001', 'charge', 'recompense', 0, 0);
-- Other programs can compute them too.
SELECT trace_id = left(encode(sha256('s'::bytea || uuid_send(token)), 'hex'), 32) AS trace, span_id = substr(encode(sha256('s'::bytea || uuid_send(token)), 'hex'), 33, 16) AS span,
    saga.span_raw(token, step, 'compensation', 258, 3) = left(encode(sha256('o'::bytea || uuid_send(token) || '\001'::bytea || int4send(258) || int4send(3) || step::bytea), 'hex'), 16) AS operation
FROM (VALUES ('0f0e0d0c-0b0a-0908-0706-050403020100'::uuid, 'charge'), ('00000000-0000-0000-0000-000000000001', repeat('s', 29)), ('00000000-0000-0000-0000-000000000001', repeat('s', 30)),
             ('00000000-0000-0000-0000-000000000001', repeat('long', 100))) v(token, step), saga.trace_raw(token, NULL);
-- What is looked for by the saga or by its end reads no others.
CREATE FUNCTION traces_test.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        IF line ~ 'saga_0|step_0|_pkey.*(saga_0|step_0)|Index Cond: \(\(?(id|saga_id) ' THEN
            RETURN NEXT regexp_replace(regexp_replace(btrim(line), ' (on|using) .*', ''), '\$\d', '$', 'g');
        END IF;
    END LOOP;
END
$$;
SELECT count(*) FILTER (WHERE plan ~ 'Seq Scan') AS whole, count(*) FILTER (WHERE plan ~ 'Index Cond: \(id = 50000000\)') > 0 AS by_id
FROM traces_test.plan('SELECT * FROM saga.spans WHERE saga_id = 50000000') plan;

DROP FUNCTION traces_test.tree, traces_test.plan;
SET ROLE regress_saga_owner;
SELECT saga.drop_definition('trace_task');
SELECT saga.drop_queue('traces');
RESET ROLE;
DROP SCHEMA traces_test CASCADE;
