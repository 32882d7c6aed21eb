--
-- Invariants: a query is run as its owner and can be no more than that, whoever
-- has it checked; what it finds is kept, with the sagas that may have done it;
-- what a hostile one does is an error that is kept.
--
SELECT setval('saga.saga_id_seq', 48000000, false) AS ids_begin_at;
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_inv_owner, regress_inv_other, regress_inv_member, regress_inv_group;
CREATE ROLE regress_inv_group;
CREATE ROLE regress_inv_owner LOGIN IN ROLE regress_inv_group;
CREATE ROLE regress_inv_other LOGIN;
CREATE ROLE regress_inv_member LOGIN IN ROLE regress_inv_owner;
RESET client_min_messages;
SELECT saga.grant_usage('regress_inv_owner');
SELECT saga.grant_usage('regress_inv_other');
SELECT saga.grant_usage('regress_inv_member');
CREATE SCHEMA inv;
GRANT USAGE ON SCHEMA inv TO PUBLIC;
GRANT CREATE ON SCHEMA inv TO regress_inv_owner;
CREATE TABLE inv.secret (s text);
INSERT INTO inv.secret VALUES ('hidden');

SET ROLE regress_inv_owner;
SET search_path = inv, public;
CREATE TABLE stock (sku text PRIMARY KEY, on_hand integer, reserved integer);
INSERT INTO stock VALUES ('apple', 10, 0), ('pear', 5, 0), ('plum', 1, 0);
CREATE FUNCTION reserve(sku text, qty integer) RETURNS jsonb LANGUAGE sql
SET search_path = inv AS $$
    UPDATE stock s SET reserved = reserved + qty WHERE s.sku = reserve.sku
    RETURNING jsonb_build_object('reservation', 'r-' || s.sku)
$$;
SELECT saga.define('inv_order', saga.step('reserve', action => 'reserve', pivot => true),
    saga.timer_step('ship', delay => '1 day'));
-- What the last check of an invariant brought.
CREATE FUNCTION state(invariant text) RETURNS TABLE (state text, violations integer, truncated boolean, error text)
LANGUAGE sql AS $$
    SELECT i.state, i.violations, i.truncated, i.error ->> 'sqlstate' || ': ' || (i.error ->> 'message')
    FROM saga.invariants i WHERE i.invariant = $1
$$;

------------------------------------------------------------------------------
-- 1. What may be added
------------------------------------------------------------------------------
SELECT saga.add_invariant(NULL, 'SELECT 1');
SELECT saga.add_invariant('x', NULL);
SELECT saga.add_invariant('', 'SELECT 1');
SELECT saga.add_invariant(' x', 'SELECT 1');
SELECT saga.add_invariant(E'a\nb', 'SELECT 1');
SELECT saga.add_invariant(repeat('x', 64), 'SELECT 1');
SELECT saga.add_invariant('x', '');
SELECT saga.add_invariant('x', 'SELECT 1; SELECT 2');
SELECT saga.add_invariant('x', 'SELECT 1) AS v; DROP TABLE stock; --');
SELECT saga.add_invariant('x', 'SELECT 1) AS v, (SELECT 2');
SELECT saga.add_invariant('x', 'UPDATE stock SET on_hand = 0 RETURNING *');
SELECT saga.add_invariant('x', 'COPY stock TO STDOUT');
SELECT saga.add_invariant('x', 'CREATE TABLE t ()');
SELECT saga.add_invariant('x', 'SELECT * INTO t FROM stock');
SELECT saga.add_invariant('x', 'SELECT * FROM stock FOR UPDATE');
SELECT saga.add_invariant('x', 'WITH w AS (DELETE FROM stock RETURNING *) SELECT * FROM w');
SELECT saga.add_invariant('x', 'SELECT FROM stock');
SELECT saga.add_invariant('x', 'SELECT sku, on_hand AS sku FROM stock');
SELECT saga.add_invariant('x', 'SELECT * FROM nowhere');
SELECT saga.add_invariant('x', 'SELECT $1');
SELECT saga.add_invariant('x', 'SELECT');
SELECT saga.add_invariant('x', 'SELECT 1 FROM');
SELECT saga.add_invariant('x', 'SELECT sku FROM stock', key => '{sku,on_hand}');
SELECT saga.add_invariant('x', 'SELECT sku FROM stock', key => '{}');
SELECT saga.add_invariant('x', 'SELECT sku FROM stock', key => '{NULL}');
SELECT saga.add_invariant('x', 'SELECT 1', timeout => '0');
SELECT saga.add_invariant('x', 'SELECT 1', timeout => '2 days');
SELECT saga.add_invariant('x', 'SELECT 1', timeout => NULL);
SELECT saga.add_invariant('x', 'SELECT 1', max_rows => 0);
SELECT saga.add_invariant('x', 'SELECT 1', max_rows => 100000);
SELECT saga.add_invariant('x', 'SELECT 1', every => '-1 s');
SELECT saga.add_invariant('x', 'SELECT 1', pause => true);
SELECT saga.add_invariant('x', 'SELECT 1', definition => 'inv_nothing');
SELECT saga.add_invariant('x', 'SELECT ' || repeat('1 + ', 30000) || '1');
BEGIN READ ONLY;
SELECT saga.add_invariant('x', 'SELECT 1');
ROLLBACK;
SELECT count(*) FROM saga.invariants;

------------------------------------------------------------------------------
-- 2. What is found
------------------------------------------------------------------------------
-- The names are those of who has added it; what ends it is not kept.
SELECT saga.add_invariant('stock', 'SELECT sku, on_hand, reserved FROM stock WHERE reserved > on_hand; -- too many',
    definition => 'inv_order', key => '{sku}');
RESET search_path;
SELECT invariant, definition, owner, state, violations, checked_at, checks, pause, timeout, max_rows, every, key, query
FROM saga.invariants;
CALL saga.check_invariants();
SELECT * FROM inv.state('stock');
SELECT saga.begin('inv_order', '{"sku": "apple", "qty": 4}') AS first \gset
SELECT saga.begin('inv_order', '{"sku": "apple", "qty": 8}') AS second \gset
SELECT saga.begin('inv_order', '{"sku": "pear", "qty": 1}') AS third \gset
SELECT saga_test.waits_for(:first), saga_test.waits_for(:second), saga_test.waits_for(:third);
CALL saga.check_invariants();
SELECT * FROM inv.state('stock');
SELECT "row", sagas = ARRAY[:first, :second]::bigint[] AS those, more_sagas, ended_at,
    first_seen = last_seen AS new, good_until < first_seen AS since_then
FROM saga.violations;
SELECT alert, severity, subject, definition, message, hint FROM saga.alerts WHERE alert LIKE 'invariant%';
-- The same one, with other numbers; nobody else's sagas are added to it.
UPDATE inv.stock SET reserved = 11 WHERE sku = 'apple';
SELECT saga.check_invariant('stock');
SELECT "row", array_length(sagas, 1) AS sagas, ended_at, first_seen < last_seen AS seen_again FROM saga.violations;
-- Another beside it, whose sagas come later; then the first ends, and comes again.
SELECT saga.begin('inv_order', '{"sku": "pear", "qty": 7}') AS fourth \gset
SELECT saga_test.waits_for(:fourth);
SELECT saga.check_invariant('stock');
UPDATE inv.stock SET reserved = 0 WHERE sku = 'apple';
SELECT saga.check_invariant('stock');
UPDATE inv.stock SET reserved = 20 WHERE sku = 'apple';
SELECT saga.check_invariant('stock');
-- That one nobody touched: no saga did anything meanwhile.
SELECT "row", sagas = ARRAY[:first, :second]::bigint[] AS two, sagas = ARRAY[:fourth]::bigint[] AS one, sagas = '{}' AS none,
    ended_at IS NOT NULL AS ended FROM saga.violations ORDER BY id;
UPDATE inv.stock SET reserved = 0;
SELECT saga.check_invariant('stock');
SELECT alert FROM saga.alerts WHERE alert LIKE 'invariant%';
-- By what a step has returned, and of sagas that have ended.
SELECT saga.abandon(s) IS NOT NULL AS abandoned FROM unnest(ARRAY[:first, :second, :third, :fourth]::bigint[]) s;
SELECT saga_test.outcome(:first), saga_test.outcome(:second), saga_test.outcome(:third), saga_test.outcome(:fourth);
SELECT saga.add_invariant('reservations', $$SELECT 'r-plum' AS reservation, 1 AS n FROM inv.stock WHERE reserved = 99$$,
    definition => 'inv_order');
SELECT saga.check_invariant('reservations');
SELECT saga.begin('inv_order', '{"sku": "plum", "qty": 99}') AS fifth \gset
SELECT saga_test.waits_for(:fifth);
SELECT saga.begin('inv_order', '{"sku": "pear", "qty": 1}') AS sixth \gset
SELECT saga_test.waits_for(:sixth);
SELECT saga.abandon(:fifth) = :fifth AS abandoned;
SELECT saga_test.outcome(:fifth);
SELECT saga.check_invariant('reservations');
SELECT sagas = ARRAY[:fifth]::bigint[] AS it FROM saga.violations WHERE invariant = 'reservations';
-- The row says it.
SELECT saga.add_invariant('told', 'SELECT 12345 AS saga_id, now() > now() AS late');
SELECT saga.check_invariant('told');
SELECT "row", sagas, good_until FROM saga.violations WHERE invariant = 'told';
-- Equal rows are one violation; without a key all columns count.
SELECT saga.add_invariant('twice', 'SELECT 1 AS a UNION ALL SELECT 1 UNION ALL SELECT 2');
SELECT saga.check_invariant('twice');
-- More than are read: none of those that hold ends by that. Not more are kept than that.
SELECT saga.add_invariant('twice', 'SELECT 10 - n AS a FROM generate_series(1, 9) n', max_rows => 3);
SELECT saga.check_invariant('twice');
SELECT * FROM inv.state('twice');
SELECT message FROM saga.alerts WHERE subject = 'invariant twice';
SELECT saga.add_invariant('twice', 'SELECT 1 AS a', max_rows => 3);
SELECT saga.check_invariant('twice');
SELECT * FROM inv.state('twice');
-- Nothing is begun when the time is over.
CALL saga.check_invariants('0');
CALL saga.check_invariants(NULL);
CALL saga.check_invariants('-1 s');
-- Not more often than that.
SELECT saga.add_invariant('twice', 'SELECT 1 AS a WHERE false', every => '1 hour');
CALL saga.check_invariants();
CALL saga.check_invariants();
SELECT invariant, checks FROM saga.invariants WHERE invariant IN ('stock', 'twice') ORDER BY 1;
SELECT saga.drop_invariant('twice');
SELECT saga.drop_invariant('told');
SELECT saga.drop_invariant('reservations');
SELECT saga.drop_invariant('reservations');
SELECT invariant, alert FROM saga.invariants, saga.alerts WHERE alert LIKE 'invariant%';
SELECT count(*) FROM saga.violations WHERE invariant <> 'stock';

------------------------------------------------------------------------------
-- 3. Hostile queries
------------------------------------------------------------------------------
SET search_path = inv;
CREATE FUNCTION do_it(command text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; RETURN command; END $$;
-- Check it; say what came of that.
CREATE FUNCTION try() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    said text;
BEGIN
    BEGIN
        SELECT saga.check_invariant('hostile')::text INTO said;
    EXCEPTION WHEN query_canceled OR OTHERS THEN
        said := SQLSTATE || ': ' || SQLERRM;
    END;
    RETURN said;
END
$$;
CREATE TABLE queries (n integer PRIMARY KEY, query text);
INSERT INTO queries VALUES
    (1, 'SELECT 1 / (on_hand - on_hand) FROM stock'),
    (2, $$SELECT do_it('UPDATE stock SET on_hand = 0')$$),
    (3, $$SELECT do_it('CREATE TABLE t ()')$$),
    (4, $$SELECT do_it('CREATE TEMP TABLE t ()')$$),
    (5, $$SELECT do_it('SET ROLE regress_inv_group')$$),
    (6, $$SELECT do_it('SET SESSION AUTHORIZATION DEFAULT')$$),
    (7, $$SELECT do_it('SET transaction_read_only = off')$$),
    (8, $$SELECT do_it('COMMIT')$$),
    (9, $$SELECT do_it('LISTEN x')$$),
    (10, $$SELECT do_it('PREPARE x AS SELECT 1')$$),
    (11, $$SELECT do_it('VACUUM stock')$$),
    (12, $$SELECT saga.begin('inv_order', '{"sku": "apple", "qty": 1}')$$),
    (13, $$SELECT saga.cancel(1)$$),
    (14, $$SELECT saga.add_invariant('nested', 'SELECT 1')$$),
    (15, $$SELECT saga.check_invariant('stock')$$),
    (16, $$SELECT do_it('CALL saga.check_invariants()')$$),
    (17, 'SELECT * FROM secret'),
    (18, $$SELECT repeat(md5(n::text), 5000) AS big FROM generate_series(1, 3) n$$),
    (19, $$SELECT n, repeat(md5(n::text), 2000) AS big FROM generate_series(1, 1000) n$$),
    (20, 'SELECT 1 AS a WHERE pg_sleep(0) IS NULL'),
    (21, $$SELECT pg_sleep(60)$$),
    (22, $$SELECT do_it('DECLARE x CURSOR WITH HOLD FOR SELECT 1')$$),
    (23, $$SELECT nextval('stock_seq')$$);
CREATE SEQUENCE stock_seq;
-- The caller is told, and what it was told is kept.
CREATE PROCEDURE try_all() LANGUAGE plpgsql AS $$
DECLARE
    q record;
    said text;
BEGIN
    FOR q IN SELECT * FROM queries ORDER BY n LOOP
        PERFORM saga.add_invariant('hostile', q.query, timeout => CASE WHEN q.n = 21 THEN '200 ms' ELSE '1 min' END::interval);
        COMMIT;
        said := try();
        RAISE NOTICE '%: % %', q.n, said, CASE WHEN (SELECT s.error FROM state('hostile') s) IS NULL THEN ''
            WHEN 'could not check invariant "hostile": ' || (SELECT substr(s.error, 8) FROM state('hostile') s) = substr(said, 8)
            THEN '' ELSE ' BUT ' || (SELECT s.error FROM state('hostile') s) END;
        COMMIT;
    END LOOP;
END
$$;
SET client_min_messages = notice;
CALL try_all();
RESET client_min_messages;
SELECT * FROM stock ORDER BY sku;
SELECT to_regclass('t'), count(*) FROM saga.invariants WHERE invariant = 'nested';
-- What ends its process can be kept by the procedure only, which commits.
SELECT saga.add_invariant('hostile', 'SELECT pg_terminate_backend(pg_backend_pid())');
SELECT saga.check_invariant('hostile');
CALL saga.check_invariants();
SELECT * FROM state('hostile');
-- What a function sets is gone with its process; what it notifies nobody hears.
LISTEN inv_channel;
SELECT saga.add_invariant('hostile', $$SELECT set_config('search_path', 'pg_catalog', false),
    set_config('saga.local_commit', 'async', false) AS b, pg_notify('inv_channel', 'heard'), pg_advisory_lock(48)$$);
SHOW search_path;
SELECT saga.check_invariant('hostile');
SELECT current_user, pg_try_advisory_lock(48), pg_advisory_unlock(48);
SHOW search_path;
UNLISTEN *;
-- A column of any name; nulls, arrays and rows in it.
SELECT saga.add_invariant('hostile', $$SELECT 1 AS "violation", 2 AS "v""; --", NULL AS "null", ARRAY[1] AS a, ROW(1, 'x') AS r$$);
SELECT saga.check_invariant('hostile');
SELECT "row" FROM saga.violations WHERE invariant = 'hostile' AND ended_at IS NULL;
-- An error after a violation: that holds until it is known not to.
SELECT saga.add_invariant('hostile', $$SELECT 1 AS a FROM stock WHERE do_it('SELECT 1/0') = ''$$);
SELECT saga.check_invariant('hostile');
CALL saga.check_invariants();
SELECT * FROM state('hostile');
SELECT alert, severity, message, hint FROM saga.alerts WHERE subject = 'invariant hostile' ORDER BY 1;
SELECT jsonb_object_keys(error) FROM saga.invariants WHERE invariant = 'hostile' ORDER BY 1;
SELECT saga.add_invariant('hostile', 'SELECT 1 AS a WHERE false');
SELECT saga.check_invariant('hostile');
SELECT * FROM state('hostile');
SELECT alert FROM saga.alerts WHERE subject = 'invariant hostile';

------------------------------------------------------------------------------
-- 4. Whose it is
------------------------------------------------------------------------------
-- It is run as its owner, whoever asks.
SELECT saga.add_invariant('hostile', 'SELECT current_user AS me, session_user AS session, is_superuser.s AS super FROM (SELECT current_setting(''is_superuser'') AS s) is_superuser');
RESET ROLE;
SELECT saga.check_invariant('hostile');
SELECT "row" FROM saga.violations WHERE invariant = 'hostile' AND ended_at IS NULL;
SET ROLE regress_saga_operator;
SELECT saga.check_invariant('hostile');
CALL saga.check_invariants();
SELECT "row" FROM saga.violations WHERE invariant = 'hostile' AND ended_at IS NULL;
SELECT saga.drop_invariant('hostile');
SET ROLE regress_inv_member;
SELECT saga.check_invariant('hostile');
SELECT "row" FROM saga.violations WHERE invariant = 'hostile' AND ended_at IS NULL;
-- A member of the owner replaces it: it stays the owner's.
SELECT saga.add_invariant('hostile', 'SELECT current_user AS it');
SELECT saga.check_invariant('hostile');
SELECT "row" FROM saga.violations WHERE invariant = 'hostile' AND ended_at IS NULL;
-- So does a superuser: no superuser runs what is somebody else's.
RESET ROLE;
SELECT saga.add_invariant('hostile', 'SELECT current_user AS who');
SELECT saga.check_invariant('hostile');
SELECT i.owner, v."row" FROM saga.violations v JOIN saga.invariants i USING (invariant)
WHERE invariant = 'hostile' AND ended_at IS NULL;
-- Others see nothing of it, and can do nothing to it.
SET ROLE regress_inv_other;
SELECT count(*) FROM saga.invariants;
SELECT count(*) FROM saga.violations;
SELECT count(*) FROM saga.alerts WHERE alert LIKE 'invariant%';
SELECT saga.add_invariant('hostile', 'SELECT 1');
SELECT saga.drop_invariant('hostile');
SELECT saga.check_invariant('hostile');
SELECT saga.check_invariant('nothing');
CALL saga.check_invariants();
SELECT saga.add_invariant('theirs', 'SELECT 1 AS a', definition => 'inv_order');
SET ROLE regress_inv_owner;
SELECT saga.grant_begin('inv_order', 'regress_inv_other');
SET ROLE regress_inv_other;
-- Whose sagas it may begin it may look for, but not have it paused.
SELECT saga.add_invariant('theirs', 'SELECT 1 AS a', definition => 'inv_order', pause => true);
RESET ROLE;
CREATE TABLE inv.gate (open boolean);
INSERT INTO inv.gate VALUES (false);
GRANT SELECT ON inv.gate TO regress_inv_other;
SET ROLE regress_inv_other;
SELECT saga.add_invariant('theirs', $$SELECT 'apple' AS sku FROM inv.gate WHERE open$$, definition => 'inv_order');
SELECT saga.check_invariant('theirs');
-- The saga of somebody else's is not told to it.
SET ROLE regress_inv_owner;
SELECT saga.begin('inv_order', '{"sku": "apple", "qty": 1}') AS hidden \gset
SELECT saga_test.waits_for(:hidden);
RESET ROLE;
UPDATE inv.gate SET open = true;
SET ROLE regress_inv_other;
SELECT saga.check_invariant('theirs');
SELECT "row", sagas FROM saga.violations;
SELECT saga.drop_invariant('theirs');
SET ROLE regress_saga_monitor;
SELECT invariant, owner, query FROM saga.invariants ORDER BY 1;
SELECT saga.check_invariant('hostile');
SET ROLE regress_saga_stranger;
SELECT * FROM saga.invariants;
SELECT saga.add_invariant('x', 'SELECT 1');
CALL saga.check_invariants();
-- Members of pg_monitor see that there is something, not what.
RESET ROLE;
GRANT pg_monitor TO regress_saga_stranger;
SET ROLE regress_saga_stranger;
SELECT invariant, state, violations, query, error FROM saga.invariants ORDER BY 1;
SELECT alert, subject, message FROM saga.alerts WHERE alert LIKE 'invariant%' ORDER BY 2;
SELECT * FROM saga.violations;
RESET ROLE;
REVOKE pg_monitor FROM regress_saga_stranger;
SET ROLE regress_inv_owner;
SELECT saga.drop_invariant('hostile');

------------------------------------------------------------------------------
-- 5. When and where
------------------------------------------------------------------------------
-- It sees what is committed: so it has to be, itself.
BEGIN;
SELECT saga.add_invariant('late', 'SELECT 1 AS a FROM stock WHERE sku = ''kiwi''');
SELECT saga.check_invariant('late');
ROLLBACK;
SELECT saga.add_invariant('late', 'SELECT 1 AS a FROM stock WHERE sku = ''kiwi''');
BEGIN;
INSERT INTO stock VALUES ('kiwi', 1, 1);
SELECT saga.check_invariant('late');
CALL saga.check_invariants();
ROLLBACK;
BEGIN READ ONLY;
SELECT saga.check_invariant('late');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM stock;
SELECT saga.check_invariant('late');
COMMIT;
DO $$ DECLARE a bigint; b bigint; c bigint; BEGIN CALL saga.check_invariants('1 s', a, b, c); EXCEPTION WHEN OTHERS THEN RAISE WARNING '%', SQLERRM; END $$;
SELECT saga.drop_invariant('late');
-- Not from a step, nor where PostgreSQL runs code by itself.
CREATE FUNCTION check_it() RETURNS jsonb LANGUAGE sql SET search_path = inv AS $$ SELECT to_jsonb(saga.check_invariant('stock')) $$;
SELECT saga.define('inv_nested', saga.step('check', action => 'check_it', retry => saga.retry_policy(max_attempts => 1)));
SELECT saga.begin('inv_nested', '{}') AS nested \gset
SELECT saga_test.outcome(:nested);
SELECT error ->> 'message' AS error FROM saga.sagas WHERE saga_id = :nested;

------------------------------------------------------------------------------
-- 6. Pausing
------------------------------------------------------------------------------
SELECT saga.add_invariant('stock', 'SELECT sku, on_hand, reserved FROM stock WHERE reserved > on_hand',
    definition => 'inv_order', pause => true, key => '{sku}');
UPDATE stock SET reserved = 0;
SELECT saga.check_invariant('stock');
SELECT saga.begin('inv_order', '{"sku": "plum", "qty": 9}') AS seventh \gset
SELECT saga_test.waits_for(:seventh);
SELECT saga.begin('inv_order', '{"sku": "pear", "qty": 1}', start_at => now() + interval '1 hour') AS eighth \gset
SELECT saga.check_invariant('stock');
SELECT saga_test.outcome(:sixth), saga_test.outcome(:seventh), saga_test.outcome(:eighth), saga_test.outcome(:hidden);
SELECT verb, reason, requested_by, outcome FROM saga.requests WHERE saga_id = :seventh;
SELECT enabled, disabled_by FROM saga.definitions WHERE name = 'inv_order';
SELECT saga.begin('inv_order', '{"sku": "plum", "qty": 1}');
-- Enabled again it stays so, though the violation is still there; a new one pauses it.
SELECT saga.configure('inv_order', enabled => true);
SELECT enabled, disabled_by FROM saga.definitions WHERE name = 'inv_order';
SELECT saga.resume(s) IS NOT NULL AS resumed FROM unnest(ARRAY[:sixth, :seventh, :eighth, :hidden]::bigint[]) s;
SELECT saga.check_invariant('stock');
SELECT saga_test.waits_for(:seventh);
SELECT saga.begin('inv_order', '{"sku": "pear", "qty": 9}') AS ninth \gset
SELECT saga_test.waits_for(:ninth);
SELECT saga.check_invariant('stock');
SELECT saga_test.outcome(:ninth), saga_test.outcome(:seventh);
SELECT enabled, disabled_by FROM saga.definitions WHERE name = 'inv_order';
-- Disabled by a person it does not say that it was paused.
SELECT saga.configure('inv_order', enabled => false);
SELECT saga.begin('inv_order', '{"sku": "plum", "qty": 1}');
SELECT saga.configure('inv_order', enabled => true);
-- Whoever may not have it paused any more, or what is not there, is told so; what was found counts.
RESET ROLE;
SELECT saga.add_invariant('late', 'SELECT sku FROM inv.stock WHERE on_hand = 77', definition => 'inv_order', pause => true);
UPDATE saga.invariant SET owner = 'regress_inv_other'::regrole, owner_name = 'regress_inv_other' WHERE name = 'late';
GRANT SELECT ON inv.stock TO regress_inv_other;
UPDATE inv.stock SET on_hand = 77 WHERE sku = 'plum';
CALL saga.check_invariants();
SELECT * FROM inv.state('late');
SELECT enabled FROM saga.definitions WHERE name = 'inv_order';
SELECT saga.drop_invariant('late');

SET ROLE regress_inv_owner;
SELECT saga.abandon(saga_id) IS NOT NULL AS abandoned FROM saga.sagas WHERE definition = 'inv_order' AND finished_at IS NULL;
SELECT * FROM saga_test.all_ended('inv\_%');
SELECT saga.drop_invariant('stock');
SELECT saga.drop_definition('inv_order');
SELECT count(*) FROM saga.invariants;
RESET ROLE;
SELECT count(*) FROM saga.alerts WHERE alert LIKE 'invariant%';
SET client_min_messages = warning;
DROP SCHEMA inv CASCADE;
DROP OWNED BY regress_inv_owner, regress_inv_other, regress_inv_member, regress_inv_group;
DROP ROLE regress_inv_owner, regress_inv_other, regress_inv_member, regress_inv_group;
