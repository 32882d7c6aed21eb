--
-- saga.begin(): what it accepts and what it refuses; and that a saga exists if
-- and only if the transaction that called it committed (P1), however that
-- transaction is made: savepoints, subtransactions, DO blocks, functions,
-- triggers, procedures that commit, a hundred thousand at once.
--
SELECT setval('saga.saga_id_seq', 1000000, false) AS ids_begin_at;
CREATE SCHEMA begin_test;
GRANT USAGE ON SCHEMA begin_test TO PUBLIC;
GRANT CREATE ON SCHEMA begin_test TO regress_saga_owner;

SET ROLE regress_saga_owner;
CREATE TABLE begin_test.note (n bigint GENERATED ALWAYS AS IDENTITY, what text, at timestamptz DEFAULT clock_timestamp(), as_role name DEFAULT current_user);
CREATE FUNCTION begin_test.write(what text) RETURNS text LANGUAGE sql
    AS 'INSERT INTO begin_test.note (what) VALUES (what) RETURNING what';
CREATE FUNCTION begin_test.erase(what text) RETURNS void LANGUAGE sql
    AS 'INSERT INTO begin_test.note (what) VALUES (''not '' || erase.what)';
CREATE FUNCTION begin_test.wait() RETURNS void LANGUAGE plpgsql
    AS $$ BEGIN PERFORM saga.retry_later('1 day', 'not yet'); END $$;
CREATE FUNCTION begin_test.nothing() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
SELECT saga.define('begin_write', saga.step('write', 'begin_test.write', 'begin_test.erase'));
SELECT saga.define('begin_wait', saga.step('write', 'begin_test.write', 'begin_test.erase'), saga.step('wait', 'begin_test.wait'));
SELECT saga.define('begin_nothing', saga.step('nothing', 'begin_test.nothing'));

-- An id comes back, and after the commit the saga runs.
SELECT saga.begin('begin_write', '{"what": "one"}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT what, as_role FROM begin_test.note;
SELECT saga.result(:id);
SELECT definition, version, key, status, owner, step, waiting_for, next_attempt_at, input, result, error,
       created_at <= started_at AS started_later, started_at <= finished_at AS finished_later, deadline, compensates
FROM saga.sagas WHERE saga_id = :id;
-- The input is optional when no step needs any.
SELECT saga.begin('begin_nothing') AS id \gset
SELECT saga_test.outcome(:id);

-- Arguments that are refused.
SELECT saga.begin('begin_writ', '{"what": "x"}');
SELECT saga.begin('something else entirely');
SELECT saga.begin('');
SELECT saga.begin(NULL);
SELECT saga.begin('begin_write', NULL);
SELECT saga.begin('begin_write');
SELECT saga.begin('begin_write', '{"What": "x"}');
SELECT saga.begin('begin_write', '["what"]');
SELECT saga.begin('begin_write', '"what"');
SELECT saga.begin('begin_write', 'null');
SELECT saga.begin('begin_write', '{"what": "x"}', key => '');
SELECT saga.begin('begin_write', '{"what": "x"}', key => repeat('x', 1001));
SELECT saga.begin('begin_write', '{"what": "x"}', start_at => 'infinity');
SELECT saga.begin('begin_write', '{"what": "x"}', deadline => '-infinity');
SELECT saga.begin('begin_write', '{"what": "x"}', deadline => now() - interval '1 s');
SELECT saga.begin('begin_write', '{"what": "x"}', start_at => now() + interval '2 h', deadline => now() + interval '1 h');
SELECT saga.begin('begin_write', '{"what": "x"}', traceparent => '');
SELECT saga.begin('begin_write', '{"what": "x"}', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331');
SELECT saga.begin('begin_write', '{"what": "x"}', traceparent => '00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01');
SELECT saga.begin('begin_write', '{"what": "x"}', traceparent => '00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01');
SELECT saga.begin('begin_write', '{"what": "x"}', on_duplicate => NULL);
SELECT saga.begin('begin_write', '{"what": "x"}', on_duplicate => 'ignore');
SELECT saga.begin('begin_write', '{"what": "x"}', key => 'k', on_duplicate => 'RETURN');
-- None of them is there.
SELECT count(*) FROM saga.sagas WHERE definition LIKE 'begin%';

-- A field that is null is there; others than the steps' are kept.
SELECT saga.begin('begin_write', '{"what": null, "who": ["cares"]}', key => repeat('k', 1000),
                  traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
                  on_duplicate => 'return', trust_definition => NULL) AS id \gset
SELECT saga_test.outcome(:id);
SELECT length(key), input, traceparent FROM saga.sagas WHERE saga_id = :id;

-- Keys: one saga per definition and key.
SELECT saga.begin('begin_wait', '{"what": "first"}', key => 'k') AS first \gset
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k') = :first AS same;
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k', on_duplicate => 'error');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k', on_duplicate => 'new') = :first AS same;
SELECT saga.begin('begin_wait', '{"what": "other"}', key => 'K') <> :first AS another_key;
SELECT saga.begin('begin_write', '{"what": "other"}', key => 'k') <> :first AS another_definition;
SELECT saga_test.waits_for(:first);
SELECT saga.cancel(:first, 'to end it') = :first AS cancelled;
SELECT saga_test.outcome(:first);
-- One that has ended keeps its key, unless a new saga takes it.
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k') = :first AS same;
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k', on_duplicate => 'error');
SELECT saga.begin('begin_wait', '{"what": "second"}', key => 'k', on_duplicate => 'new') AS second \gset
SELECT :second <> :first AS new;
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k') = :second AS same;
SELECT saga.begin('begin_wait', '{"what": "again"}', key => 'k', on_duplicate => 'new') = :second AS same;
SELECT key, input, status FROM saga.sagas WHERE definition = 'begin_wait' AND key = 'k' AND status = 'compensated';
-- A key that was rolled back is free; in one transaction it counts at once.
BEGIN;
SAVEPOINT s;
SELECT saga.begin('begin_nothing', key => 'rolled back') AS rolled_back \gset
ROLLBACK TO s;
SELECT saga.begin('begin_nothing', key => 'rolled back') AS id \gset
SELECT :id <> :rolled_back AS new, saga.begin('begin_nothing', key => 'rolled back') = :id AS same;
SELECT saga.begin('begin_nothing', key => 'rolled back', on_duplicate => 'new') = :id AS same;
COMMIT;
SELECT saga_test.outcome(:id);
-- The same key many times in one statement.
SELECT count(DISTINCT saga.begin('begin_nothing', key => 'many')) FROM generate_series(1, 100);
-- Under repeatable read too: the key is there already.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(DISTINCT saga.begin('begin_nothing', key => 'many')), count(DISTINCT saga.begin('begin_nothing', key => 'rr')) FROM generate_series(1, 10);
COMMIT;

-- A time to start.
SELECT saga.begin('begin_write', '{"what": "tomorrow"}', start_at => now() + interval '1 day') AS id \gset
SELECT status, waiting_for, next_attempt_at = start_at AS at_start, start_at > now() AS later, started_at FROM saga.sagas WHERE saga_id = :id;
SELECT * FROM saga_test.story(:id);
-- It ends without having done anything.
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT saga.begin('begin_write', '{"what": "past"}', start_at => '1999-12-31') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.begin('begin_write', '{"what": "soon"}', start_at => clock_timestamp() + interval '300 ms') AS id \gset
SELECT saga_test.outcome(:id);
SELECT n.at >= s.start_at AS not_before, n.at < s.start_at + interval '30 s' AS soon_after
FROM saga.sagas s, begin_test.note n WHERE s.saga_id = :id AND n.what = 'soon';

-- A deadline that passes: what was done is undone.
SELECT saga.begin('begin_wait', '{"what": "late"}', deadline => clock_timestamp() + interval '1 s') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT error, finished_at >= deadline AS not_before, finished_at < deadline + interval '30 s' AS soon_after FROM saga.sagas WHERE saga_id = :id;
-- ... and before it has started.
SELECT saga.begin('begin_write', '{"what": "never"}', start_at => now() + interval '1 h', deadline => now() + interval '61 min') AS id \gset
SELECT saga.cancel(:id) = :id AS cancelled;
SELECT saga_test.outcome(:id);
-- The definition's deadline counts from the start.
SELECT saga.configure('begin_wait', deadline => '1 h');
SELECT saga.begin('begin_wait', '{"what": "x"}') AS id \gset
SELECT saga.begin('begin_wait', '{"what": "x"}', start_at => now() + interval '1 day') AS later \gset
SELECT saga.begin('begin_wait', '{"what": "x"}', deadline => now() + interval '2 h') AS own \gset
SELECT saga.configure('begin_wait', deadline => '0');
SELECT saga.begin('begin_wait', '{"what": "x"}') AS without \gset
SELECT saga_id - :id AS n, date_trunc('minute', deadline - COALESCE(start_at, created_at) + interval '30 s') AS deadline
FROM saga.sagas WHERE saga_id >= :id AND definition = 'begin_wait' ORDER BY saga_id;
SELECT count(saga.abandon(saga_id, 'end of test')) FROM saga.sagas WHERE definition = 'begin_wait' AND finished_at IS NULL;

-- Savepoints: what is rolled back never was.
DELETE FROM begin_test.note;
BEGIN;
SELECT saga.begin('begin_write', '{"what": "before"}') AS before \gset
SAVEPOINT a;
SELECT saga.begin('begin_write', '{"what": "rolled back"}') AS rolled_back \gset
SAVEPOINT b;
SELECT saga.begin('begin_write', '{"what": "rolled back, released"}') \gset
RELEASE b;
ROLLBACK TO a;
SELECT saga.begin('begin_write', '{"what": "released"}') AS released \gset
RELEASE a;
SAVEPOINT c;
SELECT saga.begin('begin_write', '{"what": "after"}') AS after \gset
SELECT 1/0;
ROLLBACK TO c;
SELECT saga.begin('begin_write', '{"what": "again"}') AS again \gset
COMMIT;
SELECT saga_test.outcome(:before), saga_test.outcome(:released), saga_test.outcome(:again);
SELECT count(*) FROM saga.sagas WHERE saga_id IN (:rolled_back, :after);
SELECT what FROM begin_test.note ORDER BY what;
-- The whole transaction.
BEGIN;
SELECT saga.begin('begin_write', '{"what": "rolled back"}') AS id \gset
SELECT status FROM saga.sagas WHERE saga_id = :id;
ROLLBACK;
SELECT count(*) FROM saga.sagas WHERE saga_id = :id;
-- Nobody runs it before the commit.
BEGIN;
SELECT saga.begin('begin_write', '{"what": "patience"}') AS id \gset
SELECT status, started_at FROM saga.sagas WHERE saga_id = :id;
COMMIT;
SELECT saga_test.outcome(:id);

-- Subtransactions of PL/pgSQL, some of which fail.
DELETE FROM begin_test.note;
DO $$
BEGIN
    FOR i IN 1 .. 10 LOOP
        BEGIN
            PERFORM saga.begin('begin_write', jsonb_build_object('what', 'do ' || i), key => 'do ' || i);
            IF i % 3 = 0 THEN
                RAISE EXCEPTION 'no';
            END IF;
        EXCEPTION WHEN raise_exception THEN
            PERFORM saga.begin('begin_write', jsonb_build_object('what', 'instead of ' || i));
        END;
    END LOOP;
END
$$;
SELECT saga_test.wait_until($$ (SELECT count(*) FROM begin_test.note) = 10 $$, 'all of the DO block');
SELECT what FROM begin_test.note ORDER BY what COLLATE "C";
SELECT count(*) FROM saga.sagas WHERE key LIKE 'do %';
-- More subtransactions than a backend's cache of them has room for.
DO $$
BEGIN
    FOR i IN 1 .. 200 LOOP
        BEGIN
            PERFORM saga.begin('begin_nothing', key => 'sub ' || i);
            IF i % 2 = 0 THEN
                RAISE EXCEPTION 'no';
            END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END
$$;
SELECT saga_test.wait_until($$ NOT EXISTS (SELECT FROM saga.sagas WHERE key LIKE 'sub %' AND status <> 'completed') $$, 'the odd ones');
SELECT count(*) FROM saga.sagas WHERE key LIKE 'sub %';

-- In functions, triggers, and at the very end of a transaction.
DELETE FROM begin_test.note;
CREATE TABLE begin_test.orders (id integer PRIMARY KEY, bad boolean NOT NULL DEFAULT false);
CREATE FUNCTION begin_test.order_saga() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM saga.begin('begin_write', jsonb_build_object('what', TG_NAME || ' ' || NEW.id), key => TG_NAME || ' ' || NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER at_once AFTER INSERT ON begin_test.orders FOR EACH ROW EXECUTE FUNCTION begin_test.order_saga();
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON begin_test.orders DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION begin_test.order_saga();
INSERT INTO begin_test.orders SELECT generate_series(1, 3);
COPY begin_test.orders (id) FROM stdin;
4
5
\.
INSERT INTO begin_test.orders SELECT generate_series(6, 7) ON CONFLICT DO NOTHING;
INSERT INTO begin_test.orders VALUES (8), (1);
SELECT saga_test.wait_until($$ (SELECT count(*) FROM begin_test.note) = 14 $$, 'a saga for each trigger');
SELECT what FROM begin_test.note ORDER BY what COLLATE "C";
-- A procedure that commits some and rolls back others.
CREATE PROCEDURE begin_test.commits() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 6 LOOP
        PERFORM saga.begin('begin_nothing', key => 'procedure ' || i);
        IF i % 2 = 0 THEN
            COMMIT;
        ELSIF i % 3 = 0 THEN
            ROLLBACK;
        END IF;
    END LOOP;
END
$$;
CALL begin_test.commits();
SELECT key, saga_test.outcome(saga_id) FROM saga.sagas WHERE key LIKE 'procedure %' ORDER BY key;
-- Prepared statements, CTEs, and a data-modifying statement that returns ids.
PREPARE beginner(text) AS WITH b AS (SELECT saga.begin('begin_nothing', key => $1) AS id) SELECT count(id) FROM b;
EXECUTE beginner('prepared 1');
EXECUTE beginner('prepared 2');
DEALLOCATE beginner;
INSERT INTO begin_test.orders SELECT 100 + g FROM generate_series(1, 2) g RETURNING id, saga.begin('begin_nothing', key => 'returning ' || id) > 0 AS begun;
SELECT key, saga_test.outcome(saga_id) FROM saga.sagas WHERE key LIKE 'prepared %' OR key LIKE 'returning %' ORDER BY key COLLATE "C";

-- A saga runs the version that was the newest when it was begun.
SELECT saga.begin('begin_write', '{"what": "old version"}', key => 'old version', start_at => clock_timestamp() + interval '500 ms') AS old \gset
SELECT saga.define('begin_write', saga.step('write', 'begin_test.write', 'begin_test.erase'), saga.step('more', 'begin_test.nothing'));
SELECT saga.begin('begin_write', '{"what": "new version"}', key => 'new version') AS new \gset
SELECT saga_test.outcome(:old), saga_test.outcome(:new);
SELECT key, version, (SELECT string_agg(step || ' ' || t.status, ', ' ORDER BY position) FROM saga.steps t WHERE t.saga_id = s.saga_id)
FROM saga.sagas s WHERE saga_id IN (:old, :new) ORDER BY saga_id;

-- Disabled definitions begin nothing; what has begun goes on.
SELECT saga.begin('begin_nothing', key => 'enabled', start_at => clock_timestamp() + interval '500 ms') AS id \gset
SELECT saga.configure('begin_nothing', enabled => false);
SELECT saga.begin('begin_nothing');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.begin('begin_nothing', key => 'enabled');
SELECT saga_test.outcome(:id);
SELECT saga.configure('begin_nothing', enabled => true);
SELECT saga.begin('begin_nothing') > 0 AS begun;

-- Who may begin: the owner of the definition, and those it lets.
RESET ROLE;
SET ROLE regress_saga_stranger;
SELECT saga.begin('begin_nothing');
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT saga.begin('begin_nothing');
RESET ROLE;
SET ROLE regress_saga_other;
SELECT saga.begin('begin_nothing');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SET ROLE regress_saga_owner;
SELECT saga.grant_begin('begin_nothing', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.begin('begin_nothing', key => 'granted') AS id \gset
SELECT saga_test.outcome(:id);
SELECT owner FROM saga.sagas WHERE saga_id = :id;
SET ROLE regress_saga_owner;
SELECT saga.revoke_begin('begin_nothing', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.begin('begin_nothing');
-- It is the current user's: of the definer in a SECURITY DEFINER function.
SET ROLE regress_saga_owner;
CREATE FUNCTION begin_test.begin_for_others(what text) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ SELECT saga.begin('begin_write', jsonb_build_object('what', what)) $$;
SET ROLE regress_saga_other;
SELECT begin_test.begin_for_others('definer') AS id \gset
SET ROLE regress_saga_owner;
SELECT saga_test.outcome(:id);
SELECT owner, (SELECT as_role FROM begin_test.note WHERE what = 'definer') FROM saga.sagas WHERE saga_id = :id;
RESET ROLE;
-- A superuser does not run by accident what others defined.
SELECT saga.begin('begin_write', '{"what": "superuser"}');
\echo :LAST_ERROR_SQLSTATE
SELECT saga.begin('begin_write', '{"what": "superuser"}', trust_definition => true) AS id \gset
SELECT saga_test.outcome(:id);
SELECT as_role = session_user AS as_superuser FROM begin_test.note WHERE what = 'superuser';

-- Where nothing may be written, or PostgreSQL runs code on its own behalf.
SET ROLE regress_saga_owner;
BEGIN READ ONLY;
SELECT saga.begin('begin_nothing');
ROLLBACK;
CREATE FUNCTION begin_test.sneak() RETURNS bigint LANGUAGE sql AS $$ SELECT saga.begin('begin_nothing', key => 'sneaked') $$;
CREATE MATERIALIZED VIEW begin_test.sneaky AS SELECT begin_test.sneak();
\echo :LAST_ERROR_SQLSTATE
CREATE MATERIALIZED VIEW begin_test.sneaky AS SELECT begin_test.sneak() WITH NO DATA;
RESET ROLE;
REFRESH MATERIALIZED VIEW begin_test.sneaky;
SELECT count(*) FROM saga.sagas WHERE key = 'sneaked';

-- A hundred thousand in one transaction: all of them run, none is lost, and
-- the session holds no memory for each.
CREATE FUNCTION begin_test.memory() RETURNS bigint LANGUAGE sql SECURITY DEFINER
    AS 'SELECT sum(total_bytes)::bigint FROM pg_catalog.pg_backend_memory_contexts';
SET ROLE regress_saga_owner;
SELECT saga.define('begin_many', saga.step('nothing', 'begin_test.nothing'));
BEGIN;
SELECT count(saga.begin('begin_many')) FROM generate_series(1, 1000);
SELECT begin_test.memory() AS before \gset
SELECT count(saga.begin('begin_many')) FROM generate_series(1, 99000);
SELECT begin_test.memory() - :before < 1000000 AS flat;
COMMIT;
SELECT * FROM saga_test.all_ended('begin_many');
SELECT status, count(*), count(DISTINCT saga_id) FROM saga.sagas WHERE definition = 'begin_many' GROUP BY status;
SELECT status, attempts, count(*) FROM saga.steps WHERE saga_id IN (SELECT saga_id FROM saga.sagas WHERE definition = 'begin_many') GROUP BY status, attempts;

-- Nothing is left unfinished.  (So many rows would slow down the next scripts.)
RESET ROLE;
SELECT * FROM saga_test.all_ended('begin%');
DELETE FROM saga.step USING saga.saga s, saga.definition_version v WHERE step.saga_id = s.id AND s.definition_id = v.id AND v.name = 'begin_many';
DELETE FROM saga.saga s USING saga.definition_version v WHERE s.definition_id = v.id AND v.name = 'begin_many';
VACUUM (ANALYZE) saga.saga, saga.step;
SET client_min_messages = warning;
SELECT saga.drop_definition(name) FROM saga.definitions WHERE name LIKE 'begin%' ORDER BY name;
DROP SCHEMA begin_test CASCADE;
