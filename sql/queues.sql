--
-- Queues: whose they are, who may offer and take their tasks, and what others
-- see of them.  A participant gets the tasks of its queues and nothing else.
--
SELECT setval('saga.saga_id_seq', 42000000, false) AS ids_begin_at;
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_queue_owner, regress_queue_other, regress_queue_hand, regress_queue_team,
    regress_queue_member, "regress_queue_""x""; DROP";
CREATE ROLE regress_queue_owner LOGIN;
CREATE ROLE regress_queue_other LOGIN;
CREATE ROLE regress_queue_hand LOGIN;
CREATE ROLE regress_queue_team;
CREATE ROLE regress_queue_member LOGIN IN ROLE regress_queue_team;
CREATE ROLE "regress_queue_""x""; DROP";
RESET client_min_messages;
SELECT saga.grant_usage('regress_queue_owner');
SELECT saga.grant_usage('regress_queue_other');
-- What a role was given by name in schema saga.
CREATE FUNCTION saga_test.privileges(who text)
RETURNS TABLE (what text, privilege text) LANGUAGE sql AS $$
    SELECT 'schema saga', privilege_type FROM pg_namespace, aclexplode(nspacl)
    WHERE nspname = 'saga' AND grantee = to_regrole(quote_ident(who))
    UNION ALL
    SELECT 'type ' || typname, privilege_type FROM pg_type, aclexplode(typacl)
    WHERE typnamespace = 'saga'::regnamespace AND grantee = to_regrole(quote_ident(who))
    UNION ALL
    SELECT 'relation ' || relname, privilege_type FROM pg_class, aclexplode(relacl)
    WHERE relnamespace = 'saga'::regnamespace AND grantee = to_regrole(quote_ident(who))
    UNION ALL
    SELECT 'routine ' || proname, privilege_type FROM pg_proc, aclexplode(proacl)
    WHERE pronamespace = 'saga'::regnamespace AND grantee = to_regrole(quote_ident(who))
    ORDER BY 1, 2
$$;
-- Claim the tasks of a queue, as soon as there is one.
CREATE FUNCTION saga_test.claim(queue text, OUT id bigint, OUT lease_token uuid, OUT saga_id bigint)
LANGUAGE plpgsql AS $$
DECLARE
    patience constant timestamptz := clock_timestamp() + '1 min';
BEGIN
    LOOP
        SELECT t.id, t.lease_token, t.saga_id INTO id, lease_token, saga_id
        FROM saga.claim_tasks(queue, 1, '1 hour', 'regress') t;
        EXIT WHEN FOUND;
        IF clock_timestamp() > patience THEN
            RAISE EXCEPTION 'timed out waiting for a task of queue %', queue;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END
$$;

------------------------------------------------------------------------------
-- 1. Making and dropping
------------------------------------------------------------------------------
SET ROLE regress_queue_owner;
SELECT saga.create_queue('own');
SELECT queue, owner, paused, ready, oldest_ready, claimed, oldest_claimed, next_lease_end, rate,
    offered, completed, failed, expired, failures_in_row, breaker, breaker_until, participants,
    breaker_failures, breaker_pause, breaker_max_pause
FROM saga.queues WHERE queue = 'own';
SELECT * FROM saga.participants WHERE queue = 'own';
SELECT saga.create_queue('own');
SELECT saga.create_queue(NULL);
SELECT saga.create_queue('other', 'regress_queue_other');
SELECT saga.create_queue('other', 'regress_saga_gone');
SELECT saga.create_queue('other', 'public');
-- Names.
SELECT saga.create_queue('');
SELECT saga.create_queue(' a');
SELECT saga.create_queue('a ');
SELECT saga.create_queue(E'a\nb');
SELECT saga.create_queue(E'a\x7f');
SELECT saga.create_queue(repeat('x', 59));
SELECT saga.create_queue(repeat('ü', 29) || 'x');
SELECT saga.create_queue(repeat('ü', 1000000));
SELECT saga.create_queue('alert');
SELECT saga.create_queue(n) FROM unnest(ARRAY['Own', 'a"b; drop', 'it''s', '%s %n', 'ü', '; DROP TABLE saga.queue --', repeat('ü', 29)]) n;
SELECT queue FROM saga.queues ORDER BY queue COLLATE "C";
SELECT count(saga.drop_queue(queue)) FROM saga.queues WHERE queue <> 'own';
SELECT queue FROM saga.queues;
SELECT saga.drop_queue('none');
SELECT saga.drop_queue(NULL);
SELECT saga.drop_queue(repeat('x', 100));
RESET ROLE;
-- Whoever has the privileges of a role may make it the owner.
GRANT regress_queue_owner TO regress_queue_other;
SET ROLE regress_queue_other;
SELECT saga.create_queue('given', 'regress_queue_owner');
SELECT saga.configure_queue('given', owner => 'regress_queue_other');
SELECT queue, owner FROM saga.queues ORDER BY queue;
RESET ROLE;
REVOKE regress_queue_owner FROM regress_queue_other;
SET ROLE regress_queue_owner;
SELECT queue, owner FROM saga.queues ORDER BY queue;
SELECT saga.drop_queue('given');
SELECT saga.create_queue('given');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT saga.drop_queue('own');
SELECT saga.configure_queue('own', paused => true);
SELECT saga.reset_breaker('own');
SELECT saga.grant_participant('regress_queue_other', 'own');
SELECT saga.revoke_participant('regress_queue_other', 'own');
SELECT saga.grant_offer('own', 'regress_queue_other');
SELECT saga.revoke_offer('own', 'regress_queue_other');
SELECT saga.claim_tasks('own');
SELECT saga.drop_queue('given');
-- In the same transaction, and not when that is rolled back.
BEGIN;
SELECT saga.create_queue('brief');
SAVEPOINT s;
SELECT saga.drop_queue('brief');
ROLLBACK TO s;
SELECT saga.configure_queue('brief', breaker_failures => 3);
SELECT queue, breaker_failures FROM saga.queues;
SELECT count(*) FROM saga.claim_tasks('brief');
ROLLBACK;
SELECT count(*) FROM saga.claim_tasks('brief');
-- Under repeatable read a queue that is new is found, too.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT saga.create_queue('brief');
SELECT count(*) FROM saga.claim_tasks('brief');
SELECT saga.drop_queue('brief');
COMMIT;
BEGIN READ ONLY;
SELECT saga.create_queue('brief');
ROLLBACK;
BEGIN READ ONLY;
SELECT saga.grant_participant('regress_queue_other', 'own');
ROLLBACK;
RESET ROLE;

------------------------------------------------------------------------------
-- 2. Settings
------------------------------------------------------------------------------
SET ROLE regress_queue_owner;
SELECT saga.configure_queue('own', breaker_failures => 5, breaker_pause => '2 s', breaker_max_pause => '1 min');
SELECT saga.configure_queue('own');
SELECT saga.configure_queue('own', 0, paused => true);
SELECT paused, breaker_failures, breaker_pause, breaker_max_pause FROM saga.queues WHERE queue = 'own';
SELECT saga.configure_queue('own', breaker_failures => -1);
SELECT saga.configure_queue('own', breaker_pause => '0');
SELECT saga.configure_queue('own', breaker_pause => '-1 s');
SELECT saga.configure_queue('own', breaker_pause => '1 month');
SELECT saga.configure_queue('own', breaker_max_pause => '200 years');
SELECT saga.configure_queue('own', breaker_max_pause => '40000 days');
SELECT saga.configure_queue('own', breaker_max_pause => '1 s');
SELECT saga.configure_queue('own', breaker_pause => '2 min');
SELECT saga.configure_queue('own', owner => 'regress_queue_other');
SELECT saga.configure_queue('own', owner => 'regress_saga_gone');
SELECT saga.configure_queue('none', paused => true);
SELECT saga.configure_queue(NULL, paused => true);
SELECT saga.reset_breaker('own');
SELECT saga.reset_breaker('none');
SELECT saga.reset_breaker(NULL);
RESET ROLE;
-- Operators pause, go on, and close breakers; the rest is the owner's.
SET ROLE regress_saga_operator;
SELECT saga.configure_queue('own', paused => false);
SELECT saga.configure_queue('own', paused => false, breaker_failures => 1);
SELECT saga.configure_queue('own', owner => 'regress_saga_operator');
SELECT saga.reset_breaker('own');
SELECT saga.drop_queue('own');
SELECT saga.create_queue('operators');
SELECT queue, owner, paused FROM saga.queues WHERE queue = 'own';
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT queue, owner, paused, breaker_failures FROM saga.queues WHERE queue = 'own';
SELECT saga.configure_queue('own', paused => true);
SELECT saga.claim_tasks('own');
RESET ROLE;

------------------------------------------------------------------------------
-- 3. Grants
------------------------------------------------------------------------------
SET ROLE regress_queue_owner;
SELECT saga.grant_participant('regress_queue_hand', 'none');
SELECT saga.grant_participant('regress_queue_hand', NULL);
SELECT saga.grant_participant(NULL, 'own');
SELECT saga.grant_participant('regress_saga_gone', 'own');
SELECT saga.grant_participant('public', 'own');
SELECT saga.revoke_participant('regress_saga_gone', 'own');
SELECT saga.revoke_participant('regress_queue_hand', 'none');
SELECT saga.grant_offer('none', 'regress_queue_hand');
SELECT saga.grant_offer(NULL, 'regress_queue_hand');
SELECT saga.grant_offer('own', NULL);
SELECT saga.grant_offer('own', 'public');
SELECT saga.revoke_offer('own', 'regress_saga_gone');
SELECT saga.revoke_offer('own', 'regress_queue_hand');
SELECT * FROM saga_test.privileges('regress_queue_hand');
-- A superuser makes the queue.
RESET ROLE;
SELECT saga.grant_participant('regress_queue_hand', E'a\nb');
SELECT saga.grant_participant('regress_queue_hand', 'boss');
SELECT saga.grant_offer('boss too', 'regress_queue_hand');
SELECT owner = current_user AS owner FROM saga.queues WHERE queue = 'boss';
SELECT * FROM saga_test.privileges('regress_queue_hand');
-- Again, which changes nothing, and by an owner who is no superuser.
SET ROLE regress_queue_owner;
SELECT saga.grant_participant('regress_queue_hand', 'own');
SELECT saga.grant_participant('regress_queue_hand', 'own');
SELECT saga.grant_participant('regress_queue_team', 'own');
SELECT saga.grant_participant('regress_queue_"x"; DROP', 'own');
SELECT saga.grant_participant('regress_queue_other', 'own');
SELECT count(*) FROM saga_test.privileges('regress_queue_hand');
SELECT count(*) FROM saga_test.privileges('regress_queue_"x"; DROP');
RESET ROLE;
SELECT q.name, g.role_name, g.privilege, g.granted_by = current_user AS by_superuser FROM saga.queue_grant g
JOIN saga.queue q ON q.id = g.queue_id WHERE q.name IN ('own', 'boss') ORDER BY 1, 2;
-- What came with a grant stays when that is taken back: others may have given it, too.
SELECT saga.revoke_participant('regress_queue_hand', 'boss');
SELECT count(*) FROM saga_test.privileges('regress_queue_hand');
SELECT saga.revoke_participant('regress_queue_"x"; DROP', 'own');
SELECT * FROM saga_test.privileges('regress_queue_"x"; DROP');
SELECT saga.revoke_participant('regress_queue_"x"; DROP', 'own');
SELECT count(*) AS before FROM saga_test.privileges('regress_queue_other') \gset
SELECT saga.revoke_participant('regress_queue_other', 'own');
SELECT count(*) = :before AS kept FROM saga_test.privileges('regress_queue_other');
SELECT count(*) AS before FROM saga_test.privileges('regress_saga_monitor') \gset
SELECT saga.grant_participant('regress_saga_monitor', 'own');
SELECT saga.revoke_participant('regress_saga_monitor', 'own');
SELECT count(*) = :before AS kept FROM saga_test.privileges('regress_saga_monitor');
-- The grants of a queue go with it; the rights on functions and views stay.
SELECT saga.grant_participant('regress_queue_"x"; DROP', 'boss');
SELECT saga.grant_participant('regress_queue_hand', 'boss');
SELECT saga.drop_queue('boss');
SELECT count(*) FROM saga_test.privileges('regress_queue_"x"; DROP');
SELECT count(*) FROM saga_test.privileges('regress_queue_hand');
SELECT saga.create_queue('boss');
SET ROLE regress_queue_hand;
SELECT saga.claim_tasks('boss');
RESET ROLE;

------------------------------------------------------------------------------
-- 4. Whose definitions may offer tasks
------------------------------------------------------------------------------
SET ROLE regress_queue_other;
SELECT saga.define('queues_other', saga.external_step('a', 'own'));
SELECT saga.define('queues_other', saga.external_step('a', 'others'), saga.external_step('b', 'own'));
SELECT queue FROM saga.queues;
RESET ROLE;
SET ROLE regress_queue_owner;
SELECT saga.grant_offer('own', 'regress_queue_other');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT saga.define('queues_other', saga.external_step('a', 'others'), saga.external_step('b', 'own'));
-- Who may offer sees how the queue does, and takes nothing.
SELECT queue, owner FROM saga.queues ORDER BY queue;
SELECT saga.claim_tasks('own');
SELECT saga.configure_queue('own', paused => true);
SELECT saga.drop_queue('others');
RESET ROLE;
SET ROLE regress_queue_owner;
SELECT saga.revoke_offer('own', 'regress_queue_other');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT saga.define('queues_other', saga.external_step('a', 'own'));
SELECT saga.define('queues_other', saga.external_step('a', E'a\nb'));
SELECT saga.define('queues_other', saga.external_step('a', repeat('x', 59)));
RESET ROLE;
-- Participants do not offer.
SET ROLE regress_queue_owner;
SELECT saga.grant_participant('regress_queue_other', 'own');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT saga.define('queues_other', saga.external_step('a', 'own'));
SELECT saga.claim_tasks('own');
RESET ROLE;
SELECT saga.revoke_participant('regress_queue_other', 'own');

------------------------------------------------------------------------------
-- 5. Who sees and takes what
------------------------------------------------------------------------------
SET ROLE regress_queue_owner;
SELECT saga.define('queues_own',
    saga.external_step('pack', 'own', action => 'pack it', compensation => 'unpack it', timeout => '2 hours'),
    saga.external_step('ship', 'secret', foreach => 'parcels'));
SELECT saga.begin('queues_own', '{"parcels": ["secret", "input"]}') AS first \gset
SELECT saga.begin('queues_own', '{"parcels": ["x"]}') AS second \gset
SELECT saga_test.wait_until('(SELECT count(*) = 2 FROM saga.tasks WHERE queue = ''own'')', 'the tasks');
RESET ROLE;
SET ROLE regress_queue_hand;
SELECT saga_test.wait_until('(SELECT offered = 2 FROM saga.queues)', 'them to be counted');
SELECT queue, owner, ready, claimed, oldest_ready <= now() AS since, offered FROM saga.queues;
SELECT id AS task, lease_token AS token, saga_id = :first AS oldest FROM saga_test.claim('own') \gset
\echo :oldest
SELECT queue, status, saga_id, definition, step, element, operation, task, attempt, participant, extensions, progress, cancel_requested,
    offered_at <= claimed_at AS claimed, lease_until < expires_at AS lease, ended_at
FROM saga.tasks ORDER BY id;
SELECT queue, ready, claimed, oldest_claimed IS NOT NULL AS since, next_lease_end > now() AS lease, offered, completed, participants > 0 AS seen FROM saga.queues;
SELECT queue, participant, last_seen <= now() AS seen, claimed FROM saga.participants WHERE participant = 'regress';
SELECT * FROM saga.extend_lease(:task, :'token', '2 hours', '{"percent": 50}') \gset
SELECT progress, extensions FROM saga.tasks WHERE id = :task;
SELECT saga.complete_task(:task, :'token', '"packed"');
SELECT completed, failed, expired, failures_in_row, rate > 0 AS rate FROM saga.queues;
SELECT status, ended_at IS NOT NULL AS ended, lease_until FROM saga.tasks WHERE id = :task;
-- The tasks of the other queue are not for it.
RESET ROLE;
SELECT saga_test.wait_until('(SELECT count(*) = 2 FROM saga.tasks WHERE queue = ''secret'')', 'the other queue');
SELECT element, status, task FROM saga.tasks WHERE queue = 'secret' ORDER BY id;
SET ROLE regress_queue_hand;
SELECT DISTINCT queue FROM saga.queues;
SELECT DISTINCT queue FROM saga.tasks;
SELECT DISTINCT queue FROM saga.participants;
SELECT saga.claim_tasks('secret');
-- No other door is open.
SELECT * FROM saga.task;
SELECT * FROM saga.queue;
SELECT * FROM saga.queue_grant;
SELECT * FROM saga.saga;
SELECT * FROM saga.sagas;
SELECT * FROM saga.steps;
SELECT * FROM saga.attempts;
SELECT * FROM saga.requests;
SELECT * FROM saga.definitions;
SELECT * FROM saga.definition_steps;
SELECT * FROM saga.workers;
SELECT * FROM saga.locks;
SELECT * FROM saga.stuck;
SELECT saga.begin('queues_own');
SELECT saga.define('queues_hand', saga.external_step('a', 'own'));
SELECT saga.cancel(:first);
SELECT saga.signal(:first, 'pack');
SELECT saga.result(:first);
SELECT * FROM saga.explain(:first);
SELECT saga.wait_within(:first, '1 s');
SELECT saga.create_queue('mine');
SELECT saga.drop_queue('own');
SELECT saga.configure_queue('own', paused => true);
SELECT saga.reset_breaker('own');
SELECT saga.grant_participant('regress_saga_stranger', 'own');
SELECT saga.grant_offer('own', 'regress_queue_hand');
SELECT nextval('saga.task_id_seq');
SELECT saga.sees_all();
RESET ROLE;
-- The functions behind the views show no more than these.
SELECT id AS secret FROM saga.queue WHERE name = 'secret' \gset
SELECT id AS own FROM saga.queue WHERE name = 'own' \gset
SET ROLE regress_queue_hand;
SELECT offered IS NOT NULL AS known FROM saga.queues_raw(:own);
SELECT offered IS NOT NULL AS known FROM saga.queues_raw(:secret);
SELECT count(*) FROM saga.participants_raw(:secret);
SELECT offered IS NOT NULL AS known FROM saga.queues_raw(NULL);
SELECT offered IS NOT NULL AS known FROM saga.queues_raw(-1);
SELECT count(*) FROM saga.participants_raw(-1);
-- A condition that tells what it is shown is shown nothing more.
CREATE FUNCTION pg_temp.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$;
SELECT count(*) FROM saga.queues WHERE pg_temp.tell(queue);
SELECT count(*) FROM saga.tasks WHERE pg_temp.tell(queue || ' ' || step);
SELECT count(*) FROM saga.participants WHERE pg_temp.tell(queue) AND participant = 'regress';
RESET ROLE;
-- Members of the role take part as well.
SET ROLE regress_queue_member;
SELECT queue FROM saga.queues;
SELECT id AS task, lease_token AS token FROM saga_test.claim('own') \gset
SELECT saga.release_task(:task, :'token');
RESET ROLE;
-- So do owners; strangers, and those who only use sagas, see nothing.
SET ROLE regress_queue_owner;
SELECT queue, ready FROM saga.queues WHERE queue IN ('own', 'secret') ORDER BY queue;
SELECT queue, step, status FROM saga.tasks ORDER BY id;
SELECT id AS task, lease_token AS token FROM saga_test.claim('own') \gset
SELECT saga.complete_task(:task, :'token', '"packed"');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT queue FROM saga.queues;
SELECT count(*) FROM saga.tasks;
SELECT count(*) FROM saga.participants;
SELECT saga.complete_task(:task, :'token', '"packed"');
RESET ROLE;
SET ROLE regress_saga_stranger;
SELECT queue FROM saga.queues;
SELECT saga.claim_tasks('own');
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT queue FROM saga.queues WHERE queue IN ('own', 'secret') ORDER BY queue;
SELECT count(*) > 0 AS sees FROM saga.tasks WHERE queue = 'own';
SELECT DISTINCT queue FROM saga.participants WHERE queue = 'own';
RESET ROLE;
-- The role that began a saga sees its tasks, of whatever queue they are.
SELECT saga.grant_begin('queues_own', 'regress_queue_other');
SET ROLE regress_queue_other;
SELECT saga.begin('queues_own', '{"parcels": []}') AS third \gset
SELECT saga_test.wait_until('(SELECT count(*) = 1 FROM saga.tasks)', 'its task');
SELECT queue, saga_id = :third AS its, status FROM saga.tasks;
SELECT count(*) FROM saga.queues WHERE queue = 'own';
SELECT saga.claim_tasks('own');
RESET ROLE;

------------------------------------------------------------------------------
-- 6. Rights that are taken away count at once
------------------------------------------------------------------------------
SET ROLE regress_queue_hand;
SELECT id AS task, lease_token AS token FROM saga_test.claim('own') \gset
RESET ROLE;
SELECT saga.grant_participant('regress_queue_hand', 'boss');
SET ROLE regress_queue_owner;
SELECT saga.revoke_participant('regress_queue_hand', 'own');
RESET ROLE;
SET ROLE regress_queue_hand;
SELECT saga.complete_task(:task, :'token');
SELECT saga.extend_lease(:task, :'token');
SELECT saga.release_task(:task, :'token');
SELECT saga.claim_tasks('own');
SELECT queue FROM saga.queues;
SELECT count(*) FROM saga.tasks;
RESET ROLE;
-- A role of the same name is not the role that was meant, nor is the same role
-- under another name, until it is granted again.
SELECT saga.grant_participant('regress_queue_hand', 'own');
ALTER ROLE regress_queue_hand RENAME TO regress_queue_renamed;
SET ROLE regress_queue_renamed;
SELECT saga.claim_tasks('own');
SELECT queue FROM saga.queues;
SELECT count(*) FROM saga.tasks;
RESET ROLE;
SET client_min_messages = warning;
CREATE ROLE regress_queue_hand;
RESET client_min_messages;
GRANT regress_queue_hand TO regress_queue_member;
SELECT saga.revoke_participant('regress_queue_team', 'own');
SET ROLE regress_queue_member;
SELECT saga.claim_tasks('own');
RESET ROLE;
SELECT saga.grant_participant('regress_queue_renamed', 'own');
SET ROLE regress_queue_renamed;
SELECT saga.complete_task(:task, :'token');
RESET ROLE;
-- The grant of a role that is gone is taken back all the same.
DROP ROLE regress_queue_hand;
SELECT saga.revoke_participant('regress_queue_hand', 'own');
SELECT saga.revoke_participant('regress_queue_hand', 'own');
-- A queue whose owner has another name now belongs to superusers only.
SELECT saga.create_queue('teams', 'regress_queue_team');
SELECT saga.grant_usage('regress_queue_member');
ALTER ROLE regress_queue_team RENAME TO regress_queue_group;
SET ROLE regress_queue_member;
SELECT saga.claim_tasks('teams');
SELECT saga.configure_queue('teams', paused => true);
SELECT queue FROM saga.queues;
RESET ROLE;
SELECT saga.configure_queue('teams', paused => true);
-- saga.adopt() follows the names of roles of this cluster, of grants too.
SELECT saga.grant_offer('boss', 'regress_queue_group');
ALTER ROLE regress_queue_group RENAME TO regress_queue_team;
UPDATE saga.queue SET owner_name = 'regress_queue_group' WHERE name = 'teams';
CALL saga.adopt();
SELECT q.name, q.owner_name = current_user AS superusers, g.role_name, g.privilege
FROM saga.queue q LEFT JOIN saga.queue_grant g ON g.queue_id = q.id WHERE q.name IN ('teams', 'boss') ORDER BY 1, 3;
SET ROLE regress_queue_member;
SELECT queue, owner = 'regress_queue_team' AS teams, paused FROM saga.queues ORDER BY queue;
SELECT saga.drop_queue('teams');
RESET ROLE;
-- In a restored dump the OIDs are those of other roles.
BEGIN;
SELECT saga.configure_queue('own');
UPDATE saga.coordinator SET id = gen_random_uuid();
UPDATE saga.queue SET owner = 'regress_saga_stranger'::regrole WHERE name = 'own';
UPDATE saga.queue_grant SET role = 'regress_saga_stranger'::regrole;
UPDATE saga.task SET role = 'regress_saga_stranger'::regrole;
UPDATE saga.saga SET role = 'regress_saga_stranger'::regrole WHERE id = :third;
SELECT saga.grant_usage('regress_saga_stranger');
SET LOCAL ROLE regress_saga_stranger;
SELECT count(*) FROM saga.queues;
SELECT count(*) FROM saga.tasks;
SELECT count(*) FROM saga.participants;
SAVEPOINT s;
SELECT saga.claim_tasks('own');
ROLLBACK TO s;
SELECT saga.drop_queue('own');
ROLLBACK;

------------------------------------------------------------------------------
-- 7. What holds a queue
------------------------------------------------------------------------------
SET ROLE regress_queue_owner;
SELECT saga_test.wait_until('(SELECT count(*) = 3 FROM saga.tasks WHERE queue = ''secret'')', 'all parcels');
SELECT saga.drop_queue('secret');
SELECT count(saga.complete_task(id, lease_token)) FROM saga.claim_tasks('secret');
RESET ROLE;
SELECT saga_test.outcome(:first), saga_test.outcome(:second), saga_test.outcome(:third);
SET ROLE regress_queue_owner;
SELECT saga.drop_queue('secret');
-- A definition no longer names it, but a saga of its earlier version does.
SELECT saga.begin('queues_own', '{"parcels": []}') AS fourth \gset
SELECT saga.define('queues_own', saga.external_step('pack', 'own'));
SELECT saga.drop_queue('secret');
SELECT id AS task, lease_token AS token FROM saga_test.claim('own') \gset
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:fourth);
SELECT saga.drop_queue('secret');
SELECT queue IS NULL AS dropped, status, count(*) FROM saga.tasks WHERE saga_id = :first GROUP BY 1, 2 ORDER BY 1, 2;
SELECT saga.begin('queues_own', '{"parcels": []}') AS fifth \gset
SELECT saga_test.wait_until('(SELECT ready = 1 FROM saga.queues WHERE queue = ''own'')', 'a task');
SELECT saga.drop_queue('own');
SELECT saga.cancel(:fifth) = :fifth AS cancelled;
SELECT saga_test.outcome(:fifth);
SELECT count(saga.define('queues_own ' || n, saga.external_step('pack', 'own'))) FROM generate_series(1, 6) n;
SELECT saga.drop_queue('own');
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'queues\_own%';
SELECT saga.drop_queue('own');
RESET ROLE;
SET ROLE regress_queue_other;
SELECT saga.drop_definition('queues_other');
SELECT count(saga.drop_queue(queue)) FROM saga.queues;
RESET ROLE;
SET ROLE regress_queue_owner;
SELECT saga.drop_queue('own');
-- Any name does.
SELECT saga.define('queues_name', saga.external_step('a', 'a"b; %s''\'));
SELECT saga.begin('queues_name') AS id \gset
SELECT id AS task, lease_token AS token FROM saga_test.claim('a"b; %s''\') \gset
SELECT saga.complete_task(:task, :'token');
SELECT saga_test.outcome(:id);
SELECT saga.drop_definition('queues_name');
SELECT saga.drop_queue('a"b; %s''\');
SELECT queue FROM saga.queues;
RESET ROLE;
SELECT saga.drop_queue('boss');
SELECT count(*) FROM saga.queue_grant g WHERE NOT EXISTS (SELECT FROM saga.queue q WHERE q.id = g.queue_id);

-- In an index expression nobody makes anything.
CREATE FUNCTION saga_test.make_queue(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT saga.create_queue($1)::text $$;
CREATE TABLE saga_test.victim AS SELECT 'stolen' AS name;
CREATE INDEX ON saga_test.victim (saga_test.make_queue(name));
DROP TABLE saga_test.victim;
SET client_min_messages = warning;
DROP OWNED BY regress_queue_owner, regress_queue_other, regress_queue_renamed, regress_queue_team,
    regress_queue_member, "regress_queue_""x""; DROP";
DROP ROLE regress_queue_owner, regress_queue_other, regress_queue_renamed, regress_queue_team,
    regress_queue_member, "regress_queue_""x""; DROP";
