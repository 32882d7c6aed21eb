--
-- saga.participate(): what a saga of another database has done here is done
-- once, as the role that calls, and saga.forget_barriers() forgets it so that it
-- is not done again.
--
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_saga_remote LOGIN;
CREATE ROLE regress_saga_remote_other LOGIN;
RESET client_min_messages;
CREATE SCHEMA barrier_test;
GRANT USAGE, CREATE ON SCHEMA barrier_test TO regress_saga_remote, regress_saga_remote_other;

-- Without the grant there is nothing.
SET ROLE regress_saga_remote;
SELECT * FROM saga.participate(gen_random_uuid(), gen_random_uuid(), 'ship', 'action', 'f', '{}');
RESET ROLE;
SELECT saga.grant_remote('regress_saga_remote');
SELECT saga.grant_remote('regress_saga_remote_other');

-- A call, with little to write: of saga n.
CREATE FUNCTION barrier_test.call(n integer, step text, operation text, function text, context jsonb DEFAULT '{}',
    element integer DEFAULT -1, round integer DEFAULT 0, begun_at timestamptz DEFAULT NULL, OUT outcome text, OUT result jsonb)
LANGUAGE sql AS $$
    SELECT * FROM saga.participate('c0c0c0c0-0000-0000-0000-000000000000', ('aaaaaaaa-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid,
        step, operation, function, context, element, round, begun_at)
$$;
CREATE FUNCTION barrier_test.forget(before timestamptz, VARIADIC kept integer[] DEFAULT '{}') RETURNS bigint
LANGUAGE sql AS $$
    SELECT saga.forget_barriers('c0c0c0c0-0000-0000-0000-000000000000', before,
        ARRAY(SELECT ('aaaaaaaa-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid FROM unnest(kept) n))
$$;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA barrier_test TO PUBLIC;

SET ROLE regress_saga_remote;
CREATE TABLE barrier_test.log (n integer GENERATED ALWAYS AS IDENTITY, what text);
CREATE FUNCTION barrier_test.act(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    id integer;
BEGIN
    INSERT INTO barrier_test.log (what) VALUES (context ->> 'what') RETURNING n INTO id;
    RETURN jsonb_build_object('n', id);
END $$;

------------------------------------------------------------------------------
-- Once
------------------------------------------------------------------------------

SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{"what": "shipped"}');
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{"what": "shipped again"}');
-- Another element, round, step or saga is something else.
SELECT outcome FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{"what": "element 0"}', 0);
SELECT outcome FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{"what": "round 1"}', -1, 1);
SELECT outcome FROM barrier_test.call(1, 'Ship', 'action', 'barrier_test.act', '{"what": "another step"}');
SELECT outcome FROM barrier_test.call(2, 'ship', 'action', 'barrier_test.act', '{"what": "another saga"}');
SELECT * FROM barrier_test.call(1, 'ship', 'confirmation', 'barrier_test.act', '{"what": "confirmed"}');
SELECT * FROM barrier_test.call(1, 'ship', 'confirmation', 'barrier_test.act', '{"what": "confirmed again"}');
SELECT * FROM barrier_test.call(2, 'ship', 'compensation', 'barrier_test.act', '{"what": "undone"}');
SELECT * FROM barrier_test.call(2, 'ship', 'compensation', 'barrier_test.act', '{"what": "undone again"}');
-- An action that comes again behind its compensation is refused, and so is a confirmation.
SELECT outcome FROM barrier_test.call(2, 'ship', 'action', 'barrier_test.act', '{"what": "late"}');
SELECT outcome FROM barrier_test.call(2, 'ship', 'confirmation', 'barrier_test.act', '{"what": "late"}');
\echo :LAST_ERROR_SQLSTATE
SELECT what FROM barrier_test.log ORDER BY n;
TRUNCATE barrier_test.log;

-- In a transaction of several calls each sees those before it; what is rolled back is not known.
BEGIN;
SELECT outcome FROM barrier_test.call(3, 'ship', 'action', 'barrier_test.act', '{"what": "kept"}');
SELECT outcome FROM barrier_test.call(3, 'ship', 'action', 'barrier_test.act', '{"what": "again"}');
SAVEPOINT s;
SELECT outcome FROM barrier_test.call(3, 'bill', 'action', 'barrier_test.act', '{"what": "rolled back"}');
ROLLBACK TO s;
SELECT outcome FROM barrier_test.call(3, 'bill', 'action', 'barrier_test.act', '{"what": "billed"}');
COMMIT;
SELECT outcome FROM barrier_test.call(3, 'bill', 'action', 'barrier_test.act', '{"what": "again"}');
SELECT what FROM barrier_test.log ORDER BY n;
TRUNCATE barrier_test.log;

-- The compensation comes first: the action is void.
SELECT * FROM barrier_test.call(4, 'ship', 'compensation', 'barrier_test.act', '{"what": "undone"}');
SELECT * FROM barrier_test.call(4, 'ship', 'compensation', 'barrier_test.act', '{"what": "undone"}');
SELECT * FROM barrier_test.call(4, 'ship', 'action', 'barrier_test.act', '{"what": "late"}');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM barrier_test.call(4, 'ship', 'confirmation', 'barrier_test.act', '{"what": "late"}');
\echo :LAST_ERROR_SQLSTATE
-- Its other elements and rounds are not.
SELECT outcome FROM barrier_test.call(4, 'ship', 'action', 'barrier_test.act', '{"what": "element 0"}', 0);
SELECT outcome FROM barrier_test.call(4, 'ship', 'action', 'barrier_test.act', '{"what": "round 1"}', -1, 1);
SELECT what FROM barrier_test.log ORDER BY n;
TRUNCATE barrier_test.log;
-- A function that is gone is not needed for what was done, or is not to be.
SELECT * FROM barrier_test.call(3, 'ship', 'action', 'barrier_test.nowhere');
SELECT * FROM barrier_test.call(4, 'bill', 'compensation', 'barrier_test.nowhere');

------------------------------------------------------------------------------
-- What is called
------------------------------------------------------------------------------

CREATE TYPE barrier_test.pair AS (a integer, b text);
CREATE FUNCTION barrier_test.number(context jsonb) RETURNS numeric LANGUAGE sql RETURN 1.50;
CREATE FUNCTION barrier_test.words(context jsonb) RETURNS text[] LANGUAGE sql RETURN ARRAY['a', NULL];
CREATE FUNCTION barrier_test.pair(context jsonb) RETURNS barrier_test.pair LANGUAGE sql RETURN ROW(1, 'x')::barrier_test.pair;
CREATE FUNCTION barrier_test.outs(context jsonb, OUT a integer, OUT b timestamptz) LANGUAGE plpgsql AS $$ BEGIN a := 1; b := '2026-01-01 00:00:00+00'; END $$;
CREATE FUNCTION barrier_test.nothing(context jsonb) RETURNS jsonb LANGUAGE sql STRICT RETURN NULL::jsonb;
CREATE FUNCTION barrier_test.json_null(context jsonb) RETURNS jsonb LANGUAGE sql RETURN 'null'::jsonb;
CREATE FUNCTION barrier_test.void(context jsonb) RETURNS void LANGUAGE plpgsql STRICT AS $$ BEGIN END $$;
CREATE FUNCTION barrier_test.defaults(context jsonb, x integer DEFAULT 42) RETURNS integer LANGUAGE sql RETURN x;
CREATE FUNCTION barrier_test."Odd ""name"(context jsonb) RETURNS text LANGUAGE sql RETURN 'odd';
CREATE FUNCTION barrier_test.large(context jsonb) RETURNS text LANGUAGE sql RETURN repeat(md5('x'), 3000);
CREATE FUNCTION barrier_test.who(context jsonb) RETURNS name LANGUAGE sql RETURN current_user;
CREATE FUNCTION barrier_test.definer(context jsonb) RETURNS name LANGUAGE sql SECURITY DEFINER RETURN current_user;
CREATE FUNCTION barrier_test.path(context jsonb) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN current_setting('search_path'); END $$;
SELECT f AS function, first.outcome, CASE WHEN f LIKE '%large' THEN to_jsonb(length(first.result::text)) ELSE first.result END AS result, first.result IS NULL AS is_null,
       again.outcome AS again, again.result IS NOT DISTINCT FROM first.result AS same
FROM unnest('{number,words,pair,outs,nothing,json_null,void,defaults,"\"Odd \"\"name\"",large,who}'::text[]) WITH ORDINALITY AS t(f, n),
     LATERAL barrier_test.call(5, 'x' || n, 'action', 'barrier_test.' || f) first,
     LATERAL barrier_test.call(5, 'x' || n, 'action', 'barrier_test.' || f) again ORDER BY n;
-- As the current user, and by its search_path.
SET search_path = barrier_test, "$user";
SELECT result FROM barrier_test.call(5, 'path', 'action', 'path');
SELECT result FROM barrier_test.call(5, 'path 2', 'action', 'PATH');
RESET search_path;
SELECT result FROM barrier_test.call(5, 'path 3', 'action', 'path');
RESET ROLE;
GRANT EXECUTE ON FUNCTION barrier_test.definer(jsonb) TO PUBLIC;
SET ROLE regress_saga_remote_other;
SELECT result FROM barrier_test.call(6, 'definer', 'action', 'barrier_test.definer');
RESET ROLE;

-- Privileges are asked for each time.
SET ROLE regress_saga_remote;
REVOKE EXECUTE ON FUNCTION barrier_test.number(jsonb) FROM PUBLIC;
SET ROLE regress_saga_remote_other;
SELECT * FROM barrier_test.call(7, 'number', 'action', 'barrier_test.number');
SELECT result FROM barrier_test.call(7, 'words', 'action', 'barrier_test.words');
RESET ROLE;
CREATE SCHEMA barrier_closed;
CREATE FUNCTION barrier_closed.f(jsonb) RETURNS integer LANGUAGE sql RETURN 1;
GRANT USAGE ON SCHEMA barrier_closed TO regress_saga_remote_other;
SET ROLE regress_saga_remote_other;
SELECT result FROM barrier_test.call(7, 'closed', 'action', 'barrier_closed.f');
RESET ROLE;
REVOKE USAGE ON SCHEMA barrier_closed FROM regress_saga_remote_other;
SET ROLE regress_saga_remote_other;
SELECT * FROM barrier_test.call(7, 'closed again', 'action', 'barrier_closed.f');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION barrier_test.words(jsonb) FROM PUBLIC;
SET ROLE regress_saga_remote_other;
SELECT * FROM barrier_test.call(7, 'words again', 'action', 'barrier_test.words');
-- ... as the error of a function that is not there, or not one to call.
SET ROLE regress_saga_remote;
SELECT * FROM barrier_test.call(8, 'a', 'action', 'barrier_test.nowhere');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM barrier_test.call(8, 'a', 'action', 'nowhere.f');
\echo :LAST_ERROR_SQLSTATE
CREATE FUNCTION barrier_test.no_context(x integer) RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION barrier_test.set(context jsonb) RETURNS SETOF integer LANGUAGE sql AS $$ SELECT 1 $$;
CREATE PROCEDURE barrier_test.procedure(context jsonb) LANGUAGE sql AS $$ SELECT 1 $$;
SELECT * FROM barrier_test.call(8, 'a', 'action', 'barrier_test.no_context');
SELECT * FROM barrier_test.call(8, 'a', 'action', 'barrier_test.set');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM barrier_test.call(8, 'a', 'action', 'barrier_test.procedure');
SELECT * FROM barrier_test.call(8, 'a', 'action', 'jsonb_agg');
-- A function may be replaced by another one.
SELECT result FROM barrier_test.call(8, 'before', 'action', 'barrier_test.pair');
DROP FUNCTION barrier_test.pair(jsonb);
SELECT result FROM barrier_test.call(8, 'between', 'action', 'barrier_test.pair');
CREATE FUNCTION barrier_test.pair(context jsonb) RETURNS void LANGUAGE sql AS '';
SELECT outcome, result FROM barrier_test.call(8, 'after', 'action', 'barrier_test.pair');
DROP FUNCTION barrier_test.pair(jsonb);
CREATE FUNCTION barrier_test.pair(context jsonb) RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1';
SELECT outcome, result FROM barrier_test.call(8, 'at last', 'action', 'barrier_test.pair');

-- Nothing but a name is taken for one.
SELECT * FROM barrier_test.call(8, 'a', 'action', 'a.b.c');
SELECT * FROM barrier_test.call(8, 'a', 'action', 'act()');
SELECT * FROM barrier_test.call(8, 'a', 'action', 'act; DROP TABLE x');
SELECT * FROM barrier_test.call(8, 'a', 'action', '"act');
SELECT * FROM barrier_test.call(8, 'a', 'action', '');
SELECT * FROM barrier_test.call(8, 'a', 'action', repeat('x', 1000));
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM barrier_test.call(8, 'a', 'action', '"a"")"."; DROP TABLE barrier_test.log; --"');
\echo :LAST_ERROR_SQLSTATE

-- Its error comes as it is, and leaves nothing.
CREATE FUNCTION barrier_test.raise(context jsonb) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO barrier_test.log (what) VALUES ('raised');
    RAISE EXCEPTION 'out of stock' USING ERRCODE = 'WH001', DETAIL = 'none left', HINT = 'buy some', CONSTRAINT = 'mine';
END $$;
\set SHOW_CONTEXT errors
SELECT * FROM barrier_test.call(9, 'ship', 'action', 'barrier_test.raise');
\set SHOW_CONTEXT never
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM barrier_test.log;
SELECT outcome FROM barrier_test.call(9, 'ship', 'action', 'barrier_test.act', '{"what": "shipped"}');
-- Likewise one that comes at the commit.
CREATE TABLE barrier_test.stock (sku text PRIMARY KEY);
CREATE TABLE barrier_test.parcel (sku text REFERENCES barrier_test.stock DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION barrier_test.pack(context jsonb) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO barrier_test.parcel VALUES ('sku'); RETURN 'packed'; END $$;
SELECT * FROM barrier_test.call(9, 'pack', 'action', 'barrier_test.pack');
\echo :LAST_ERROR_SQLSTATE
INSERT INTO barrier_test.stock VALUES ('sku');
SELECT * FROM barrier_test.call(9, 'pack', 'action', 'barrier_test.pack');
SELECT count(*) FROM barrier_test.parcel;

-- Settings and roles that it leaves are undone.
RESET ROLE;
GRANT regress_saga_remote_other TO regress_saga_remote;
SET SESSION AUTHORIZATION regress_saga_remote;
CREATE FUNCTION barrier_test.settings(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    SET search_path = nowhere;
    SET statement_timeout = '1 h';
    SET LOCAL work_mem = '1MB';
    PERFORM set_config('barrier_test.x', 'left', false);
    SET TRANSACTION READ ONLY;
    SET ROLE regress_saga_remote_other;
    RETURN current_user;
END $$;
SHOW work_mem \gset before_
BEGIN;
SELECT result FROM barrier_test.call(10, 'set', 'action', 'barrier_test.settings');
SELECT current_user, current_setting('search_path') <> 'nowhere' AS path, current_setting('statement_timeout') <> '1h' AS timeout,
       current_setting('work_mem') = :'before_work_mem' AS memory, current_setting('transaction_read_only') AS read_only, coalesce(current_setting('barrier_test.x', true), '') AS x;
COMMIT;
SELECT current_user, current_setting('search_path') <> 'nowhere' AS path, current_setting('statement_timeout') <> '1h' AS timeout;
RESET SESSION AUTHORIZATION;
REVOKE regress_saga_remote_other FROM regress_saga_remote;
SET ROLE regress_saga_remote;

------------------------------------------------------------------------------
-- saga.fail(), saga.retry_later(), saga.lock()
------------------------------------------------------------------------------

-- What was said counts, whatever the function makes of it; the first word does.
CREATE FUNCTION barrier_test.says(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    command text;
    swallow boolean := context -> 'swallow';
BEGIN
    INSERT INTO barrier_test.log (what) VALUES ('said');
    FOR command IN SELECT jsonb_array_elements_text(context -> 'say') LOOP
        BEGIN
            EXECUTE 'SELECT ' || command;
        EXCEPTION WHEN OTHERS THEN
            IF NOT swallow THEN RAISE; END IF;
        END;
    END LOOP;
    IF context ? 'raise' THEN RAISE EXCEPTION '%', context ->> 'raise' USING HINT = 'no hint'; END IF;
    RETURN 'done';
END $$;
-- Make the call, and return its error.
CREATE FUNCTION barrier_test.error(n integer, context jsonb) RETURNS TABLE (code text, message text, detail text, hint text, "constraint" text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM barrier_test.call(n, 'says', 'action', 'barrier_test.says', context);
    message := 'no error'; RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
        hint = PG_EXCEPTION_HINT, "constraint" = CONSTRAINT_NAME;
    RETURN NEXT;
END $$;
SELECT c ->> 'swallow' AS swallow, c -> 'say' AS say, c ->> 'raise' AS raise, e.*
FROM jsonb_array_elements('[
    {"say": ["saga.fail(''no'', ''never'')"]},
    {"say": ["saga.fail(''no'', ''{\"a\": 1}''::jsonb)"]},
    {"say": ["saga.retry_later(''1 min 5 us'', ''closed'')"]},
    {"say": ["saga.retry_later(''0'')"]},
    {"say": ["saga.fail(''no'')"], "raise": "in its place"},
    {"say": ["saga.retry_later(''1 day'')", "saga.fail(''no'')"]},
    {"say": ["saga.fail(''no'')", "saga.retry_later(''1 day'')"]},
    {"say": ["1 / 0"]},
    {"say": ["saga.lock(''sku'')"]},
    {"say": ["saga.retry_later(''-1 s'')"]}]') WITH ORDINALITY AS t(c0, n),
    unnest('{f,t}'::boolean[]) s, LATERAL (SELECT c0 || jsonb_build_object('swallow', s) AS c) c1, LATERAL barrier_test.error(100 + 2 * n::integer + s::integer, c) e ORDER BY n, s;
-- Those that had no error in the end have left something.
SELECT step, operation, void FROM saga.barriers WHERE step = 'says';
SELECT what FROM barrier_test.log ORDER BY n;
TRUNCATE barrier_test.log;
-- Afterwards nothing of it is left.
SELECT outcome FROM barrier_test.call(11, 'after', 'action', 'barrier_test.act', '{"what": "after"}');
SELECT saga.fail('not now');
\echo :LAST_ERROR_SQLSTATE

-- Neither a step of this database nor a function that was called so may call.
CREATE FUNCTION barrier_test.nested(context jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT result FROM barrier_test.call(12, 'inner', 'action', 'barrier_test.act') $$;
SELECT * FROM barrier_test.call(12, 'outer', 'action', 'barrier_test.nested');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT saga.grant_usage('regress_saga_remote');
SELECT setval('saga.saga_id_seq', 45000000, false) AS ids_begin_at;
SET ROLE regress_saga_remote;
SELECT saga.define('barrier_nested', saga.step('s', 'barrier_test.nested'));
SELECT saga.begin('barrier_nested') AS id \gset
SELECT saga_test.outcome(:id);
SELECT sqlstate, message FROM saga.attempts WHERE saga_id = :id;
SELECT saga.drop_definition('barrier_nested', force => true);

------------------------------------------------------------------------------
-- Roles
------------------------------------------------------------------------------

-- What one has had done is not another's to repeat, undo or learn of.
SET ROLE regress_saga_remote_other;
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.who');
\echo :LAST_ERROR_SQLSTATE
SELECT * FROM barrier_test.call(1, 'ship', 'compensation', 'barrier_test.who');
SELECT * FROM barrier_test.call(4, 'ship', 'compensation', 'barrier_test.who');
SELECT * FROM barrier_test.call(3, 'ship', 'confirmation', 'barrier_test.who');
-- A saga may reach this database in several ways.
SELECT result FROM barrier_test.call(3, 'other', 'action', 'barrier_test.who');
-- Each sees its own, and nobody a token or an answer.
SELECT role, count(*) FROM saga.barriers GROUP BY 1 ORDER BY 1;
SELECT * FROM saga.barrier;
SELECT * FROM saga.barrier_horizon;
SELECT string_agg(attname, ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'saga.barriers'::regclass AND attnum > 0;
SET ROLE regress_saga_remote;
SELECT DISTINCT role FROM saga.barriers;
SELECT step, operation, element, round, coordinator, begun_at <= done_at AS times, void FROM saga.barriers WHERE step = 'ship' AND void OR element IS NOT NULL OR round > 0
ORDER BY step, element, round, operation, void;
SET ROLE regress_saga_monitor;
SELECT DISTINCT role FROM saga.barriers WHERE role LIKE 'regress_%' ORDER BY 1;
SET ROLE regress_saga_stranger;
SELECT * FROM saga.barriers;
RESET ROLE;

------------------------------------------------------------------------------
-- Forgetting
------------------------------------------------------------------------------

TRUNCATE saga.barrier;
SET ROLE regress_saga_remote;
-- Sagas 21 to 29 began on the first to the ninth.
SELECT count(*) FROM generate_series(1, 9) i, LATERAL barrier_test.call(20 + i, 'ship', 'action', 'barrier_test.void', begun_at => '2026-01-01'::timestamptz + (i - 1) * interval '1 day');
SET ROLE regress_saga_remote_other;
SELECT count(*) FROM generate_series(1, 3) i, LATERAL barrier_test.call(30 + i, 'ship', 'action', 'barrier_test.void', begun_at => '2026-01-01');
SET ROLE regress_saga_remote;
CREATE FUNCTION barrier_test.known() RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(extract(day FROM begun_at)::text, ' ' ORDER BY begun_at) FROM saga.barriers
    WHERE role = current_user AND coordinator = 'c0c0c0c0-0000-0000-0000-000000000000'
$$;
-- Which sagas of the first to the ninth are refused, when something new is asked for?
CREATE FUNCTION barrier_test.refused() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    refused text := '';
BEGIN
    FOR i IN 1..9 LOOP
        BEGIN
            PERFORM barrier_test.call(20 + i, 'more', 'compensation', 'barrier_test.void', begun_at => '2026-01-01'::timestamptz + (i - 1) * interval '1 day');
            RAISE EXCEPTION 'roll back';
        EXCEPTION WHEN SQLSTATE 'SG041' THEN
            refused := refused || i || ' ';
        WHEN raise_exception THEN
        END;
    END LOOP;
    RETURN refused;
END $$;
SELECT barrier_test.forget('2026-01-05', 22, 23), barrier_test.known(), barrier_test.refused();
-- What is known is answered; a call without the time of its saga is new.
SELECT outcome FROM barrier_test.call(22, 'ship', 'action', 'barrier_test.void', begun_at => '2026-01-02');
SELECT outcome FROM barrier_test.call(25, 'ship', 'action', 'barrier_test.void', begun_at => '2026-01-05');
\set VERBOSITY sqlstate
SELECT outcome FROM barrier_test.call(21, 'ship', 'action', 'barrier_test.act', begun_at => '2026-01-01');
SELECT outcome FROM barrier_test.call(21, 'ship', 'compensation', 'barrier_test.act', begun_at => '2026-01-01');
\set VERBOSITY default
BEGIN;
SELECT outcome FROM barrier_test.call(21, 'ship', 'action', 'barrier_test.void');
ROLLBACK;
-- Another coordinator's sagas, and another role's, have to do with other calls.
SELECT outcome FROM saga.participate(gen_random_uuid(), gen_random_uuid(), 'ship', 'action', 'barrier_test.void', '{}', begun_at => '2026-01-01');
SET ROLE regress_saga_remote_other;
SELECT barrier_test.known();
SELECT outcome FROM barrier_test.call(34, 'ship', 'action', 'barrier_test.void', begun_at => '2026-01-01');
SET ROLE regress_saga_remote;
-- The same news again; then that one more has ended.
SELECT barrier_test.forget('2026-01-05', 22, 23), barrier_test.refused();
SELECT barrier_test.forget('2026-01-05', 23), barrier_test.refused();
-- Old news; and who was given up comes back no more, though it be kept now.
SELECT barrier_test.forget('2026-01-03', 22, 23), barrier_test.refused();
SELECT barrier_test.forget('2026-01-05', 21, 22, 23), barrier_test.refused();
SELECT barrier_test.forget('2026-01-08', 21, 22, 23, 26), barrier_test.known(), barrier_test.refused();
SELECT barrier_test.forget('2026-01-09', 21, 22, 23, 23, 26, 28), barrier_test.known(), barrier_test.refused();
-- News that was overtaken on its way: nothing comes of it.
SELECT barrier_test.forget('2026-01-07'), barrier_test.known(), barrier_test.refused();
-- All have ended.
SELECT barrier_test.forget('2026-01-09'), barrier_test.known(), barrier_test.refused();
SELECT barrier_test.forget('2026-01-10'), barrier_test.known(), barrier_test.refused();
RESET ROLE;
SELECT role_name, before = '2026-01-10' AS before, kept, kept_since FROM saga.barrier_horizon;
SELECT role, count(*) FROM saga.barriers GROUP BY 1 ORDER BY 1;
-- So many at a time.
INSERT INTO saga.barrier SELECT gen_random_uuid(), -1, 0, 'action', false, '2026-01-10', now(), 'c0c0c0c0-0000-0000-0000-000000000000', 'ship', 'regress_saga_remote'
FROM generate_series(1, 10001);
SET ROLE regress_saga_remote;
SELECT barrier_test.forget('2026-01-11');
SELECT barrier_test.forget('2026-01-11');
SELECT barrier_test.forget('2026-01-11');

------------------------------------------------------------------------------
-- Arguments, and where it cannot be
------------------------------------------------------------------------------

SELECT * FROM barrier_test.call(1, 'ship', 'undo', 'barrier_test.act');
SELECT * FROM barrier_test.call(1, 'ship', NULL, 'barrier_test.act');
SELECT * FROM barrier_test.call(1, NULL, 'action', 'barrier_test.act');
SELECT * FROM barrier_test.call(1, '', 'action', 'barrier_test.act');
SELECT * FROM barrier_test.call(1, repeat('x', 64), 'action', 'barrier_test.act');
SELECT * FROM barrier_test.call(1, 'ship', 'action', NULL);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', NULL);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{}', NULL);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{}', -2);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{}', 0, -1);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', '{}', 0, 32768);
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act', begun_at => 'infinity');
SELECT * FROM saga.participate(NULL, gen_random_uuid(), 'ship', 'action', 'f', '{}');
SELECT * FROM saga.participate(gen_random_uuid(), NULL, 'ship', 'action', 'f', '{}');
SELECT saga.forget_barriers(NULL, now(), '{}');
SELECT saga.forget_barriers(gen_random_uuid(), NULL, '{}');
SELECT saga.forget_barriers(gen_random_uuid(), now(), NULL);
SELECT saga.forget_barriers(gen_random_uuid(), now(), '{NULL}');
SELECT saga.forget_barriers(gen_random_uuid(), 'infinity', '{}');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM barrier_test.call(1, 'ship', 'action', 'barrier_test.act');
\echo :LAST_ERROR_SQLSTATE
ROLLBACK;

RESET ROLE;
SET client_min_messages = warning;
TRUNCATE saga.barrier, saga.barrier_horizon;
DROP SCHEMA barrier_test, barrier_closed CASCADE;
DROP OWNED BY regress_saga_remote, regress_saga_remote_other;
DROP ROLE regress_saga_remote, regress_saga_remote_other;
