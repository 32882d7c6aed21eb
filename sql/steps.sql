--
-- Local steps: what a function gets, what becomes of its result and of its
-- errors, and that sagas which share a batch do not notice each other.
--
SELECT setval('saga.saga_id_seq', 2000000, false) AS ids_begin_at;
CREATE ROLE regress_saga_reader LOGIN;
ALTER ROLE regress_saga_reader SET default_transaction_read_only = on;
ALTER ROLE regress_saga_reader SET default_transaction_isolation = 'repeatable read';
ALTER ROLE regress_saga_reader SET search_path = steps_test;
ALTER ROLE regress_saga_reader SET work_mem = '7MB';
SELECT saga.grant_usage('regress_saga_reader');
CREATE SCHEMA steps_test AUTHORIZATION regress_saga_owner;
GRANT USAGE ON SCHEMA steps_test TO PUBLIC;
GRANT regress_saga_other TO regress_saga_owner;
SET ROLE regress_saga_owner;

-- Begin a saga of a definition with these steps and return its id.
CREATE FUNCTION steps_test.start(input jsonb, VARIADIC steps jsonb[]) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.define('steps', VARIADIC steps);
    RETURN saga.begin('steps', input);
END
$$;
CREATE TABLE steps_test.note (n bigint GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION steps_test.write(what text) RETURNS text LANGUAGE sql
    AS 'INSERT INTO steps_test.note (what) VALUES (what) RETURNING what';
CREATE FUNCTION steps_test.erase(write text) RETURNS void LANGUAGE sql
    AS 'DELETE FROM steps_test.note WHERE what = write';

------------------------------------------------------------------------------
-- Arguments
------------------------------------------------------------------------------

CREATE TYPE steps_test.pair AS (a integer, b text);
CREATE TYPE steps_test.color AS ENUM ('red', 'green', 'dark blue');
CREATE DOMAIN steps_test.positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN steps_test.some_text AS text NOT NULL DEFAULT 'none';
CREATE DOMAIN steps_test.positives AS integer[] CHECK (0 < ALL (VALUE));
CREATE FUNCTION steps_test.scalars(i integer, t text, v varchar, n numeric, f float8, b boolean, d date, ts timestamptz, u uuid, x bytea, iv interval)
RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' | ', i, t, v, n, f, b, d, ts AT TIME ZONE 'UTC', u, x, iv) $$;
SELECT steps_test.start('{"i": 42, "t": "text", "v": "it''s", "n": 12345678901234567890.5, "f": 1e300, "b": true, "d": "2026-02-28", "ts": "2026-02-28T12:00:00Z", "u": "a0eebc999c0b4ef8bb6d6bb9bd380a11", "x": "\\x00ff", "iv": "1 day 02:00"}',
    saga.step('s', 'steps_test.scalars')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
-- Text takes anything; strings stand for other types as their text does.
SELECT steps_test.start('{"i": "42", "t": {"a": [1, null]}, "v": false, "n": "-1", "f": "Infinity", "b": "yes", "d": "epoch", "ts": "2026-01-01 00:00+00", "u": null, "x": null, "iv": null}',
    saga.step('s', 'steps_test.scalars')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

CREATE FUNCTION steps_test.others(a integer[], aa text[], p steps_test.pair, ps steps_test.pair[], c steps_test.color, o steps_test.positive, os steps_test.positives, st steps_test.some_text, j json, jb jsonb)
RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' | ', a, aa, p, ps, c, o, os, st, j, jb) $$;
SELECT steps_test.start('{"a": [1, null, 3], "aa": [["a", "b"], ["c", "d"]], "p": {"a": 1, "b": "x", "more": 0}, "ps": [{"a": 1}, {"b": "y"}, null], "c": "dark blue", "o": 7, "os": [1, 2], "st": "", "j": {"z": 1, "a": [ ]}, "jb": {"z": 1, "a": [null]}}',
    saga.step('s', 'steps_test.others')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);

-- Values that do not fit: the step fails for good, and says which parameter.
CREATE FUNCTION steps_test.takes(i integer DEFAULT NULL, c steps_test.color DEFAULT NULL, o steps_test.positive DEFAULT NULL, st steps_test.some_text DEFAULT 'x', p steps_test.pair DEFAULT NULL, a integer[] DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' | ', i, c, o, st, p, a) $$;
SELECT saga.define('steps_takes', saga.step('s', 'steps_test.takes'));
CREATE TABLE steps_test.misfit AS
SELECT saga.begin('steps_takes', input) AS id, input FROM (VALUES
    (1, '{"i": "one"}'::jsonb), (2, '{"i": 3000000000}'), (3, '{"i": 1.5}'), (4, '{"c": "blue"}'), (5, '{"o": 0}'),
    (6, '{"st": null}'), (7, '{"p": 1}'), (8, '{"a": 1}'), (9, '{"a": [[1], 2]}'), (10, '{"i": [1]}')) v(n, input) ORDER BY n;
SELECT * FROM saga_test.all_ended('steps_takes');
SELECT input, a.attempt, a.passing, a.sqlstate, a.message, a.context
FROM steps_test.misfit JOIN saga.attempts a ON a.saga_id = id ORDER BY id;

-- Defaults are for what is not there; null is there.
CREATE FUNCTION steps_test.defaults(a integer, b integer DEFAULT 10, c text DEFAULT upper('default'), d timestamptz DEFAULT now())
RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', a, coalesce(b::text, 'null'), coalesce(c, 'null'), d IS NOT NULL) $$;
SELECT saga.define('steps_defaults', saga.step('s', 'steps_test.defaults'));
SELECT count(saga.begin('steps_defaults', input, key => 'defaults ' || n)) FROM (VALUES
    (1, '{"a": 1}'::jsonb), (2, '{"a": 1, "b": 2}'), (3, '{"a": 1, "c": "c"}'), (4, '{"a": 1, "b": null, "c": null, "d": null}')) v(n, input);
SELECT * FROM saga_test.all_ended('steps_defaults');
SELECT input, saga.result(saga_id) FROM saga.sagas WHERE definition = 'steps_defaults' ORDER BY key;
-- STRICT: not called at all with a null.
CREATE FUNCTION steps_test.strict(a integer, b integer DEFAULT 2) RETURNS integer LANGUAGE plpgsql STRICT AS $$
BEGIN
    IF a IS NULL OR b IS NULL THEN
        RAISE EXCEPTION 'was called with a null';
    END IF;
    RETURN a + b;
END
$$;
SELECT saga.define('steps_strict', saga.step('s', 'steps_test.strict'));
SELECT count(saga.begin('steps_strict', input, key => input::text)) FROM (VALUES ('{"a": 1}'::jsonb), ('{"a": null}'), ('{"a": 1, "b": null}')) v(input);
SELECT * FROM saga_test.all_ended('steps_strict');
SELECT input, saga.result(saga_id) FROM saga.sagas WHERE definition = 'steps_strict' ORDER BY saga_id;

-- Results of earlier steps, by the steps' names; an action's for what undoes it.
CREATE FUNCTION steps_test.make_pair(x integer) RETURNS steps_test.pair LANGUAGE sql AS $$ SELECT x, 'made of ' || x $$;
CREATE FUNCTION steps_test.use_pair(make_pair steps_test.pair, x integer) RETURNS integer LANGUAGE sql AS $$ SELECT make_pair.a * 10 + x $$;
CREATE FUNCTION steps_test.undo_pair(make_pair steps_test.pair) RETURNS text LANGUAGE sql AS $$ SELECT 'undid ' || make_pair.b $$;
CREATE FUNCTION steps_test.undo_use(use_pair integer, make_pair jsonb, x integer) RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', 'undid', use_pair, make_pair, x) $$;
CREATE FUNCTION steps_test.refuse(use_pair integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM saga.fail('refused ' || use_pair); END $$;
SELECT steps_test.start('{"x": 4, "use_pair": "the input is not asked"}',
    saga.step('make_pair', 'steps_test.make_pair', 'steps_test.undo_pair'),
    saga.step('use_pair', 'steps_test.use_pair', 'steps_test.undo_use'),
    saga.step('refuse', 'steps_test.refuse')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT saga.result(:id);

-- The context, whatever the parameter's name.
CREATE FUNCTION steps_test.context(jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF $1 ->> 'attempt' = '1' THEN
        RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'once more', DETAIL = $1 ->> 'idempotency_key';
    END IF;
    RETURN $1 - 'results';
END
$$;
CREATE FUNCTION steps_test.results(whatever jsonb) RETURNS jsonb LANGUAGE sql RETURN $1 -> 'results';
CREATE FUNCTION steps_test.undo(context jsonb) RETURNS jsonb LANGUAGE sql RETURN $1 - 'input';
SELECT saga.define('steps_context',
    saga.step('first', 'steps_test.context', 'steps_test.undo', retry => saga.retry_policy(2, '10 ms', jitter => 0)),
    saga.step('nothing', 'steps_test.erase'),
    saga.step('second', 'steps_test.results'),
    saga.step('third', 'steps_test.refuse'));
SELECT saga.begin('steps_context', '{"write": null, "use_pair": 1}', key => 'a key', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01') AS id \gset
SELECT saga_test.outcome(:id);
CREATE FUNCTION steps_test.hide(jsonb) RETURNS text LANGUAGE sql 
    RETURN regexp_replace(regexp_replace(jsonb_pretty($1), '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}', 'TOKEN', 'g'), '(-0af7651916cd43dd8448eb211c80319c)-[0-9a-f]{16}-', '\1-SPAN-', 'g');
SELECT step, operation, steps_test.hide(result) FROM saga.steps WHERE saga_id = :id ORDER BY position, operation;
-- The same key for all attempts of an operation, and made of the same token.
SELECT a.detail = s.result ->> 'idempotency_key' AS same, replace(a.detail, 'action', 'compensation') = c.result ->> 'idempotency_key' AS same_token
FROM saga.attempts a JOIN saga.steps s USING (saga_id) JOIN saga.steps c USING (saga_id)
WHERE saga_id = :id AND a.step = 'first' AND s.step = 'first' AND s.operation = 'action' AND c.step = 'first' AND c.operation = 'compensation';

-- What was defined is gone when the step comes.
CREATE FUNCTION steps_test.goes(a integer) RETURNS integer LANGUAGE sql RETURN a;
CREATE FUNCTION steps_test.renamed(a integer) RETURNS integer LANGUAGE sql RETURN a;
CREATE FUNCTION steps_test.set(a integer) RETURNS integer LANGUAGE sql RETURN a;
CREATE FUNCTION steps_test.revoked(a integer) RETURNS integer LANGUAGE sql RETURN a;
SELECT saga.define('steps_goes', saga.step('write', 'steps_test.write', 'steps_test.erase'), saga.step('s', 'steps_test.goes'));
SELECT saga.define('steps_renamed', saga.step('write', 'steps_test.write', 'steps_test.erase'), saga.step('s', 'steps_test.renamed'));
SELECT saga.define('steps_set', saga.step('write', 'steps_test.write', 'steps_test.erase'), saga.step('s', 'steps_test.set'));
SELECT saga.define('steps_revoked', saga.step('write', 'steps_test.write', 'steps_test.erase'), saga.step('s', 'steps_test.revoked'));
DROP FUNCTION steps_test.goes, steps_test.renamed, steps_test.set;
CREATE FUNCTION steps_test.renamed(b integer) RETURNS integer LANGUAGE sql RETURN b;
CREATE FUNCTION steps_test.set(a integer) RETURNS SETOF integer LANGUAGE sql BEGIN ATOMIC SELECT a; END;
REVOKE EXECUTE ON FUNCTION steps_test.revoked FROM PUBLIC, regress_saga_owner;
SELECT saga.begin('steps_goes', '{"what": "goes", "a": 1}') AS goes, saga.begin('steps_renamed', '{"what": "renamed", "a": 1}') AS renamed,
       saga.begin('steps_set', '{"what": "set", "a": 1}') AS set, saga.begin('steps_revoked', '{"what": "revoked", "a": 1}') AS revoked \gset
SELECT saga_test.outcome(:goes), saga_test.outcome(:renamed), saga_test.outcome(:set), saga_test.outcome(:revoked);
SELECT definition, a.step, attempt, passing, sqlstate, message, a.detail, hint FROM saga.attempts a JOIN saga.sagas USING (saga_id)
WHERE saga_id IN (:goes, :renamed, :set, :revoked) ORDER BY saga_id;
SELECT what FROM steps_test.note;
-- So it is with what says whether, and until when.
CREATE FUNCTION steps_test.whether() RETURNS boolean LANGUAGE sql RETURN true;
CREATE FUNCTION steps_test.when() RETURNS interval LANGUAGE sql RETURN '0'::interval;
CREATE FUNCTION steps_test.goes(a integer) RETURNS integer LANGUAGE sql RETURN a;
SELECT saga.define('steps_whether', saga.step('s', 'steps_test.goes', only_if => 'steps_test.whether'));
SELECT saga.define('steps_when', saga.timer_step('s', until => 'steps_test.when'));
DROP FUNCTION steps_test.whether, steps_test.when;
CREATE FUNCTION steps_test.whether() RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION steps_test.when() RETURNS time LANGUAGE sql RETURN '12:00'::time;
SELECT saga.begin('steps_whether', '{"a": 1}') AS whether, saga.begin('steps_when') AS when \gset
SELECT saga_test.outcome(:whether), saga_test.outcome(:when);
SELECT definition, a.step, attempt, passing, sqlstate, message, a.detail, hint FROM saga.attempts a JOIN saga.sagas USING (saga_id)
WHERE saga_id IN (:whether, :when) ORDER BY saga_id;

------------------------------------------------------------------------------
-- Results
------------------------------------------------------------------------------

CREATE FUNCTION steps_test.r_void() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION steps_test.r_none() RETURNS integer LANGUAGE sql RETURN NULL::integer;
CREATE FUNCTION steps_test.r_jsonb_null() RETURNS jsonb LANGUAGE sql RETURN 'null'::jsonb;
CREATE FUNCTION steps_test.r_integer() RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION steps_test.r_numeric() RETURNS numeric LANGUAGE sql RETURN 1.50;
CREATE FUNCTION steps_test.r_nan() RETURNS float8 LANGUAGE sql RETURN 'NaN'::float8;
CREATE FUNCTION steps_test.r_text() RETURNS text LANGUAGE sql RETURN 'a "text"';
CREATE FUNCTION steps_test.r_boolean() RETURNS boolean LANGUAGE sql RETURN false;
CREATE FUNCTION steps_test.r_time() RETURNS timestamptz LANGUAGE sql SET timezone = 'UTC' RETURN '2026-02-28 12:00+00'::timestamptz;
CREATE FUNCTION steps_test.r_json() RETURNS json LANGUAGE sql RETURN '{"z":  1, "a": [1, {}]}'::json;
CREATE FUNCTION steps_test.r_array() RETURNS integer[] LANGUAGE sql RETURN '{{1,2},{3,NULL}}'::integer[];
CREATE FUNCTION steps_test.r_composite() RETURNS steps_test.pair LANGUAGE sql RETURN (1, 'one')::steps_test.pair;
CREATE FUNCTION steps_test.r_composites() RETURNS steps_test.pair[] LANGUAGE sql RETURN ARRAY[(1, 'one')::steps_test.pair, NULL];
CREATE FUNCTION steps_test.r_record() RETURNS record LANGUAGE sql RETURN ROW (1, 'one', NULL);
CREATE FUNCTION steps_test.r_row() RETURNS steps_test.note LANGUAGE sql AS 'INSERT INTO steps_test.note (n, what) OVERRIDING SYSTEM VALUE VALUES (-1, ''row'') RETURNING *';
CREATE FUNCTION steps_test.r_enum() RETURNS steps_test.color LANGUAGE sql RETURN 'dark blue'::steps_test.color;
CREATE FUNCTION steps_test.r_domain() RETURNS steps_test.positive LANGUAGE sql RETURN 3;
CREATE FUNCTION steps_test.r_bytea() RETURNS bytea LANGUAGE sql RETURN '\x00ff'::bytea;
CREATE FUNCTION steps_test.r_large() RETURNS text LANGUAGE sql RETURN repeat('0123456789', 100000);
CREATE FUNCTION steps_test.r_check(s18 text, s1 integer, s2 integer, s3 jsonb, s12 steps_test.pair, s17 bytea, s6 float8) RETURNS text
LANGUAGE sql AS $$ SELECT concat_ws(' ', length(s18), s1 IS NULL, s2 IS NULL, s3 IS NULL, s12.b, length(s17), s6) $$;
SELECT steps_test.start('{}', saga.step('r', 'steps_test.r_void')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT saga.define('steps_results', VARIADIC array_agg(saga.step('s' || n, 'steps_test.r_' || name) ORDER BY n) || saga.step('last', 'steps_test.r_check'))
FROM unnest('{void,none,jsonb_null,integer,numeric,nan,text,boolean,time,json,array,composite,composites,record,row,enum,bytea,large}'::text[]) WITH ORDINALITY r(name, n);
SELECT saga.begin('steps_results') AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, CASE WHEN length(result::text) > 100 THEN to_jsonb(length(result::text)) ELSE result END AS result, result IS NULL AS null FROM saga.steps WHERE saga_id = :id ORDER BY position;
SELECT saga.result(:id);

------------------------------------------------------------------------------
-- Errors
------------------------------------------------------------------------------

-- All that an error says is kept.
CREATE FUNCTION steps_test.complain() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the message' USING DETAIL = 'The detail.', HINT = 'The hint.', ERRCODE = 'XY123';
END
$$;
CREATE FUNCTION steps_test.complain_deeply() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM steps_test.complain(); END $$;
SELECT steps_test.start('{"what": "x"}', saga.step('write', 'steps_test.write', 'steps_test.erase'), saga.step('complain', 'steps_test.complain_deeply')) AS id \gset
SELECT saga_test.outcome(:id);
\x
SELECT step, operation, attempt, outcome, passing, sqlstate, message, detail, hint, context, started_at <= finished_at AS timed FROM saga.attempts WHERE saga_id = :id;
SELECT error FROM saga.sagas WHERE saga_id = :id;
SELECT error FROM saga.steps WHERE saga_id = :id AND step = 'complain';
\x
-- Also of a statement that cannot be parsed, and of one that is too long.
CREATE FUNCTION steps_test.syntax() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'SELECT 1 +'; END $$;
CREATE FUNCTION steps_test.long_error() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', repeat('é', 100000); END $$;
SELECT steps_test.start('{}', saga.step('syntax', 'steps_test.syntax')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message, context FROM saga.attempts WHERE saga_id = :id;
SELECT steps_test.start('{}', saga.step('long', 'steps_test.long_error')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, octet_length(message) FROM saga.attempts WHERE saga_id = :id;

-- Which are worth another attempt.
CREATE FUNCTION steps_test.raise(state text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '%', state USING ERRCODE = state; END $$;
SELECT saga.define('steps_raise', saga.step('s', 'steps_test.raise', retry => saga.retry_policy(3, '5 ms', jitter => 0)));
SELECT count(saga.begin('steps_raise', jsonb_build_object('state', s))) FROM unnest('{08000,08006,40001,40P01,40002,53100,53300,55P03,57014,57P01,58030,
    00001,02000,0A000,22012,23505,23514,25006,25P02,2D000,34000,42501,42P01,42P07,54000,55000,55006,P0001,XX000,SG001,SG999}'::text[]) s;
SELECT * FROM saga_test.all_ended('steps_raise');
SELECT t.attempts, t.failures, s.status, t.status, string_agg(input ->> 'state', ' ' ORDER BY s.saga_id) AS states
FROM saga.sagas s JOIN saga.steps t USING (saga_id) WHERE definition = 'steps_raise' GROUP BY 1, 2, 3, 4 ORDER BY 1;
SELECT attempt, passing, outcome, count(*) FROM saga.attempts JOIN saga.sagas USING (saga_id) WHERE definition = 'steps_raise' GROUP BY 1, 2, 3 ORDER BY 1, 2;
-- The policy has the last word.
SELECT saga.define('steps_policy', saga.step('s', 'steps_test.raise', retry => saga.retry_policy(2, '5 ms', jitter => 0, retry_on => '{23505,P0}', fail_on => '{40001,P0002,53}')));
SELECT count(saga.begin('steps_policy', jsonb_build_object('state', s))) FROM unnest('{23505,23503,P0001,P0002,40001,40P01,53300,08000}'::text[]) s;
SELECT * FROM saga_test.all_ended('steps_policy');
SELECT t.attempts, string_agg(input ->> 'state', ' ' ORDER BY s.saga_id) AS states
FROM saga.sagas s JOIN saga.steps t USING (saga_id) WHERE definition = 'steps_policy' GROUP BY 1 ORDER BY 1;

-- A step that succeeds in the end; what failed attempts did is undone.
CREATE FUNCTION steps_test.third_time(context jsonb) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO steps_test.note (what) VALUES ('attempt ' || (context ->> 'attempt'));
    IF (context ->> 'attempt')::integer < 3 THEN
        RAISE deadlock_detected USING MESSAGE = 'attempt ' || (context ->> 'attempt');
    END IF;
    RETURN context ->> 'attempt';
END
$$;
DELETE FROM steps_test.note;
SELECT steps_test.start('{}', saga.step('s', 'steps_test.third_time', retry => saga.retry_policy(initial_delay => '100 ms', jitter => 0))) AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT * FROM saga_test.failures(:id);
SELECT what FROM steps_test.note;
-- Pauses: the first of 100 ms, the second twice as long.
SELECT lead(started_at, 1, (SELECT finished_at FROM saga.steps WHERE saga_id = :id)) OVER (ORDER BY attempt) - finished_at >= attempt * interval '100 ms' AS paused
FROM saga.attempts WHERE saga_id = :id ORDER BY attempt;

------------------------------------------------------------------------------
-- saga.fail(), saga.retry_later()
------------------------------------------------------------------------------

SELECT saga.fail('not in a step');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.fail('not in a step', '{}'::jsonb);
SELECT saga.retry_later('1 s');
CREATE FUNCTION steps_test.fail(how integer, context jsonb DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO steps_test.note (what) VALUES ('before failing ' || how);
    CASE how
        WHEN 1 THEN PERFORM saga.fail('out of stock');
        WHEN 2 THEN PERFORM saga.fail('out of stock', 'There are none.');
        WHEN 3 THEN PERFORM saga.fail('out of stock', '{"left": 0}'::jsonb);
        WHEN 4 THEN PERFORM saga.fail(NULL);
        WHEN 5 THEN
            BEGIN
                PERFORM saga.fail('swallowed', 'once');
            EXCEPTION WHEN OTHERS THEN RETURN 'nothing happened';
            END;
        WHEN 6 THEN
            BEGIN
                PERFORM saga.fail('the first word');
            EXCEPTION WHEN OTHERS THEN
                RAISE EXCEPTION 'another error' USING ERRCODE = '40001';
            END;
        WHEN 7 THEN
            BEGIN
                PERFORM saga.fail('fail, then later');
            EXCEPTION WHEN OTHERS THEN
                PERFORM saga.retry_later('1 h');
            END;
        WHEN 8 THEN PERFORM saga.fail('');
    END CASE;
    RETURN 'went on';
END
$$;
DELETE FROM steps_test.note;
SELECT saga.define('steps_fail', saga.step('s', 'steps_test.fail', retry => saga.retry_policy(0, '5 ms', retry_on => '{SG}')));
SELECT count(saga.begin('steps_fail', jsonb_build_object('how', n))) FROM generate_series(1, 8) n;
SELECT * FROM saga_test.all_ended('steps_fail');
SELECT s.input, s.status, attempt, outcome, passing, sqlstate, message, a.detail FROM saga.attempts a JOIN saga.sagas s USING (saga_id) WHERE definition = 'steps_fail' ORDER BY saga_id;
SELECT count(*) FROM steps_test.note;

CREATE FUNCTION steps_test.later(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE attempt integer := context ->> 'attempt';
BEGIN
    INSERT INTO steps_test.note (what) VALUES ('attempt ' || attempt);
    IF attempt = 1 THEN
        PERFORM saga.retry_later('10 ms');
    ELSIF attempt = 2 THEN
        PERFORM saga.retry_later('200 ms', 'not open yet');
    ELSIF attempt = 3 THEN
        BEGIN
            PERFORM saga.retry_later('0', 'swallowed');
        EXCEPTION WHEN OTHERS THEN RETURN 'not noticed';
        END;
    ELSIF attempt = 4 THEN
        BEGIN
            PERFORM saga.retry_later('0', 'the first word');
        EXCEPTION WHEN OTHERS THEN PERFORM saga.fail('the second');
        END;
    END IF;
    RETURN 'attempt ' || attempt;
END
$$;
DELETE FROM steps_test.note;
SELECT steps_test.start('{}', saga.step('s', 'steps_test.later', retry => saga.retry_policy(1))) AS id \gset
SELECT saga_test.outcome(:id);
SELECT attempts, failures, result, error FROM saga.steps WHERE saga_id = :id;
SELECT * FROM saga_test.failures(:id);
SELECT what FROM steps_test.note;
-- Delays that make no sense are errors of the step.
CREATE FUNCTION steps_test.nonsense(delay interval) RETURNS void LANGUAGE sql AS $$ SELECT saga.retry_later(delay) $$;
SELECT saga.define('steps_nonsense', saga.step('s', 'steps_test.nonsense'));
SELECT count(saga.begin('steps_nonsense', jsonb_build_object('delay', d))) FROM unnest('{NULL,-1 s,11 years}'::text[]) d;
SELECT * FROM saga_test.all_ended('steps_nonsense');
SELECT s.input, status, passing, sqlstate, message FROM saga.sagas s JOIN saga.attempts a USING (saga_id) WHERE definition = 'steps_nonsense' ORDER BY saga_id;

------------------------------------------------------------------------------
-- Timeouts
------------------------------------------------------------------------------

CREATE FUNCTION steps_test.sleep(seconds float8) RETURNS text LANGUAGE sql AS $$ SELECT 'slept' FROM pg_sleep(seconds) $$;
CREATE FUNCTION steps_test.sleep_deaf(seconds float8) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds);
    RETURN 'slept';
EXCEPTION WHEN query_canceled OR OTHERS THEN
    RETURN 'nothing happened';
END
$$;
SELECT steps_test.start('{"what": "timeout", "seconds": 60}', saga.step('write', 'steps_test.write', 'steps_test.erase'),
    saga.step('sleep', 'steps_test.sleep', timeout => '200 ms', retry => saga.retry_policy(2, '10 ms'))) AS id \gset
SELECT steps_test.start('{"what": "timeout", "seconds": 60}', saga.step('write', 'steps_test.write', 'steps_test.erase'),
    saga.step('sleep', 'steps_test.sleep_deaf', timeout => '200 ms', retry => saga.retry_policy(2, '10 ms'))) AS deaf \gset
SELECT steps_test.start('{"what": "timeout", "seconds": 0.3}', saga.step('write', 'steps_test.write', 'steps_test.erase'),
    saga.step('sleep', 'steps_test.sleep', timeout => '30 s', retry => saga.retry_policy(1))) AS long \gset
SELECT saga_test.outcome(:id), saga_test.outcome(:deaf), saga_test.outcome(:long);
SELECT * FROM saga_test.failures(:id);
SELECT * FROM saga_test.failures(:deaf);
SELECT * FROM saga_test.failures(:long);
SELECT min(finished_at - started_at) >= '200 ms' AS not_before, max(finished_at - started_at) < '20 s' AS soon_after FROM saga.attempts WHERE saga_id IN (:id, :deaf);
SELECT status, suspect, error ->> 'sqlstate' AS sqlstate FROM saga.sagas WHERE saga_id IN (:id, :deaf, :long) ORDER BY saga_id;
-- The compensation has a timeout of its own.
CREATE FUNCTION steps_test.sleep_back(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF context ->> 'attempt' = '1' THEN
        PERFORM pg_sleep(60);
    END IF;
    RETURN 'attempt ' || (context ->> 'attempt');
END
$$;
SELECT steps_test.start('{"state": "P0001", "what": "x"}', saga.step('write', 'steps_test.write', 'steps_test.sleep_back', compensation_timeout => '100 ms', compensation_retry => saga.retry_policy(3, '10 ms')),
    saga.step('raise', 'steps_test.raise')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);

-- One that sleeps does not hold up its batch.
CREATE TABLE steps_test.finished (what text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION steps_test.finish(seconds float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(seconds);
    INSERT INTO steps_test.finished VALUES (seconds);
END
$$;
SELECT saga.define('steps_neighbours', saga.step('s', 'steps_test.finish'));
SELECT count(saga.begin('steps_neighbours', jsonb_build_object('seconds', CASE WHEN n = 1 THEN 3 ELSE 0 END))) FROM generate_series(1, 20) n;
SELECT * FROM saga_test.all_ended('steps_neighbours');
SELECT what, count(*) FROM steps_test.finished GROUP BY what ORDER BY what;
SELECT max(at) FILTER (WHERE what = '0') < max(at) FILTER (WHERE what = '3') - interval '1 s' AS neighbours_first FROM steps_test.finished;
SELECT attempts, count(*) FROM saga.steps JOIN saga.sagas USING (saga_id) WHERE definition = 'steps_neighbours' GROUP BY attempts;

------------------------------------------------------------------------------
-- Transactions: isolation, read-only, deferred constraints
------------------------------------------------------------------------------

CREATE FUNCTION steps_test.isolation() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('transaction_isolation') $$;
SELECT steps_test.start('{}', saga.step('default', 'steps_test.isolation'), saga.step('s', 'steps_test.isolation', isolation => 'serializable'),
    saga.step('rr', 'steps_test.isolation', isolation => 'repeatable read'), saga.step('rc', 'steps_test.isolation', isolation => 'read committed')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
-- Many at once, with the same rows: serialization failures are retried.
CREATE TABLE steps_test.counter (n integer);
INSERT INTO steps_test.counter VALUES (0);
CREATE FUNCTION steps_test.count() RETURNS integer LANGUAGE sql AS 'UPDATE steps_test.counter SET n = n + 1 RETURNING n';
SELECT saga.define('steps_serializable', saga.step('s', 'steps_test.count', isolation => 'serializable', retry => saga.retry_policy(0, '5 ms', max_delay => '20 ms')));
SELECT count(saga.begin('steps_serializable')) FROM generate_series(1, 50) n;
SELECT * FROM saga_test.all_ended('steps_serializable');
SELECT n FROM steps_test.counter;
SELECT count(DISTINCT saga.result(saga_id)) FROM saga.sagas WHERE definition = 'steps_serializable';

-- The settings of the role are those of its steps.
CREATE FUNCTION steps_test.settings() RETURNS text LANGUAGE sql
    AS $$ SELECT concat_ws(' | ', current_user, session_user, current_setting('transaction_isolation'), current_setting('transaction_read_only'), current_setting('search_path'), current_setting('work_mem')) $$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA steps_test TO regress_saga_reader;
GRANT ALL ON steps_test.note TO regress_saga_reader;
SET ROLE regress_saga_reader;
SELECT saga.define('steps_reader', saga.step('settings', 'steps_test.settings', 'steps_test.settings'), saga.step('write', 'steps_test.write'));
SELECT saga.begin('steps_reader', '{"what": "read-only"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT * FROM saga_test.failures(:id);
SET ROLE regress_saga_owner;

-- Deferred constraints and triggers belong to the step that queued them.
CREATE TABLE steps_test.parent (id integer PRIMARY KEY);
CREATE TABLE steps_test.child (id integer PRIMARY KEY, parent integer REFERENCES steps_test.parent DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION steps_test.orphan(id integer, parent integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO steps_test.child VALUES (id, parent);
    IF id % 5 = 1 THEN
        SET CONSTRAINTS ALL DEFERRED;
    END IF;
    IF id % 2 = 0 THEN
        INSERT INTO steps_test.parent VALUES (parent);
    END IF;
END
$$;
SELECT saga.define('steps_deferred', saga.step('s', 'steps_test.orphan'));
SELECT count(saga.begin('steps_deferred', jsonb_build_object('id', n, 'parent', n), key => to_char(n, 'fm00'))) FROM generate_series(1, 40) n;
SELECT * FROM saga_test.all_ended('steps_deferred');
SELECT status, (input ->> 'id')::integer % 2 AS odd, count(*) FROM saga.sagas WHERE definition = 'steps_deferred' GROUP BY 1, 2 ORDER BY 2;
SELECT DISTINCT sqlstate, passing, message, a.attempt, a.context ~ format('step "s" \(action, attempt 1\) of saga %s', saga_id) AS in_step FROM saga.attempts a JOIN saga.sagas USING (saga_id) WHERE definition = 'steps_deferred';
SELECT count(*), sum(id % 2) FROM steps_test.child;
-- SET CONSTRAINTS of one is not of its neighbours: these need theirs deferred.
CREATE FUNCTION steps_test.impatient(id integer, parent integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF id % 3 = 0 THEN
        SET CONSTRAINTS ALL IMMEDIATE;
        INSERT INTO steps_test.parent VALUES (parent);
        INSERT INTO steps_test.child VALUES (id, parent);
    ELSE
        INSERT INTO steps_test.child VALUES (id, parent);
        INSERT INTO steps_test.parent VALUES (parent);
    END IF;
END
$$;
SELECT saga.define('steps_impatient', saga.step('s', 'steps_test.impatient'));
SELECT count(saga.begin('steps_impatient', jsonb_build_object('id', n, 'parent', n))) FROM generate_series(101, 140) n;
SELECT * FROM saga_test.all_ended('steps_impatient');
-- A deferred trigger writes, and fails, in its step.
CREATE FUNCTION steps_test.deferred() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.what = 'deferred failure' THEN
        RAISE EXCEPTION 'deferred trigger says no' USING ERRCODE = '23514';
    END IF;
    IF NEW.what NOT LIKE 'trigger%' THEN
        INSERT INTO steps_test.note (what) VALUES ('trigger of ' || NEW.what || ' as ' || current_user);
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON steps_test.note DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION steps_test.deferred();
DELETE FROM steps_test.note;
SELECT saga.define('steps_trigger', saga.step('write', 'steps_test.write'));
SELECT count(saga.begin('steps_trigger', jsonb_build_object('what', w), key => w)) FROM unnest('{deferred 1,deferred failure,deferred 2}'::text[]) w;
SELECT * FROM saga_test.all_ended('steps_trigger');
SELECT key, status, error ->> 'message' FROM saga.sagas WHERE definition = 'steps_trigger' ORDER BY key;
SELECT what FROM steps_test.note ORDER BY what;
DROP TRIGGER deferred ON steps_test.note;

------------------------------------------------------------------------------
-- What belongs to a session or a transaction, in many sagas at once
------------------------------------------------------------------------------

-- Run sagas of one step, n of them in one batch, and say what came of them.
CREATE FUNCTION steps_test.start_many(function text, n integer DEFAULT 30) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.define('many ' || function, saga.step('s', function));
    RETURN (SELECT count(saga.begin('many ' || function, jsonb_build_object('n', g))) FROM generate_series(1, n) g);
END
$$;
CREATE FUNCTION steps_test.outcomes(function text) RETURNS TABLE (name text, status saga.saga_status, attempts integer, result jsonb, error jsonb, sagas bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga_test.all_ended('many steps_test.' || function);
    RETURN QUERY SELECT substr(definition, 17), s.status, t.attempts, s.result, s.error -> 'message', count(*)
        FROM saga.sagas s JOIN saga.steps t USING (saga_id) WHERE definition LIKE 'many steps_test.' || function GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 4;
END
$$;
CREATE FUNCTION steps_test.temp_on_commit_drop(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE scratch ON COMMIT DROP AS SELECT n;
    RETURN (SELECT count(*) FROM scratch);
END
$$;
CREATE FUNCTION steps_test.temp(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE scratch_that_stays AS SELECT n;
    RETURN (SELECT count(*) FROM scratch_that_stays);
END
$$;
CREATE FUNCTION steps_test.temp_if_not_exists(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    CREATE TEMP TABLE IF NOT EXISTS scratch_if_not_exists (n integer) ON COMMIT DELETE ROWS;
    INSERT INTO scratch_if_not_exists VALUES (n);
    RETURN (SELECT count(*) FROM scratch_if_not_exists);
END
$$;
CREATE FUNCTION steps_test.cursor(n integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    c refcursor := 'same_name';
    r integer;
BEGIN
    OPEN c FOR SELECT 2 * n UNION ALL SELECT 0;
    FETCH c INTO r;
    RETURN r - 2 * n;
END
$$;
CREATE FUNCTION steps_test.hold_cursor(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT 1/(n - 2) FROM generate_series(1, 3) n';
    RETURN (SELECT count(*) FROM pg_cursors WHERE name IN ('held', 'same_name'));
END
$$;
CREATE FUNCTION steps_test.prepared(n integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE r integer;
BEGIN
    EXECUTE 'PREPARE same_name AS SELECT 1';
    RETURN (SELECT count(*) FROM pg_prepared_statements);
END
$$;
CREATE FUNCTION steps_test.exceptions(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 10 LOOP
        BEGIN
            INSERT INTO steps_test.note (what) VALUES ('exceptions');
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    RETURN 1;
END
$$;
SELECT steps_test.start_many('steps_test.' || f) FROM unnest('{temp_on_commit_drop,temp,temp_if_not_exists,cursor,hold_cursor,prepared,exceptions}'::text[]) f;
SELECT * FROM steps_test.outcomes('%');
SELECT count(*) FROM steps_test.note WHERE what = 'exceptions';

-- What a step sets is gone before the next one.
CREATE FUNCTION steps_test.leave(n integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
    found := concat_ws(' | ', current_user, session_user, current_setting('search_path'), current_setting('work_mem'), coalesce(current_setting('steps_test.mine', true), ''),
                       current_setting('role'), current_setting('statement_timeout'), current_setting('transaction_isolation'));
    SET search_path = nowhere;
    SET LOCAL work_mem = '1MB';
    PERFORM set_config('steps_test.mine', 'left ' || n, n % 2 = 0);
    SET statement_timeout = '1ms';
    PERFORM pg_catalog.pg_advisory_lock(2000000);
    PERFORM pg_catalog.pg_try_advisory_lock_shared(2000001);
    SET ROLE regress_saga_other;
    RETURN found;
END
$$;
SELECT steps_test.start_many('steps_test.leave', 60);
SELECT * FROM steps_test.outcomes('leave');
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- NOTIFY of the steps arrives, once for each saga; LISTEN is no use to a step.
CREATE FUNCTION steps_test.notify(n integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('steps_test', 'from saga ' || to_char(n, 'fm00'));
    IF n % 2 = 0 THEN
        RAISE EXCEPTION 'no';
    END IF;
END
$$;
CREATE FUNCTION steps_test.listen(n integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN steps_test; END $$;
-- (This session's own comes last of all; which saga was first is not said.)
LISTEN steps_test;
\o |sed -n 's/ received from server process with PID [0-9]*//p' |LC_ALL=C sort
SELECT steps_test.start_many('steps_test.notify', 6), steps_test.start_many('steps_test.listen', 3);
SELECT count(*) FROM steps_test.outcomes('notify');
NOTIFY steps_test, 'that is all';
\o
UNLISTEN steps_test;
SELECT * FROM steps_test.outcomes('notify');
SELECT * FROM steps_test.outcomes('listen');

-- A function cannot commit, not even in a step.
CREATE FUNCTION steps_test.commit(n integer) RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
SELECT steps_test.start_many('steps_test.commit', 1);
SELECT * FROM steps_test.outcomes('commit');

-- now() is that of the transaction, which a batch shares.
CREATE FUNCTION steps_test.times(n integer) RETURNS boolean LANGUAGE sql AS $$ SELECT now() <= statement_timestamp() AND statement_timestamp() <= clock_timestamp() AND clock_timestamp() < now() + interval '30 s' $$;
SELECT steps_test.start_many('steps_test.times');
SELECT * FROM steps_test.outcomes('times');

------------------------------------------------------------------------------
-- Sagas in steps
------------------------------------------------------------------------------

-- A step begins sagas, if and only if it succeeds.
CREATE FUNCTION steps_test.begin_another(n integer) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE id bigint := saga.begin('steps_trigger', jsonb_build_object('what', 'begun by ' || n), key => 'begun by ' || n);
BEGIN
    IF n % 2 = 0 THEN
        RAISE EXCEPTION 'no';
    END IF;
    RETURN NULL;
END
$$;
SELECT steps_test.start_many('steps_test.begin_another', 6);
SELECT * FROM steps_test.outcomes('begin_another');
SELECT * FROM saga_test.all_ended('steps_trigger');
SELECT key, status FROM saga.sagas WHERE key LIKE 'begun by %' ORDER BY key;
-- It cancels its own: the step's effect counts, and is undone.
CREATE FUNCTION steps_test.cancel_myself(context jsonb) RETURNS text LANGUAGE sql
    AS $$ SELECT 'cancelled' FROM saga.cancel((context ->> 'saga_id')::bigint, 'by itself') $$;
SELECT steps_test.start('{"what": "cancels itself", "n": 1}', saga.step('write', 'steps_test.write', 'steps_test.erase'),
    saga.step('cancel', 'steps_test.cancel_myself', 'steps_test.undo'), saga.step('never', 'steps_test.times')) AS id \gset
SELECT saga_test.outcome(:id);
SELECT step, operation, status, attempts FROM saga_test.story(:id);
SELECT error, (SELECT outcome FROM saga.requests r WHERE r.saga_id = s.saga_id) FROM saga.sagas s WHERE saga_id = :id;

RESET ROLE;
SELECT saga_test.wait_until($$ NOT EXISTS (SELECT FROM saga.sagas WHERE finished_at IS NULL) $$, 'every saga of this script');
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'steps%' OR name LIKE 'many %';
REVOKE regress_saga_other FROM regress_saga_owner;
DROP SCHEMA steps_test CASCADE;
DROP OWNED BY regress_saga_reader;
DROP ROLE regress_saga_reader;
