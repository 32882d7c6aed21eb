--
-- Definitions: saga.define() finds everything that is wrong with one and says
-- which step it is, alone or among the others; the same definition twice is one version; a definition is
-- its owner's, whom it lets begin is the owner's choice, and it is not dropped
-- while sagas of it are not final.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS saga;
DROP ROLE IF EXISTS regress_saga_alice, regress_saga_bob;
CREATE ROLE regress_saga_alice;
CREATE ROLE regress_saga_bob;
RESET client_min_messages;
GRANT USAGE ON SCHEMA saga TO regress_saga_alice, regress_saga_bob;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA saga TO regress_saga_alice, regress_saga_bob;

CREATE SCHEMA deftest;
GRANT USAGE ON SCHEMA deftest TO regress_saga_alice, regress_saga_bob;
CREATE DOMAIN deftest.quantity AS integer CHECK (VALUE > 0);
CREATE FUNCTION deftest.reserve_stock(sku text, qty deftest.quantity, note text DEFAULT '')
    RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION deftest.release_stock(reserve_stock integer, reason text DEFAULT NULL)
    RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.charge(jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
CREATE FUNCTION deftest.refund(context jsonb) RETURNS jsonb LANGUAGE sql RETURN $1;
CREATE FUNCTION deftest.confirm(reserve_stock integer, charge jsonb, email text)
    RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.nothing() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;

-- Retry policies.
SELECT saga.retry_policy();
SELECT saga.retry_policy(max_attempts => 0, initial_delay => '100 ms', max_delay => '1 day',
                         multiplier => 1.5, jitter => 0, retry_on => '{23505,22,22}', fail_on => '{40001}');
SELECT saga.retry_policy(NULL, NULL, NULL, NULL, NULL, '{}', NULL) = saga.retry_policy() AS null_is_default;
SELECT saga.retry_policy(max_attempts => -1);
SELECT saga.retry_policy(initial_delay => '-1 s');
SELECT saga.retry_policy(initial_delay => '1 month');
SELECT saga.retry_policy(initial_delay => '400 days', max_delay => '500 days');
SELECT saga.retry_policy(max_delay => '1000000 days');
SELECT saga.retry_policy(initial_delay => '10 min');
SELECT saga.retry_policy(max_attempts => 0, initial_delay => '0');
SELECT saga.retry_policy(multiplier => 0.5);
SELECT saga.retry_policy(multiplier => 'NaN');
SELECT saga.retry_policy(multiplier => 'Infinity');
SELECT saga.retry_policy(jitter => 1.1);
SELECT saga.retry_policy(jitter => 'NaN');
SELECT saga.retry_policy(retry_on => '{4}');
SELECT saga.retry_policy(retry_on => '{40001,4000}');
SELECT saga.retry_policy(fail_on => '{p0001}');
SELECT saga.retry_policy(fail_on => '{NULL}');

-- A step is what was said of it, no more.
SELECT saga.step('a', 'f');
SELECT saga.step('a', 'f', 'g', pivot => true, timeout => '1.5 s', retry => saga.retry_policy(1),
                 compensation_timeout => '1 day', compensation_retry => saga.retry_policy(2),
                 isolation => 'serializable', durable => true);
SELECT saga.step('a', 'f', timeout => '1 month');

-- A definition, and what is stored of it.
SELECT saga.define('order',
    saga.step('reserve_stock', 'deftest.reserve_stock', compensation => 'deftest.release_stock'),
    saga.step('charge', 'deftest.charge(jsonb)', compensation => 'deftest.refund',
              timeout => '30 s', retry => saga.retry_policy(max_attempts => 3, retry_on => '{P0001}'),
              isolation => 'Repeatable Read', durable => true),
    saga.step('confirm', 'deftest.confirm', pivot => true));
SELECT jsonb_pretty(steps) FROM saga.definition_version WHERE name = 'order' AND version = 1;
SELECT owner_name = current_user AS mine, enabled, max_running, deadline, retention
FROM saga.definition WHERE name = 'order';

-- The same again is the same version, however its functions are written.
SET search_path = deftest, public;
SELECT saga.define('order',
    saga.step('reserve_stock', 'reserve_stock(text, quantity, text)', compensation => '"release_stock"'),
    saga.step('charge', 'CHARGE', compensation => 'refund',
              timeout => '0.5 min', retry => saga.retry_policy(max_attempts => 3, retry_on => '{P0001}'),
              isolation => 'repeatable read', durable => true),
    saga.step('confirm', 'confirm', pivot => true));
RESET search_path;
SELECT count(*) FROM saga.definition_version WHERE name = 'order';
BEGIN READ ONLY;
SELECT saga.define('readonly', saga.step('a', 'deftest.nothing'));
ROLLBACK;
-- Another one is the next; what an aborted transaction defined is gone.
BEGIN;
SELECT saga.define('order', saga.step('confirm', 'deftest.nothing'));
ROLLBACK;
SELECT saga.define('order', saga.step('only', 'deftest.nothing'));
BEGIN READ ONLY;
SELECT saga.define('order', saga.step('only', 'deftest.nothing'));
COMMIT;
SELECT saga.define('order', VARIADIC ARRAY[saga.step('first', 'deftest.nothing'), saga.step('second', 'deftest.nothing')]);
SELECT version, jsonb_array_length(steps) FROM saga.definition_version WHERE name = 'order' ORDER BY version;

-- Names.
SELECT saga.define(NULL, saga.step('a', 'deftest.nothing'));
SELECT saga.define('', saga.step('a', 'deftest.nothing'));
SELECT saga.define(repeat('x', 64), saga.step('a', 'deftest.nothing'));
SELECT saga.define(repeat('x', 63), saga.step(repeat('y', 63), 'deftest.nothing'));
SELECT saga.define(E'a\nb', saga.step('a', 'deftest.nothing'));
SELECT saga.define(' a', saga.step('a', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a ', 'deftest.nothing'));
SELECT saga.define('bad', saga.step(NULL, 'deftest.nothing'));

-- Steps.
SELECT saga.define('bad', VARIADIC '{}');
SELECT saga.define('bad', VARIADIC NULL::jsonb[]);
SELECT saga.define('bad', VARIADIC array_fill(saga.step('a', 'deftest.nothing'), ARRAY[32768]));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing'), NULL);
SELECT saga.define('bad', saga.step('a', NULL));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing'), saga.step('a', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', pivot => true), saga.step('b', 'deftest.nothing', pivot => true));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', pivot => true));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', pivot => true), saga.step('b', 'deftest.nothing', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', timeout => '0'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', timeout => '-1 s'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', timeout => '366 days'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', compensation_timeout => '1 us'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', compensation_timeout => '1 s'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', compensation_retry => saga.retry_policy()));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', isolation => 'read uncommitted'));

-- Steps made by hand are not believed either.
SELECT saga.define('bad', '"a"');
SELECT saga.define('bad', '[]');
SELECT saga.define('bad', '{}');
SELECT saga.define('bad', '{"name": 1}');
SELECT saga.define('bad', '{"name": "a", "action": ["f"]}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "timeuot": 3}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "kind": "global"}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "timeout": "3 s"}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "timeout": 1e400}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "pivot": "yes"}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": 3}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": []}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"max_attempts": 1.5}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"max_attempts": "5"}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"attempts": 5}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"retry_on": "40"}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"retry_on": [40]}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "retry": {"max_delay": 0.5}}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "compensation": "deftest.nothing", "compensation_retry": {"jitter": 2}}');
-- This one is as good as any.
SELECT saga.define('order', '{"name": "first", "action": "deftest.nothing", "pivot": false, "retry": {"max_attempts": 5.0}}',
                            '{"name": "second", "action": "deftest.nothing", "timeout": null}');

-- Functions.
CREATE SCHEMA deftest_other;
CREATE FUNCTION deftest_other.charge_card(amount numeric) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.charge_card(amount numeric) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.two(a integer) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.two(a text, b text) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE PROCEDURE deftest.proc() LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE PROCEDURE deftest.proc2() LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE PROCEDURE deftest.proc2(a integer) LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE AGGREGATE deftest.agg(integer) (SFUNC = int4pl, STYPE = integer);
CREATE FUNCTION deftest.setof() RETURNS SETOF integer LANGUAGE sql RETURN 1;
CREATE FUNCTION deftest.tab() RETURNS TABLE (a integer) LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.poly(a anyelement) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION deftest.variadics(VARIADIC a integer[]) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.out(OUT a integer) LANGUAGE sql RETURN 1;
CREATE FUNCTION deftest.inout(INOUT a integer) LANGUAGE sql RETURN a;
CREATE FUNCTION deftest.unnamed(integer, b text) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.two_json(jsonb, jsonb) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
CREATE FUNCTION deftest.trig() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE FUNCTION deftest.rec() RETURNS record LANGUAGE sql RETURN ROW(1, 2);
CREATE FUNCTION pg_temp.temporary() RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
SELECT saga.define('bad', saga.step('pay', 'deftest.charge_cadr'));
SELECT saga.define('bad', saga.step('pay', 'deftest.charge_card(text)'));
SELECT saga.define('bad', saga.step('pay', 'charge_card'));
SELECT saga.define('bad', saga.step('pay', 'deftest_nowhere.charge_card'));
SELECT saga.define('bad', saga.step('pay', 'deftest.nothing', compensation => 'quite_something_else'));
SELECT saga.define('bad', saga.step('pay', 'deftest.nothing', compensation => 'deftest.two'));
SELECT saga.define('bad', saga.step('pay', 'deftest.proc2'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two(no_such_type)'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two(integer'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two(integer,)'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two(,)'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two(numeric(3,2), "text")'));
SELECT saga.define('bad', saga.step('pay', ''));
SELECT saga.define('bad', saga.step('pay', 'a.b.c'));
SELECT saga.define('bad', saga.step('pay', 'deftest."charge'));
SELECT saga.define('bad', saga.step('pay', 'deftest.proc'));
SELECT saga.define('bad', saga.step('pay', 'deftest.agg'));
SELECT saga.define('bad', saga.step('pay', 'rank()'));
SELECT saga.define('bad', saga.step('pay', 'pg_temp.temporary'));
SELECT saga.define('bad', saga.step('pay', 'deftest.setof'));
SELECT saga.define('bad', saga.step('pay', 'deftest.tab'));
SELECT saga.define('bad', saga.step('pay', 'deftest.poly'));
SELECT saga.define('bad', saga.step('pay', 'deftest.variadics'));
SELECT saga.define('bad', saga.step('pay', 'deftest.out'));
SELECT saga.define('bad', saga.step('pay', 'deftest.inout'));
SELECT saga.define('bad', saga.step('pay', 'deftest.unnamed'));
SELECT saga.define('bad', saga.step('pay', 'deftest.two_json'));
SELECT saga.define('bad', saga.step('pay', 'deftest.trig'));
SELECT saga.define('bad', saga.step('pay', 'int4in'));
SELECT saga.define('good', saga.step('pay', 'deftest.rec'), saga.step('two', 'deftest.two(text, text)'));
SELECT count(*) FROM saga.definition WHERE name = 'bad';

-- The definer may use the functions, or there is no definition.
REVOKE EXECUTE ON FUNCTION deftest.charge_card FROM PUBLIC;
SET ROLE regress_saga_alice;
SELECT saga.define('alices', saga.step('pay', 'deftest.charge_card'));
SELECT saga.define('alices', saga.step('pay', 'deftest_other.charge_card'));
SELECT saga.define('alices', saga.step('pay', 'charge_card'));
SELECT saga.define('alices', saga.step('pay', 'deftest.nothing'));

-- A definition is its owner's and a superuser's.
SET ROLE regress_saga_bob;
SELECT saga.define('alices', saga.step('pay', 'deftest.nothing'));
SELECT saga.define('alices', saga.step('pay', 'deftest.rec'));
SELECT saga.configure('alices', enabled => false);
SELECT saga.grant_begin('alices', 'regress_saga_bob');
SELECT saga.revoke_begin('alices', 'regress_saga_bob');
SELECT saga.drop_definition('alices', force => true);
RESET ROLE;
GRANT regress_saga_alice TO regress_saga_bob;
SET ROLE regress_saga_bob;
SELECT saga.define('alices', saga.step('pay', 'deftest.rec'));
RESET ROLE;
SELECT saga.define('alices', saga.step('pay', 'deftest.nothing'));
SELECT d.owner_name, v.version, v.created_by = current_user AS mine, v.created_by = 'regress_saga_bob' AS bobs
FROM saga.definition d JOIN saga.definition_version v USING (name) WHERE name = 'alices' ORDER BY version;
REVOKE regress_saga_alice FROM regress_saga_bob;
-- It stays hers only as long as the name is hers.
BEGIN;
ALTER ROLE regress_saga_alice RENAME TO regress_saga_carla;
SET LOCAL ROLE regress_saga_carla;
SELECT saga.configure('alices', enabled => false);
ROLLBACK;

-- Nobody defines anything through an index expression of his.
CREATE FUNCTION deftest.index_trick(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS
    'BEGIN PERFORM saga.define(''trick'', saga.step(''a'', ''deftest.nothing'')); RETURN $1; END';
CREATE TABLE deftest.t (a integer);
INSERT INTO deftest.t VALUES (1);
\set VERBOSITY terse
CREATE INDEX ON deftest.t (deftest.index_trick(a));
\set VERBOSITY default

-- Grants: by name and OID, "public" for all.
SELECT saga.grant_begin('order', 'regress_saga_alice');
SELECT saga.grant_begin('order', 'regress_saga_alice');
SELECT saga.grant_begin('order', 'public');
SELECT saga.grant_begin('order', 'regress_saga_nobody');
SELECT saga.grant_begin('order', NULL);
SELECT saga.grant_begin('ordre', 'regress_saga_alice');
SELECT g.role_name, g.role = coalesce(r.oid, 0) AS bound, g.granted_by = current_user AS by_me
FROM saga.definition_grant g JOIN saga.definition d ON d.id = g.definition_id
LEFT JOIN pg_roles r ON r.rolname = g.role_name WHERE d.name = 'order' ORDER BY 1;
SELECT saga.revoke_begin('order', 'public');
SELECT saga.revoke_begin('order', 'public');
SELECT saga.revoke_begin('order', 'regress_saga_nobody');
SELECT role_name FROM saga.definition_grant g JOIN saga.definition d ON d.id = g.definition_id WHERE d.name = 'order';

-- Settings: NULL leaves alone, zero removes.
SELECT saga.configure('order', deadline => '2 hours', retention => '1 year', max_running => 7, enabled => false);
SELECT enabled, max_running, deadline, retention FROM saga.definition WHERE name = 'order';
SELECT saga.configure('order', enabled => true);
SELECT enabled, max_running, deadline, retention FROM saga.definition WHERE name = 'order';
SELECT saga.configure('order', deadline => '0', max_running => 0, retention => '0');
SELECT enabled, max_running, deadline, retention FROM saga.definition WHERE name = 'order';
SELECT saga.configure('order', deadline => '-1 s');
SELECT saga.configure('order', deadline => '1 us');
SELECT saga.configure('order', deadline => '1 month');
SELECT saga.configure('order', deadline => '40000 days');
SELECT saga.configure('order', deadline => '36525 days 1 us');
SELECT saga.configure('order', retention => '-1 day');
SELECT saga.configure('order', retention => '2000 years');
SELECT saga.configure('order', max_running => -1);
SELECT saga.configure('nothing_like_it', enabled => true);
SELECT saga.configure(NULL, enabled => true);

-- A definition in use is not dropped, unless one insists.
SELECT saga.drop_definition('odrer');
SELECT saga.drop_definition(NULL);
BEGIN;
INSERT INTO saga.key (definition, key, saga_id, slot) VALUES ('order', 'k', -1, 0), ('other', 'k', -1, 0);
INSERT INTO saga.saga
SELECT r.* FROM saga.coordinator c, saga.definition_version v, generate_series(1, 2) n,
    jsonb_populate_record(NULL::saga.saga, jsonb_build_object(
        'id', -n, 'due_at', now(), 'created_at', now(), 'token', gen_random_uuid(), 'coordinator', c.id,
        'role', 0, 'definition_id', v.id, 'turn', 0, 'status', 'running', 'slot', 0, 'step', 0,
        'backward', false, 'goal', -1, 'depth', 0, 'released', false, 'suspect', false, 'role_name', 'none', 'input', '{}'::jsonb)) r
WHERE v.name = 'order' AND v.version = 1;
SAVEPOINT s;
SELECT saga.drop_definition('order');
ROLLBACK TO s;
SELECT saga.drop_definition('order', force => true);
SELECT count(*) FROM saga.definition WHERE name = 'order';
SELECT definition FROM saga.key WHERE saga_id = -1;
SELECT count(*) FROM saga.definition_version WHERE name = 'order';
ROLLBACK;
SELECT saga.drop_definition('order');
SELECT count(*) FROM saga.definition_grant WHERE role_name = 'regress_saga_alice';
-- The name is free for anyone; versions go on, since sagas have run the old ones.
SET ROLE regress_saga_bob;
SELECT saga.define('order', saga.step('b', 'deftest.nothing'));
SELECT saga.drop_definition('order');
RESET ROLE;
SELECT saga.define('order', saga.step('b', 'deftest.nothing'));
SELECT saga.drop_definition('order');

------------------------------------------------------------------------------
-- Shapes
------------------------------------------------------------------------------

CREATE FUNCTION deftest.no() RETURNS boolean LANGUAGE sql RETURN false;
CREATE FUNCTION deftest.is_abroad(country text) RETURNS boolean LANGUAGE sql RETURN country <> 'AT';
CREATE FUNCTION deftest.tomorrow(days integer DEFAULT 1) RETURNS timestamptz LANGUAGE sql RETURN now() + make_interval(days => days);
CREATE FUNCTION deftest.a_while(jsonb) RETURNS interval LANGUAGE sql RETURN '1 h'::interval;
CREATE FUNCTION deftest.parcels(address text) RETURNS jsonb LANGUAGE sql RETURN '[]'::jsonb;
-- What is stored of the newest version beside what each step has, in its order.
CREATE FUNCTION deftest.stored(definition text) RETURNS SETOF jsonb LANGUAGE sql AS $$
    SELECT jsonb_strip_nulls(e.step - '{pivot,durable}'::text[] || jsonb_build_object(
        'pivot', nullif(e.step -> 'pivot', 'false'), 'durable', nullif(e.step -> 'durable', 'false'),
        'action', e.step #> '{action,function}',
        'compensation', e.step #> '{compensation,function}', 'confirmation', e.step #> '{confirmation,function}'))
    FROM (SELECT steps FROM saga.definition_version v WHERE v.name = definition ORDER BY version DESC LIMIT 1) v,
        jsonb_array_elements(v.steps) WITH ORDINALITY e(step, n) ORDER BY n
$$;

-- What makes steps says what it was given, under the names of its parameters.
SELECT saga.step('a', 'f', after => '{b,c}', only_if => 'g', foreach => 'items', parallel => 2, quorum => 3, confirmation => 'h',
                 confirmation_timeout => '1 min', confirmation_retry => saga.retry_policy(1), savepoint => true, and_then => 'd',
                 recoveries => 4, exclusive => 'sku', exclusive_until => 'e', exclusive_timeout => '0', concurrency => 5);
SELECT saga.timer_step('a', '14 days', after => '{}', only_if => 'g', pivot => true);
SELECT saga.timer_step('a', until => 'f', timeout => '1 s', retry => saga.retry_policy(1), savepoint => true, and_then => 'retry', recoveries => 1);
SELECT saga.signal_step('a', timeout => '3 days', otherwise => '{"approved": false}', after => '{b}');
SELECT saga.signal_step('a', otherwise => 'null');
SELECT saga.child_step('a', 'shipping', 'f', timeout => '1 s', retry => saga.retry_policy(1), foreach => 'parcels', parallel => 2, quorum => 1,
                       exclusive => 'sku', exclusive_until => 'a', exclusive_timeout => '1 day', concurrency => 6);
SELECT saga.timer_step('a', '1 month');
SELECT saga.timer_step('a', '1 year', pivot => true);
SELECT saga.signal_step('a', '1 month');
SELECT saga.step('a', 'f', exclusive_timeout => '1 month');
SELECT saga.step('a', 'f', after => '{b,NULL}');

-- Branches: steps are stored in an order in which they can be done, as near to
-- the one they were listed in as can be.
SELECT saga.define('shape',
    saga.step('d', 'deftest.nothing', after => '{b,c,b}'),
    saga.step('c', 'deftest.nothing', after => '{a}'),
    saga.step('b', 'deftest.nothing', after => '{a}'),
    saga.step('a', 'deftest.nothing', after => '{}'),
    saga.step('e', 'deftest.nothing', after => '{}'),
    saga.step('f', 'deftest.nothing'));
SELECT deftest.stored('shape');
-- The same in another order is the same, as long as it may be stored so.
SELECT saga.define('shape',
    saga.step('c', 'deftest.nothing', after => '{a}'),
    saga.step('f', 'deftest.nothing', after => '{e}'),
    saga.step('b', 'deftest.nothing', after => '{a}'),
    saga.step('d', 'deftest.nothing', after => '{c,b}'),
    saga.step('a', 'deftest.nothing', after => '{}'),
    saga.step('e', 'deftest.nothing', after => '{}'));
SELECT deftest.stored('shape') ->> 'name' AS name;
-- A list that is written as a graph is a list, and the same as one.
SELECT saga.define('list', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing'), saga.step('c', 'deftest.nothing'));
SELECT saga.define('list', saga.step('a', 'deftest.nothing', after => '{}'), saga.step('b', 'deftest.nothing', after => '{a,a}'), saga.step('c', 'deftest.nothing'));
SELECT saga.define('list', saga.step('c', 'deftest.nothing', after => '{b}'), saga.step('a', 'deftest.nothing', after => '{}'), saga.step('b', 'deftest.nothing'));
-- One word too many is not.
SELECT saga.define('list', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing'), saga.step('c', 'deftest.nothing', after => '{a,b}'));
SELECT saga.drop_definition('list');

SELECT saga.define('bad', saga.step('a', 'deftest.nothing', after => '{reserv}'), saga.step('reserve', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', after => '{something_else}'), saga.step('reserve', 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', after => ARRAY[repeat('x', 70)]));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', after => '{a}'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', after => '{b}'), saga.step('b', 'deftest.nothing', after => '{a}'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing'), saga.step('d', 'deftest.nothing', after => '{c}'), saga.step('e', 'deftest.nothing'),
                          saga.step('c', 'deftest.nothing', after => '{b}'), saga.step('b', 'deftest.nothing', after => '{a,d}'), saga.step('f', 'deftest.nothing', after => '{a}'));
SELECT saga.define('bad', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', after => CASE n WHEN 1 THEN ARRAY['s20'] END) ORDER BY n)) FROM generate_series(1, 30) n;
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "after": "b"}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "after": [1]}');
SELECT saga.define('bad', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', after => CASE n WHEN 2 THEN '{}'::text[] END) ORDER BY n)) FROM generate_series(1, 1025) n;
SELECT saga.define('wide', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', after => '{}') ORDER BY n)) FROM generate_series(1, 1024) n;
SELECT saga.define('dense', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', after => ARRAY(SELECT 's' || m FROM generate_series(1, n - 1) m)) ORDER BY n)) FROM generate_series(1, 200) n;
SELECT saga.drop_definition(name) FROM (VALUES ('wide'), ('dense')) v(name);

-- The pivot, on every path.
SELECT saga.define('bad',
    saga.step('reserve', 'deftest.nothing', 'deftest.nothing'), saga.step('charge', 'deftest.nothing', pivot => true),
    saga.step('ship', 'deftest.nothing'), saga.step('pack', 'deftest.nothing', 'deftest.nothing', after => '{reserve}'),
    saga.step('send', 'deftest.nothing', 'deftest.nothing', after => '{pack,ship}'));
SELECT saga.define('bad',
    saga.step('reserve', 'deftest.nothing'), saga.step('charge', 'deftest.nothing', pivot => true, after => '{reserve}'),
    saga.step('other', 'deftest.nothing', after => '{reserve}'), saga.step('bill', 'deftest.nothing', pivot => true, after => '{other,charge}'));
SELECT saga.define('bad', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', compensation => CASE n WHEN 30 THEN 'deftest.nothing' END, pivot => n = 15) ORDER BY n))
FROM generate_series(1, 30) n;
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', pivot => true), saga.step('b', 'deftest.nothing', savepoint => true));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', pivot => true, savepoint => true));
-- Each branch may have its own.
SELECT saga.define('shape',
    saga.step('a', 'deftest.nothing', 'deftest.nothing'),
    saga.step('b', 'deftest.nothing', pivot => true),
    saga.step('c', 'deftest.nothing', pivot => true, after => '{a}'),
    saga.step('d', 'deftest.nothing', 'deftest.nothing', after => '{a}'),
    saga.step('e', 'deftest.nothing', after => '{b,c,d}'));

-- Try, confirm, cancel.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', confirmation => 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation => 'deftest.nothing', pivot => true));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', pivot => true), saga.step('b', 'deftest.nothing', 'deftest.nothing', confirmation => 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation_timeout => '1 s'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation_retry => saga.retry_policy()));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation => 'deftest.two'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation => 'deftest.nothing', confirmation_timeout => '0'));
SELECT saga.define('tcc', saga.step('a', 'deftest.nothing', 'deftest.nothing', confirmation => 'deftest.nothing', confirmation_timeout => '1 min'),
                          saga.step('b', 'deftest.nothing', 'deftest.nothing'), saga.step('c', 'deftest.nothing', pivot => true));
SELECT jsonb_pretty(steps #> '{0,confirmation}') FROM saga.definition_version WHERE name = 'tcc';
SELECT saga.drop_definition('tcc');

-- Choices.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', only_if => 'deftest.is_abraod'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', only_if => 'deftest.nothing'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', only_if => 'deftest.tomorrow'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', only_if => 'int4eq'));
SELECT saga.define('shape', saga.step('a', 'deftest.nothing', only_if => 'deftest.no'), saga.timer_step('b', '1 h', only_if => 'deftest.is_abroad'));
SELECT deftest.stored('shape');

-- Loops.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => ''));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'order..items'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => '.items'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'items.'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'items', parallel => 0));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'items', parallel => -1));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'items', quorum => 0));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', foreach => 'items', quorum => 100001));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', parallel => 2));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', quorum => 2));
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "foreach": ["items"]}');
SELECT saga.define('bad', '{"name": "a", "action": "deftest.nothing", "foreach": "items", "quorum": 1.5}');
SELECT saga.define('shape', saga.step('plan', 'deftest.nothing'), saga.step('b', 'deftest.nothing', foreach => 'plan.parcels', parallel => 4, quorum => 2),
                            saga.step('c', 'deftest.nothing', foreach => 'order.items'));
SELECT deftest.stored('shape');

-- Savepoints.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', and_then => 'retry'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', recoveries => 1));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, recoveries => 0));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, recoveries => 1001));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, and_then => 'b'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, and_then => 'a'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing', savepoint => true, and_then => 'a'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, and_then => 'b'), saga.step('b', 'deftest.nothing', after => '{}'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', savepoint => true, and_then => 'c'), saga.step('b', 'deftest.nothing', savepoint => true, and_then => 'c'), saga.step('c', 'deftest.nothing'));
SELECT saga.define('bad', VARIADIC array_agg(saga.step('s' || n, 'deftest.nothing', savepoint => true) ORDER BY n)) FROM generate_series(1, 65) n;
SELECT saga.define('shape',
    saga.step('a', 'deftest.nothing', savepoint => true, and_then => 'retry', recoveries => 1),
    saga.signal_step('b', savepoint => true, and_then => 'd', recoveries => 3),
    saga.step('c', 'deftest.nothing'), saga.step('d', 'deftest.nothing', after => '{b}'));
SELECT deftest.stored('shape');

-- Locks.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', exclusive => 'a.'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', exclusive_until => 'a'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', exclusive_timeout => '1 h'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', exclusive => 'sku', exclusive_timeout => '-1 s'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', exclusive => 'sku', exclusive_until => 'b'));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing', exclusive => 'sku', exclusive_until => 'a'));
SELECT saga.define('shape',
    saga.step('a', 'deftest.nothing', exclusive => 'sku', exclusive_timeout => '1 h'),
    saga.step('b', 'deftest.nothing', exclusive => 'a.shelf', exclusive_until => 'b', exclusive_timeout => '0'),
    saga.step('c', 'deftest.nothing', exclusive => 'order.sku', exclusive_until => 'd', exclusive_timeout => '1.5 s'), saga.step('d', 'deftest.nothing'));
SELECT deftest.stored('shape');

-- How many sagas may be in a step.
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', concurrency => 0));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing', concurrency => -1));
SELECT saga.define('bad', saga.step('a', 'deftest.nothing') || '{"concurrency": "many"}');
SELECT saga.define('bad', saga.step('a', 'deftest.nothing') || '{"concurrency": 1.5}');
SELECT saga.define('bad', saga.step('a', 'deftest.nothing') || '{"concurrency": 2147483648}');
SELECT saga.define('bad', saga.timer_step('a', '1 s') || '{"concurrency": 1}');
SELECT saga.define('bad', saga.signal_step('a') || '{"concurrency": 1}');
SELECT saga.define('shape',
    saga.step('a', 'deftest.nothing', concurrency => 1), saga.step('b', 'deftest.nothing', exclusive => 'sku', concurrency => 2147483647),
    saga.child_step('c', 'shape', concurrency => 2), saga.step('d', 'deftest.nothing', concurrency => NULL));
SELECT deftest.stored('shape');
SELECT step, concurrency FROM saga.definition_steps d
WHERE definition = 'shape' AND version = (SELECT max(version) FROM saga.definition_steps x WHERE x.definition = d.definition) ORDER BY position;

-- Timers.
SELECT saga.define('bad', saga.timer_step('a'));
SELECT saga.define('bad', saga.timer_step('a', '1 s', 'deftest.tomorrow'));
SELECT saga.define('bad', saga.timer_step('a', '-1 us'));
SELECT saga.define('bad', saga.timer_step('a', '1 s', timeout => '1 s'));
SELECT saga.define('bad', saga.timer_step('a', '1 s', retry => saga.retry_policy()));
SELECT saga.define('bad', saga.timer_step('a', until => 'deftest.nothing'));
SELECT saga.define('bad', saga.timer_step('a', until => 'deftest.tomorow'));
SELECT saga.define('bad', saga.timer_step('a', '1 s', savepoint => true, and_then => 'b'));
SELECT saga.define('bad', '{"name": "a", "kind": "timer", "delay": 1, "compensation": "deftest.nothing"}');
SELECT saga.define('bad', '{"name": "a", "kind": "timer", "delay": 1, "foreach": "items"}');
SELECT saga.define('bad', '{"name": "a", "kind": "timer", "delay": 1, "action": "deftest.nothing"}');
SELECT saga.define('bad', '{"name": "a", "kind": "timer", "delay": "1 s"}');
SELECT saga.define('bad', '{"name": "a", "kind": "timer", "delay": 4e9}');
SELECT saga.define('bad', '{"name": "a", "kind": "local", "action": "deftest.nothing", "delay": 1}');
SELECT saga.define('shape', saga.timer_step('a', '0'), saga.timer_step('b', '14 days', pivot => true), saga.timer_step('c', until => 'deftest.tomorrow', timeout => '1 s'),
                            saga.timer_step('d', until => 'deftest.a_while'));
SELECT deftest.stored('shape');
SELECT jsonb_pretty(steps -> 2) FROM saga.definition_version WHERE name = 'shape' ORDER BY version DESC LIMIT 1;

-- Signals.
SELECT saga.define('bad', saga.signal_step('a', '0'));
SELECT saga.define('bad', saga.signal_step('a', '-1 s'));
SELECT saga.define('bad', saga.signal_step('a', otherwise => '1'));
SELECT saga.define('bad', '{"name": "a", "kind": "signal", "retry": {}}');
SELECT saga.define('bad', '{"name": "a", "kind": "signal", "exclusive": "sku"}');
SELECT saga.define('shape', saga.signal_step('a'), saga.signal_step('b', '3 days'), saga.signal_step('c', '1 ms', '{"approved": [false, null]}'),
                            saga.signal_step('d', '1 h', 'null'), saga.signal_step('e', '1 h', '"text"', pivot => true));
SELECT jsonb_agg(step - '{action}'::text[]) FROM (SELECT jsonb_array_elements(steps) AS step FROM
    (SELECT steps FROM saga.definition_version WHERE name = 'shape' ORDER BY version DESC LIMIT 1) v) s;

-- Children: there, open to the definer, and able to go back when they may have to.
SELECT saga.define('shipping', saga.step('pack', 'deftest.nothing', 'deftest.nothing'));
SELECT saga.define('selling', saga.step('sell', 'deftest.nothing', pivot => true));
SELECT saga.define('bad', saga.child_step('a', NULL));
SELECT saga.define('bad', saga.child_step('ship', 'shippin'));
SELECT saga.define('bad', saga.child_step('ship', 'shipping', 'deftest.nowhere'));
SELECT saga.define('bad', '{"name": "a", "kind": "child", "definition": "shipping", "compensation": "deftest.nothing"}');
SELECT saga.define('bad', '{"name": "a", "kind": "child", "definition": 1}');
SELECT saga.define('bad', saga.child_step('a', 'selling'));
SELECT saga.define('bad', saga.child_step('a', 'selling', after => '{}'), saga.step('b', 'deftest.nothing', pivot => true, after => '{}'));
SELECT saga.define('bad', saga.child_step('again', 'bad', only_if => 'deftest.no'), saga.step('b', 'deftest.nothing', pivot => true));
SELECT saga.define('shape', saga.child_step('a', 'selling', pivot => true), saga.child_step('b', 'selling'), saga.child_step('c', 'shipping', 'deftest.parcels', foreach => 'items', parallel => 2));
SELECT saga.define('shape', saga.child_step('a', 'shipping'), saga.child_step('again', 'shape', only_if => 'deftest.no'), saga.step('b', 'deftest.nothing', pivot => true, after => '{}'));
SELECT deftest.stored('shape');
SET ROLE regress_saga_bob;
SELECT saga.define('bobs', saga.child_step('a', 'shipping'));
RESET ROLE;
SELECT saga.grant_begin('shipping', 'regress_saga_bob');
SET ROLE regress_saga_bob;
SELECT saga.define('bobs', saga.child_step('a', 'shipping'));
SELECT saga.drop_definition('bobs');
RESET ROLE;
SELECT saga.drop_definition(name) FROM (VALUES ('shipping'), ('selling')) v(name);

-- Steps made by hand say of which kind they are.
SELECT saga.define('bad', '{"name": "a", "kind": 1}');
SELECT saga.define('bad', '{"name": "a", "kind": "timr", "delay": 1}');
SELECT saga.define('bad', '{"name": "a", "kind": "local"}');
SELECT saga.define('bad', '{"name": "a", "kind": "signal", "timout": 1}');
SELECT count(*) FROM saga.definition WHERE name = 'bad';

-- What the input must have: what no step before provides.
CREATE FUNCTION deftest.wants(a integer, b integer) RETURNS integer LANGUAGE sql RETURN a;
CREATE FUNCTION deftest.wants_c(c integer) RETURNS boolean LANGUAGE sql RETURN true;
CREATE FUNCTION deftest.wants_time(d timestamptz) RETURNS timestamptz LANGUAGE sql RETURN d;
CREATE FUNCTION deftest.wants_item(element jsonb, index integer, anything text) RETURNS void LANGUAGE sql BEGIN ATOMIC SELECT 1; END;
SELECT saga.define('wants', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing', after => '{}'), saga.step('s', 'deftest.wants', after => '{a}'));
SELECT saga.begin('wants', '{"a": 1}');
SELECT saga.define('wants', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.wants', 'deftest.wants', confirmation => 'deftest.wants'));
SELECT saga.begin('wants');
SELECT saga.define('wants', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing', 'deftest.wants', confirmation => 'deftest.wants'));
BEGIN;
SELECT saga.begin('wants') > 0 AS begun;
ROLLBACK;
SELECT saga.define('wants', saga.step('c', 'deftest.nothing', only_if => 'deftest.wants_c'));
SELECT saga.begin('wants');
SELECT saga.define('wants', saga.timer_step('t', until => 'deftest.wants_time'));
SELECT saga.begin('wants');
SELECT saga.define('wants', saga.child_step('t', 'wants', 'deftest.wants_c'));
SELECT saga.begin('wants');
SELECT saga.define('wants', saga.step('t', 'deftest.wants_item', 'deftest.wants_item', foreach => 'items', only_if => 'deftest.wants_c'));
BEGIN;
SELECT saga.begin('wants') > 0 AS begun;
ROLLBACK;
SELECT saga.drop_definition('wants');

-- Sagas that take turns.
SELECT saga.define('turns', saga.step('a', 'deftest.nothing'), saga.step('b', 'deftest.nothing'));
SELECT saga.configure('turns', exclusive => 'order.sku');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definition WHERE name = 'turns';
SELECT saga.configure('turns', exclusive_until => 'a', exclusive_timeout => '0');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definition WHERE name = 'turns';
SELECT saga.configure('turns', exclusive => 'sku');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definition WHERE name = 'turns';
SELECT saga.configure('turns', exclusive_until => '', exclusive_timeout => '10 min');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definition WHERE name = 'turns';
SELECT saga.configure('turns', exclusive_until => 'c');
SELECT saga.configure('turns', exclusive_timeout => '-1 s');
SELECT saga.configure('turns', exclusive_timeout => '1 month');
SELECT saga.configure('turns', exclusive => 'a..b');
SELECT saga.configure('turns', exclusive => '', exclusive_until => 'a');
SELECT saga.begin('turns', '{"order": {"sku": "s"}}');
SELECT saga.begin('turns', '{"sku": null}');
SELECT saga.begin('turns', '{"sku": ["s"]}');
SELECT saga.configure('turns', exclusive => '');
SELECT exclusive, exclusive_until, exclusive_timeout FROM saga.definition WHERE name = 'turns';
SELECT saga.configure('turns', exclusive_until => 'a');
SELECT saga.configure('turns', exclusive_timeout => '1 h');
SET ROLE regress_saga_bob;
SELECT saga.configure('turns', exclusive => 'sku', exclusive_until => 'c');
RESET ROLE;
SELECT saga.drop_definition(name) FROM (VALUES ('turns'), ('shape')) v(name);

-- A definition as large as they get.
SELECT saga.define('large', VARIADIC array_agg(saga.step('step ' || n, 'deftest.nothing', 'deftest.nothing') ORDER BY n))
FROM generate_series(1, 5000) n;

SET client_min_messages = warning;
DROP SCHEMA deftest, deftest_other CASCADE;
SELECT saga.drop_definition('large');
SELECT saga.drop_definition('good');
SELECT saga.drop_definition('alices');
SELECT saga.drop_definition(repeat('x', 63));
DROP OWNED BY regress_saga_alice, regress_saga_bob;
DROP ROLE regress_saga_alice, regress_saga_bob;
