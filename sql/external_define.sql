--
-- Steps for programs outside: what saga.define() takes and refuses, what it
-- stores, whose queues it makes; and what a new version changes for sagas whose
-- tasks are out.
--
SELECT setval('saga.saga_id_seq', 32000000, false) AS ids_begin_at;
CREATE SCHEMA external_define_test;
GRANT USAGE ON SCHEMA external_define_test TO PUBLIC;
CREATE FUNCTION external_define_test.wants(rich boolean) RETURNS boolean LANGUAGE sql RETURN rich;
CREATE FUNCTION external_define_test.yes(context jsonb) RETURNS boolean LANGUAGE sql RETURN true;
CREATE FUNCTION external_define_test.pack(address text) RETURNS text LANGUAGE sql RETURN address;
-- What is stored of the newest version, without retry policies.
CREATE FUNCTION external_define_test.stored(definition text) RETURNS SETOF jsonb LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.step #- '{action,retry}' #- '{compensation,retry}' #- '{confirmation,retry}'
    FROM (SELECT steps FROM saga.definition_version v WHERE v.name = definition ORDER BY version DESC LIMIT 1) v,
        jsonb_array_elements(v.steps) WITH ORDINALITY e(step, n) ORDER BY n
$$;
-- Queues of this script, seen by the owner of the tables.
CREATE FUNCTION external_define_test.queues() RETURNS TABLE (name text, owner_name text) LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT q.name, q.owner_name FROM saga.queue q WHERE q.name LIKE 'extdef%' ORDER BY q.name COLLATE "C"
$$;
SET ROLE regress_saga_owner;

-- A step is what was said of it, no more.
SELECT saga.external_step('charge', 'payments');
SELECT jsonb_pretty(saga.external_step('charge', 'payments', action => 'take money', compensation => 'refund', confirmation => 'capture',
    timeout => '1 min', claim_timeout => '10 min', total_timeout => '1 day', retry => saga.retry_policy(1),
    compensation_timeout => '2 min', compensation_retry => saga.retry_policy(2),
    confirmation_timeout => '3 min', confirmation_retry => saga.retry_policy(3),
    after => '{a,b}', only_if => 'g', foreach => 'items', parallel => 2, quorum => 3, savepoint => true, and_then => 'd', recoveries => 4,
    exclusive => 'sku', exclusive_until => 'e', exclusive_timeout => '0', concurrency => 5) - '{retry,compensation_retry,confirmation_retry}'::text[]);
SELECT saga.external_step('charge', 'payments', pivot => true);
SELECT saga.external_step('charge', 'payments', timeout => '1 month');
SELECT saga.external_step('charge', 'payments', claim_timeout => '1 month');
SELECT saga.external_step('charge', 'payments', total_timeout => '1 year 1 day');

-- What is stored: names for functions, the step's own for an action without one.
SELECT saga.define('extdef',
    saga.external_step('charge', 'extdef_pay', compensation => 'refund', confirmation => 'capture', timeout => '30 s',
                       claim_timeout => '10 min', total_timeout => '1 day', only_if => 'external_define_test.yes',
                       compensation_timeout => '1 min', confirmation_timeout => '90 s'),
    saga.external_step('mail', 'extdef mail!', action => 'send(text)', pivot => true),
    saga.external_step('ship', 'extdef_pay', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4));
SELECT jsonb_pretty(s) FROM external_define_test.stored('extdef') s;
-- The policies are those of functions of this database.
SELECT step, retry = saga.retry_policy() AS action, compensation_retry ->> 'max_attempts' AS compensation,
       confirmation_retry ->> 'max_attempts' AS confirmation FROM saga.definition_steps WHERE definition = 'extdef' ORDER BY position;
SELECT step, kind, queue, action, compensation, confirmation, pivot FROM saga.definition_steps WHERE definition = 'extdef' ORDER BY position;
SELECT step, timeout, claim_timeout, total_timeout, compensation_timeout, confirmation_timeout
FROM saga.definition_steps WHERE definition = 'extdef' ORDER BY position;
SELECT only_if, foreach, parallel, quorum, concurrency FROM saga.definition_steps WHERE definition = 'extdef' AND step IN ('charge', 'ship') ORDER BY position;
-- The queues are there, and whose.
SELECT * FROM external_define_test.queues();
-- The same again is the same; said another way too.
SELECT saga.define('extdef',
    '{"kind": "external", "name": "charge", "queue": "extdef_pay", "action": "charge", "compensation": "refund", "confirmation": "capture", "timeout": 30,
      "claim_timeout": 600, "total_timeout": 86400, "only_if": "external_define_test.yes(jsonb)", "compensation_timeout": 60, "confirmation_timeout": 90}',
    saga.external_step('mail', 'extdef mail!', action => 'send(text)', pivot => true),
    saga.external_step('ship', 'extdef_pay', action => 'ship', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4));
BEGIN READ ONLY;
SELECT saga.define('extdef',
    saga.external_step('charge', 'extdef_pay', compensation => 'refund', confirmation => 'capture', timeout => '30 s',
                       claim_timeout => '10 min', total_timeout => '1 day', only_if => 'external_define_test.yes',
                       compensation_timeout => '1 min', confirmation_timeout => '90 s'),
    saga.external_step('mail', 'extdef mail!', action => 'send(text)', pivot => true),
    saga.external_step('ship', 'extdef_pay', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4));
COMMIT;
-- A name may be as long as any.
SELECT saga.define('extdef_long', saga.external_step('a', repeat('q', 58), action => repeat('t', 63), compensation => 'ü und ö')) AS version;
SELECT saga.drop_definition('extdef_long');

-- What is wrong with a step.
SELECT saga.define('extdef_bad', saga.external_step(NULL, 'extdef_none'));
SELECT saga.define('extdef_bad', saga.external_step('a', NULL));
SELECT saga.define('extdef_bad', saga.external_step('a', ''));
SELECT saga.define('extdef_bad', saga.external_step('a', repeat('q', 59)));
SELECT saga.define('extdef_bad', saga.external_step('a', E'two\nlines'));
SELECT saga.define('extdef_bad', saga.external_step('a', ' space'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', action => ''));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', action => repeat('t', 64)));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', compensation => E'un\tdo'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', compensation => 'undo', confirmation => 'do '));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', timeout => '0'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', claim_timeout => '0'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', claim_timeout => '-1 s'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', total_timeout => '0'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', total_timeout => '-1 day'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', compensation => 'undo', compensation_timeout => '0'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', compensation_timeout => '1 s'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', confirmation_retry => saga.retry_policy()));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', confirmation => 'do'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', retry => '1'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', only_if => 'external_define_test.nowhere'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', only_if => 'external_define_test.pack'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', quorum => 2));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', foreach => 'a..b'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', exclusive_timeout => '1 s'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', and_then => 'b'), saga.external_step('b', 'extdef_none'));
SELECT saga.define('extdef_bad', '{"kind": "external", "name": "a", "queue": 1}');
SELECT saga.define('extdef_bad', '{"kind": "external", "name": "a", "queue": "extdef_none", "durable": true}');
SELECT saga.define('extdef_bad', '{"kind": "external", "name": "a", "queue": "extdef_none", "leas": 1}');
SELECT saga.define('extdef_bad', '{"kind": "external", "name": "a", "queue": "extdef_none", "claim_timeout": "1 s"}');
SELECT saga.define('extdef_bad', '{"name": "a", "action": "external_define_test.pack", "queue": "extdef_none"}');
-- And with how the steps hang together.
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', pivot => true), saga.external_step('b', 'extdef_none', compensation => 'undo'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', pivot => true), saga.external_step('b', 'extdef_none', pivot => true));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', pivot => true, compensation => 'undo', confirmation => 'do'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', pivot => true), saga.external_step('b', 'extdef_none', savepoint => true));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', after => '{b}'), saga.external_step('b', 'extdef_none', after => '{a}'));
SELECT saga.define('extdef_bad', saga.external_step('a', 'extdef_none', exclusive => 'sku', exclusive_until => 'c'));
-- Nothing is left of all that, no queue either.
SELECT count(*) FROM saga.definitions WHERE name = 'extdef_bad';
SELECT * FROM external_define_test.queues();

-- A queue is its owner's, who lets others offer tasks in it.
RESET ROLE;
GRANT CREATE ON SCHEMA external_define_test TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT saga.define('extdef_other', saga.external_step('mine', 'extdef_other'), saga.external_step('theirs', 'extdef_pay'));
SELECT * FROM external_define_test.queues();
RESET ROLE;
SET ROLE regress_saga_owner;
SELECT saga.grant_offer('extdef_pay', 'regress_saga_other');
SET ROLE regress_saga_other;
SELECT saga.define('extdef_other', saga.external_step('mine', 'extdef_other'), saga.external_step('theirs', 'extdef_pay'));
SELECT * FROM external_define_test.queues();
SET ROLE regress_saga_owner;
SELECT saga.revoke_offer('extdef_pay', 'regress_saga_other');
SET ROLE regress_saga_other;
-- Also when nothing is stored.
SELECT saga.define('extdef_other', saga.external_step('mine', 'extdef_other'), saga.external_step('theirs', 'extdef_pay'));
SELECT saga.drop_definition('extdef_other');
SET ROLE regress_saga_owner;

-- The input must have what functions want; participants are told all of it.
SELECT saga.define('extdef_input', saga.external_step('charge', 'extdef_pay', only_if => 'external_define_test.wants', compensation => 'refund'),
                   saga.step('pack', 'external_define_test.pack'));
SELECT saga.begin('extdef_input');
SELECT saga.begin('extdef_input', '{"address": "here"}');
BEGIN;
SELECT saga.begin('extdef_input', '{"rich": true, "address": "here"}') > 0 AS begun;
ROLLBACK;
SELECT saga.drop_definition('extdef_input');

-- What a new version would change; nothing is made of it.
SELECT * FROM saga.impact('extdef',
    saga.external_step('charge', 'extdef_new', action => 'charge card', compensation => 'refund', confirmation => 'capture', timeout => '30 s',
                       total_timeout => '2 days', only_if => 'external_define_test.yes',
                       compensation_timeout => '1 min', confirmation_timeout => '90 s'),
    saga.step('mail', 'external_define_test.pack', pivot => true),
    saga.external_step('ship', 'extdef_pay', foreach => 'parcels', parallel => 3, quorum => 2, concurrency => 4),
    saga.external_step('thank', 'extdef_thanks'));
SELECT * FROM saga.impact('extdef_new', saga.external_step('a', 'extdef_new'));
SELECT * FROM external_define_test.queues();

-- A saga whose task is out: what it waits for.
SELECT saga.define('extdef_move', saga.external_step('charge', 'extdef_pay', compensation => 'refund'), saga.signal_step('go'));
SELECT saga.begin('extdef_move') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT step, status, task_id IS NOT NULL AS has_task, regexp_replace(waiting_for, 'since .*?(;|$)', 'since ...\1') AS waiting_for
FROM saga.steps WHERE saga_id = :id ORDER BY position;
SELECT topic, regexp_replace(regexp_replace(detail, 'since .*?(;|$)', 'since ...\1'), 'task \d+', 'task ...') AS detail
FROM saga.explain(:id) WHERE topic IN ('action of charge', 'waits for');
SELECT saga.configure_queue('extdef_pay', paused => true);
SELECT regexp_replace(detail, 'since .*?(;|$)', 'since ...\1') AS detail FROM saga.explain(:id) WHERE topic = 'waits for';
SELECT saga.configure_queue('extdef_pay', paused => false);
-- It can move while that is so, but only to where the same is asked of the same.
SELECT saga.define('extdef_move', saga.external_step('charge', 'extdef_else', compensation => 'refund'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('extdef_move', saga.external_step('charge', 'extdef_pay', action => 'charge twice'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('extdef_move', saga.step('charge', 'external_define_test.pack'), saga.signal_step('go'));
SELECT saga.migrate(:id);
SELECT saga.define('extdef_move', saga.signal_step('approve', after => '{}'), saga.external_step('charge', 'extdef_pay', compensation => 'give back', timeout => '1 h', after => '{}'),
                   saga.signal_step('go', after => '{charge,approve}'));
SELECT saga.migrate(:id) = :id AS asked;
SELECT saga_test.wait_until(format('(SELECT version = 5 FROM saga.sagas WHERE saga_id = %s)', :id), 'the move', :id);
SELECT position, step, status, task_id IS NOT NULL AS has_task FROM saga.steps WHERE saga_id = :id ORDER BY position;
-- Who takes it now says so.
SELECT id AS task, lease_token, step, operation, task AS told, attempt FROM saga.claim_tasks('extdef_pay', participant => 'worker 7') \gset
SELECT :'step' AS step, :'operation' AS operation, :'told' AS told, :attempt AS attempt;
SELECT cancel_requested FROM saga.extend_lease(:task, :'lease_token', '1 h', '{"percent": 40}');
SELECT step, status, regexp_replace(waiting_for, 'until .*, progress', 'until ..., progress') AS waiting_for
FROM saga.steps WHERE saga_id = :id AND step = 'charge';
SELECT regexp_replace(detail, 'until .*, progress', 'until ..., progress') AS detail FROM saga.explain(:id) WHERE topic = 'waits for' AND detail LIKE 'participant%';
SELECT saga.complete_task(:task, :'lease_token', '{"paid": 1}');
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND step = ''charge'' AND status = ''succeeded'')', :id), 'the answer', :id);
SELECT position, step, status, result, waiting_for FROM saga.steps WHERE saga_id = :id AND step = 'charge';
-- Its compensation is the version's that it is of now.
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.steps WHERE saga_id = %s AND operation = ''compensation'' AND status = ''running'')', :id), 'the compensation', :id);
SELECT id AS task, lease_token, operation, task AS told FROM saga.claim_tasks('extdef_pay', participant => 'worker 8') \gset
SELECT :'operation' AS operation, :'told' AS told;
SELECT regexp_replace(waiting_for, 'until .*', 'until ...') AS waiting_for FROM saga.steps WHERE saga_id = :id AND operation = 'compensation';
-- Once that is out it stays what it is.
SELECT saga.migrate(:id, 1);
SELECT saga.complete_task(:task, :'lease_token');
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
-- Of a loop each element waits by itself; none was claimed, so nothing is undone.
SELECT saga.define('extdef_loop', saga.external_step('ship', 'extdef_pay', compensation => 'fetch', foreach => 'parcels'));
SELECT saga.begin('extdef_loop', '{"parcels": ["a", "b"]}') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT step, element, status, regexp_replace(waiting_for, 'since .*', 'since ...') AS waiting_for FROM saga.steps WHERE saga_id = :id ORDER BY element;
SELECT topic, regexp_replace(detail, 'since .*', 'since ...') AS detail FROM saga.explain(:id) WHERE topic IN ('action of ship', 'waits for');
SELECT saga.cancel(:id) = :id AS asked;
SELECT saga_test.outcome(:id);
SELECT step, element, operation, status, waiting_for FROM saga.steps WHERE saga_id = :id ORDER BY element, operation;
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA external_define_test CASCADE;
