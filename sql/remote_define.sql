--
-- Steps in other databases: what saga.define() takes and refuses, what it
-- stores, what it says of the servers; and what a new version changes for sagas
-- whose calls are out.  Servers that are called cannot be reached, but for two,
-- which are this server.
--
SELECT setval('saga.saga_id_seq', 45100000, false) AS ids_begin_at;
CREATE SCHEMA remote_define_test;
GRANT USAGE ON SCHEMA remote_define_test TO PUBLIC;
CREATE FUNCTION remote_define_test.wants(rich boolean) RETURNS boolean LANGUAGE sql RETURN rich;
CREATE FUNCTION remote_define_test.yes(context jsonb) RETURNS boolean LANGUAGE sql RETURN true;
CREATE FUNCTION remote_define_test.pack(address text) RETURNS text LANGUAGE sql RETURN address;
-- What is stored of the newest version, without retry policies.
CREATE FUNCTION remote_define_test.stored(definition text) RETURNS SETOF jsonb LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.step #- '{action,retry}' #- '{compensation,retry}' #- '{confirmation,retry}'
    FROM (SELECT steps FROM saga.definition_version v WHERE v.name = definition ORDER BY version DESC LIMIT 1) v,
        jsonb_array_elements(v.steps) WITH ORDINALITY e(step, n) ORDER BY n
$$;
SET client_min_messages = warning;
CREATE EXTENSION dblink SCHEMA remote_define_test;
RESET client_min_messages;
CREATE SERVER remdef_nowhere FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'none');
CREATE SERVER "remdef Else!" FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'none');
CREATE SERVER remdef_secret FOREIGN DATA WRAPPER dblink_fdw;
CREATE FOREIGN DATA WRAPPER remdef_wrapper;
CREATE SERVER remdef_files FOREIGN DATA WRAPPER remdef_wrapper;
CREATE USER MAPPING FOR regress_saga_owner SERVER remdef_nowhere OPTIONS (user 'nobody', password 'remdef secret');
GRANT USAGE ON FOREIGN SERVER remdef_nowhere, "remdef Else!", remdef_files TO regress_saga_owner;
SET ROLE regress_saga_owner;

-- A step is what was said of it, no more.
SELECT saga.remote_step('ship', 'warehouse', 'wh.ship');
SELECT jsonb_pretty(saga.remote_step('ship', server => 'warehouse', action => 'wh.ship', compensation => 'wh.unship', confirmation => 'wh.bill',
    timeout => '1 min', total_timeout => '1 day', retry => saga.retry_policy(1),
    compensation_timeout => '2 min', compensation_retry => saga.retry_policy(2),
    confirmation_timeout => '3 min', confirmation_retry => saga.retry_policy(3),
    after => '{a,b}', only_if => 'g', foreach => 'items', parallel => 2, quorum => 3, savepoint => true, and_then => 'd', recoveries => 4,
    exclusive => 'sku', exclusive_until => 'e', exclusive_timeout => '0', concurrency => 5) - '{retry,compensation_retry,confirmation_retry}'::text[]);
SELECT saga.remote_step('ship', 'warehouse', 'wh.ship', pivot => true);
SELECT saga.remote_step('ship', 'warehouse', 'wh.ship', timeout => '1 month');
SELECT saga.remote_step('ship', 'warehouse', 'wh.ship', total_timeout => '1 year 1 day');
SELECT saga.child_step('ship', 'shipping', server => 'warehouse');

-- What is stored: the names of functions, in one way to write them.
SET client_min_messages = warning;
SELECT saga.define('remdef',
    saga.remote_step('ship', 'remdef_nowhere', 'wh.ship', compensation => 'WH."unship"', confirmation => '"Wh"."Bill it"',
                     timeout => '30 s', total_timeout => '1 day', only_if => 'remote_define_test.yes',
                     compensation_timeout => '1 min', confirmation_timeout => '90 s'),
    saga.remote_step('book', 'remdef Else!', '"select"', compensation => '"a""b".c$d', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4),
    saga.child_step('pay', 'Payment there', input => 'remote_define_test.pack', server => 'remdef_nowhere', timeout => '5 s'),
    saga.remote_step('mail', 'remdef_nowhere', 'Mail', pivot => true));
SELECT jsonb_pretty(s) FROM remote_define_test.stored('remdef') s;
-- The policies are those of functions of this database.
SELECT step, retry = saga.retry_policy() AS action, compensation_retry ->> 'max_attempts' AS compensation,
       confirmation_retry ->> 'max_attempts' AS confirmation FROM saga.definition_steps WHERE definition = 'remdef' ORDER BY position;
SELECT step, kind, server, guarantee, action, compensation, confirmation, child, pivot FROM saga.definition_steps WHERE definition = 'remdef' ORDER BY position;
SELECT step, timeout, total_timeout, compensation_timeout, confirmation_timeout, only_if, foreach, parallel, quorum, concurrency
FROM saga.definition_steps WHERE definition = 'remdef' ORDER BY position;
-- The same again is the same; said another way too, and where nothing can be written.
BEGIN READ ONLY;
SELECT saga.define('remdef',
    '{"kind": "remote", "name": "ship", "server": "remdef_nowhere", "action": "\"wh\".Ship", "compensation": "wh.unship", "confirmation": "\"Wh\".\"Bill it\"",
      "timeout": 30, "total_timeout": 86400, "only_if": "remote_define_test.yes(jsonb)", "compensation_timeout": 60, "confirmation_timeout": 90}',
    saga.remote_step('book', 'remdef Else!', 'SELECT', compensation => '"a""b"."c$d"', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4),
    '{"kind": "child", "name": "pay", "definition": "Payment there", "input": "remote_define_test.pack", "server": "remdef_nowhere", "timeout": 5}',
    saga.remote_step('mail', 'remdef_nowhere', 'mail', pivot => true));
COMMIT;
-- Names may be as long as any; of more than ASCII there is only one form.
SELECT saga.define('remdef_long', saga.remote_step('a', 'remdef_nowhere', repeat('s', 63) || '."' || repeat('F', 63) || '"', compensation => 'Über.weiß')) AS version;
SELECT compensation FROM saga.definition_steps WHERE definition = 'remdef_long';
SELECT saga.drop_definition('remdef_long');
RESET client_min_messages;

-- What is wrong with a step.
SELECT saga.define('remdef_bad', saga.remote_step(NULL, 'remdef_nowhere', 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', NULL, 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', '', 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', repeat('s', 64), 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', NULL));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', ''));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'a.b.c'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'wh.ship(jsonb)'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'wh. ship'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'wh.'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', '.ship'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', '""'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', '"wh"."'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', '"wh"ship'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', '2nd'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'ship; DROP TABLE t'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', compensation => 'ship''(1)--'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', compensation => 'wh.' || repeat('f', 64)));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', compensation => 'g', confirmation => 'do it'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', timeout => '0'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', total_timeout => '-1 day'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', compensation_timeout => '1 s'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', confirmation_retry => saga.retry_policy()));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', confirmation => 'do'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', retry => '1'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', only_if => 'remote_define_test.nowhere'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', quorum => 2));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', exclusive_timeout => '1 s'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', and_then => 'b'), saga.remote_step('b', 'remdef_nowhere', 'f'));
SELECT saga.define('remdef_bad', '{"kind": "remote", "name": "a", "server": 1, "action": "f"}');
SELECT saga.define('remdef_bad', '{"kind": "remote", "name": "a", "server": "remdef_nowhere", "action": {"function": "f"}}');
SELECT saga.define('remdef_bad', '{"kind": "remote", "name": "a", "server": "remdef_nowhere", "action": "f", "durable": true}');
SELECT saga.define('remdef_bad', '{"kind": "remote", "name": "a", "server": "remdef_nowhere", "action": "f", "claim_timeout": 1}');
SELECT saga.define('remdef_bad', '{"kind": "remote", "name": "a", "servers": ["remdef_nowhere"], "action": "f"}');
SELECT saga.define('remdef_bad', '{"name": "a", "action": "remote_define_test.pack", "server": "remdef_nowhere"}');
SELECT saga.define('remdef_bad', '{"kind": "remot", "name": "a"}');
-- With a child elsewhere: nobody here knows its definition.
SELECT saga.define('remdef_bad', saga.child_step('a', NULL, server => 'remdef_nowhere'));
SELECT saga.define('remdef_bad', saga.child_step('a', '', server => 'remdef_nowhere'));
SELECT saga.define('remdef_bad', saga.child_step('a', repeat('d', 64), server => 'remdef_nowhere'));
SELECT saga.define('remdef_bad', saga.child_step('a', 'there', server => ''));
SELECT saga.define('remdef_bad', saga.child_step('a', 'there', server => 'remdef_nowhere', input => 'remote_define_test.nowhere'));
SELECT saga.define('remdef_bad', saga.child_step('a', 'remdef_nothing'));
-- With how the steps hang together.
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', pivot => true), saga.remote_step('b', 'remdef_nowhere', 'f', compensation => 'g'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', pivot => true, compensation => 'g', confirmation => 'h'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', after => '{b}'), saga.remote_step('b', 'remdef_nowhere', 'f', after => '{a}'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f', exclusive => 'sku', exclusive_until => 'c'));
-- And with the server: there is none, it is not for this role, or no database.
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_none', 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_nowhere', 'f'), saga.remote_step('b', 'Remdef_Nowhere', 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_secret', 'f'));
SELECT saga.define('remdef_bad', saga.remote_step('a', 'remdef_files', 'f'));
SELECT saga.define('remdef_bad', saga.child_step('a', 'there', server => 'remdef_none'));
SELECT count(*) FROM saga.definitions WHERE name = 'remdef_bad';

-- Once for each server it says what can be said of it, in the order of their
-- names, and only if it stores something.
\set VERBOSITY terse
SELECT saga.define('remdef_tell', saga.remote_step('a', 'remdef_nowhere', 'f'), saga.remote_step('b', 'remdef Else!', 'f'), saga.remote_step('c', 'remdef_nowhere', 'f'));
SELECT saga.define('remdef_tell', saga.remote_step('a', 'remdef_nowhere', 'f'), saga.remote_step('b', 'remdef Else!', 'f'), saga.remote_step('c', 'remdef_nowhere', 'f'));
SELECT version, steps FROM saga.definitions WHERE name = 'remdef_tell';
\set VERBOSITY default
SELECT saga.drop_definition('remdef_tell');

-- The input must have what functions of this database want; those there are told all of it.
SET client_min_messages = warning;
SELECT saga.define('remdef_input', saga.remote_step('ship', 'remdef_nowhere', 'wh.ship', only_if => 'remote_define_test.wants', compensation => 'wh.unship'),
                   saga.child_step('pack', 'packing', input => 'remote_define_test.pack', server => 'remdef_nowhere'));
SELECT saga.begin('remdef_input');
SELECT saga.begin('remdef_input', '{"address": "here"}');
BEGIN;
SELECT saga.begin('remdef_input', '{"rich": true, "address": "here"}') > 0 AS begun;
ROLLBACK;
SELECT saga.drop_definition('remdef_input');

-- What a new version would change; nobody is asked.
SELECT * FROM saga.impact('remdef',
    saga.remote_step('ship', 'remdef Else!', 'wh.ship_it', compensation => 'wh.unship', confirmation => '"Wh"."Bill it"',
                     timeout => '30 s', total_timeout => '2 days', only_if => 'remote_define_test.yes',
                     compensation_timeout => '1 min', confirmation_timeout => '90 s'),
    saga.remote_step('book', 'remdef Else!', '"select"', compensation => '"a""b".c$d', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4),
    saga.child_step('pay', 'Payment there', input => 'remote_define_test.pack', server => 'remdef_not_there', timeout => '5 s'),
    saga.step('mail', 'remote_define_test.pack', pivot => true));
SELECT * FROM saga.impact('remdef_new', saga.remote_step('a', 'remdef_not_there', 'f'));

-- This server, as a superuser who need not be asked for a password: one database
-- has the extension, the other has not.
RESET ROLE;
SELECT current_setting('port') AS port, split_part(current_setting('unix_socket_directories'), ',', 1) AS host, current_database() AS here \gset
CREATE SERVER remdef_here FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host :'host', port :'port', dbname :'here');
CREATE SERVER remdef_there FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host :'host', port :'port', dbname 'postgres');
CREATE USER MAPPING FOR CURRENT_USER SERVER remdef_here OPTIONS (user :'USER');
CREATE USER MAPPING FOR CURRENT_USER SERVER remdef_there OPTIONS (user :'USER');
RESET client_min_messages;
SELECT saga.define('remdef_two', saga.remote_step('a', 'remdef_here', 'f'), saga.remote_step('b', 'remdef_there', 'f'), saga.child_step('c', 'there', server => 'remdef_here'));
SELECT saga.define('remdef_two', saga.child_step('a', 'there', server => 'remdef_there'));
SELECT saga.define('remdef_two', saga.child_step('a', 'there', server => 'remdef_there'));
SELECT saga.drop_definition('remdef_two');
-- A call that is under way, and what is known of the server since.
SET client_min_messages = warning;
CREATE FUNCTION remote_define_test.hold(context jsonb) RETURNS text LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(45100);
    SELECT context ->> 'step'
$$;
SELECT saga.define('remdef_call', saga.remote_step('hold', 'remdef_here', 'remote_define_test.hold'));
SELECT step, guarantee FROM saga.definition_steps WHERE definition = 'remdef_call';
SELECT FROM pg_advisory_lock(45100);
SELECT saga.begin('remdef_call') AS id \gset
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.tasks WHERE saga_id = %s AND status = ''claimed'')', :id), 'the call', :id);
SELECT step, status, regexp_replace(waiting_for, 'at .*', 'at ...') AS waiting_for FROM saga.steps WHERE saga_id = :id;
SELECT topic, regexp_replace(regexp_replace(detail, 'called at .*', 'called at ...'), 'task \d+', 'task ...') AS detail
FROM saga.explain(:id) WHERE topic IN ('action of hold', 'waits for');
SELECT queue, server, status, task FROM saga.tasks WHERE saga_id = :id;
SELECT pg_advisory_unlock(45100);
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT step, guarantee FROM saga.definition_steps WHERE definition = 'remdef_call';
SELECT saga.drop_definition('remdef_call');

-- A saga whose call is out, at a server that is paused: what it waits for.
SELECT saga.configure_server('remdef_nowhere', paused => true);
SET ROLE regress_saga_owner;
SELECT saga.define('remdef_move', saga.remote_step('ship', 'remdef_nowhere', 'wh.ship', compensation => 'wh.unship'), saga.signal_step('go'));
SELECT saga.begin('remdef_move') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT step, status, task_id IS NOT NULL AS has_task, regexp_replace(waiting_for, 'since .*?(;|$)', 'since ...\1') AS waiting_for
FROM saga.steps WHERE saga_id = :id ORDER BY position;
SELECT queue, server, status, definition, step, operation, task, attempt, participant FROM saga.tasks WHERE saga_id = :id;
SELECT count(*) FROM saga.queues WHERE queue LIKE 'remdef%';
SELECT topic, regexp_replace(regexp_replace(detail, 'since .*?(;|$)', 'since ...\1'), 'task \d+', 'task ...') AS detail
FROM saga.explain(:id) WHERE topic IN ('action of ship', 'waits for');
-- It can move while that is so, but only to where the same is asked of the same database.
SELECT saga.define('remdef_move', saga.remote_step('ship', 'remdef Else!', 'wh.ship', compensation => 'wh.unship'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('remdef_move', saga.remote_step('ship', 'remdef_nowhere', 'wh.ship_all'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('remdef_move', saga.external_step('ship', 'remdef_queue', action => 'wh.ship', compensation => 'wh.unship'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('remdef_move', saga.signal_step('approve', after => '{}'),
                   saga.remote_step('ship', 'remdef_nowhere', '"wh"."ship"', compensation => 'wh.take_back', timeout => '1 h', after => '{}'),
                   saga.signal_step('go', after => '{ship,approve}'));
SELECT saga.migrate(:id) = :id AS asked;
SELECT saga_test.wait_until(format('(SELECT version = 5 FROM saga.sagas WHERE saga_id = %s)', :id), 'the move', :id);
SELECT position, step, status, task_id IS NOT NULL AS has_task FROM saga.steps WHERE saga_id = :id ORDER BY position;
-- Others do not see it, nor why it waits.
SELECT server, status, step FROM saga.tasks WHERE saga_id = :id;
SET ROLE regress_saga_other;
SELECT server, status, step FROM saga.tasks WHERE saga_id = :id;
SELECT count(saga.server_waits_raw(n)) FROM generate_series(-9, 1) n;
SET ROLE regress_saga_monitor;
SELECT server, status, step FROM saga.tasks WHERE saga_id = :id;
-- What is known of the server belongs to its role: the owner's comes first.
RESET ROLE;
UPDATE saga.server_role SET once = true, saga_version = '1.0' WHERE server = 'remdef_nowhere' AND role_name = 'regress_saga_owner';
INSERT INTO saga.server_role (server, role, role_name, once)
SELECT s.name, r.oid, r.rolname, false FROM pg_roles r, (VALUES ('remdef_nowhere'), ('remdef Else!')) s(name) WHERE r.rolname = 'regress_saga_other';
\c -
SET client_min_messages = warning;
SET ROLE regress_saga_owner;
SELECT step, kind, server, guarantee FROM saga.definition_steps WHERE definition = 'remdef' ORDER BY position;
SELECT regexp_replace(detail, 'task \d+', 'task ...') AS detail FROM saga.explain(:id) WHERE topic = 'action of ship';
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
SELECT server, status FROM saga.tasks WHERE saga_id = :id;

-- Of a loop each element waits by itself.
SELECT saga.define('remdef_loop', saga.remote_step('ship', 'remdef_nowhere', 'wh.ship', compensation => 'wh.fetch', foreach => 'parcels'));
SELECT saga.begin('remdef_loop', '{"parcels": ["a", "b"]}') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT topic, regexp_replace(detail, 'since .*?(;|$)', 'since ...\1') AS detail FROM saga.explain(:id) WHERE topic IN ('action of ship', 'waits for');
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.outcome(:id);

-- A server that cannot be reached: the first call fails with that, the others wait until it is tried again.
RESET ROLE;
SELECT saga.configure_server('remdef_nowhere', paused => false);
SET ROLE regress_saga_owner;
SELECT saga.define('remdef_down', saga.remote_step('ship', 'remdef_nowhere', 'wh.ship', retry => saga.retry_policy(0, '10 ms', '10 ms')));
SELECT count(saga.begin('remdef_down')) FROM generate_series(1, 20);
SELECT min(saga_id) AS id FROM saga.sagas WHERE definition = 'remdef_down' \gset
SELECT saga_test.wait_until('EXISTS (SELECT FROM saga.steps s JOIN saga.sagas USING (saga_id) WHERE definition = ''remdef_down'' AND s.waiting_for ~ '
    '''^server remdef_nowhere, for wh.ship, since [^;]+; (it cannot be reached, next try at|its breaker is open until) [^:]+:[^:]+:[^:]+: .*Connection refused$'')',
    'a reason', :id);
SELECT saga_test.wait_until('EXISTS (SELECT FROM saga.attempts JOIN saga.sagas USING (saga_id) WHERE definition = ''remdef_down'')', 'an attempt', :id);
SELECT DISTINCT a.outcome, a.passing, a.sqlstate, a.message FROM saga.attempts a JOIN saga.sagas USING (saga_id) WHERE definition = 'remdef_down';
SELECT count(saga.cancel(saga_id)) FROM saga.sagas WHERE definition = 'remdef_down';
SELECT * FROM saga_test.all_ended('remdef_down');

-- What is left: nothing that DROP EXTENSION would mind.
RESET ROLE;
DROP SCHEMA remote_define_test CASCADE;
DROP FOREIGN DATA WRAPPER remdef_wrapper CASCADE;
