--
-- A role gets no more rights than it has (P7), whatever it does in a step,
-- beside one, or to the names that the engine's own statements use.  What the
-- attacker's code was run as is recorded; it has won if that is ever a role
-- that is not the attacker's.
--
SELECT setval('saga.saga_id_seq', 9000000, false) AS ids_begin_at;
SET client_min_messages = warning;
CREATE ROLE regress_saga_boss SUPERUSER LOGIN;
CREATE ROLE regress_saga_friend;
CREATE ROLE regress_saga_mallory LOGIN;
CREATE ROLE regress_saga_shadow LOGIN;
GRANT regress_saga_friend TO regress_saga_mallory;
RESET client_min_messages;
SELECT saga.grant_usage('regress_saga_mallory');
SELECT saga.grant_usage('regress_saga_shadow');
DO $$ BEGIN
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO regress_saga_mallory, regress_saga_shadow', current_database());
END $$;
CREATE SCHEMA security;
GRANT USAGE, CREATE ON SCHEMA security TO regress_saga_mallory, regress_saga_shadow, regress_saga_owner;
GRANT USAGE ON SCHEMA security TO PUBLIC;

-- The loot: a row goes with its (sub)transaction, the jackpot is a sequence.
CREATE TABLE security.loot (attack text, ran_as name, session_of name, is_superuser text);
GRANT INSERT, SELECT ON security.loot TO PUBLIC;
CREATE SEQUENCE security.jackpot;
GRANT USAGE ON SEQUENCE security.jackpot TO PUBLIC;
CREATE FUNCTION security.jackpot() RETURNS text LANGUAGE sql SET search_path = pg_catalog, pg_temp AS
    $$ SELECT CASE WHEN is_called THEN last_value::text ELSE 'none' END FROM security.jackpot $$;
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.record(attack text) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('is_superuser') = 'on'
        OR current_user NOT IN ('regress_saga_mallory', 'regress_saga_friend', 'regress_saga_shadow') THEN
        PERFORM nextval('security.jackpot');
    END IF;
    INSERT INTO security.loot VALUES (attack, current_user, session_user, current_setting('is_superuser'));
END
$$;
CREATE FUNCTION security.recorded(attack text, result anyelement) RETURNS anyelement LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record(attack); RETURN result; END $$;
RESET ROLE;
-- The alarm works.
BEGIN;
SELECT security.record('control');
SELECT attack, ran_as = current_user AS caught FROM security.loot;
SELECT security.jackpot();
ROLLBACK;
SELECT setval('security.jackpot', 1, false) AS jackpot_begins_at;

-- The victim: saga 9000000, with secrets in its input, result, error and key.
SET ROLE regress_saga_owner;
CREATE FUNCTION security.pay(card text) RETURNS text LANGUAGE sql RETURN 'secret result';
CREATE FUNCTION security.hang() RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'secret error' USING ERRCODE = '40001'; END $$;
SELECT saga.define('sec_victim',
    saga.step('pay', 'security.pay', 'security.hang', compensation_retry => saga.retry_policy(1)),
    saga.step('hang', 'security.hang', retry => saga.retry_policy(initial_delay => '1 day', max_delay => '1 day')));
SELECT saga.begin('sec_victim', '{"card": "secret card"}', key => 'secret key') AS victim \gset
SELECT saga_test.waits_for(:victim);
SELECT saga.define('sec_outside', saga.external_step('ask', 'sec_queue', 'secret task'));
SELECT saga.begin('sec_outside', '{"card": "secret card"}') AS outside \gset
SELECT saga_test.wait_until('(SELECT ready = 1 FROM saga.queues WHERE queue = ''sec_queue'')', 'the task');
CREATE TABLE security.known AS SELECT id AS task FROM saga.tasks WHERE saga_id = :outside;
GRANT SELECT ON security.known TO PUBLIC;
RESET ROLE;

------------------------------------------------------------------------------
-- 1. Commands of a step: what each ended with, who the step was after it, and
--    who the next step is.
------------------------------------------------------------------------------
CREATE TABLE security.attack (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, command text NOT NULL);
GRANT SELECT ON security.attack TO PUBLIC;
INSERT INTO security.attack (command) VALUES
    ('SET ROLE regress_saga_boss'),
    ('SET ROLE regress_saga_friend'),
    ('SET LOCAL ROLE regress_saga_friend'),
    ('SET ROLE NONE'),
    ('RESET ROLE'),
    ('SET SESSION AUTHORIZATION regress_saga_boss'),
    ('SET SESSION AUTHORIZATION regress_saga_friend'),
    ('SET SESSION AUTHORIZATION DEFAULT'),
    ('RESET SESSION AUTHORIZATION'),
    ('SELECT set_config(''role'', ''regress_saga_boss'', false)'),
    ('SELECT set_config(''session_authorization'', ''regress_saga_boss'', false)'),
    ('SELECT set_config(''is_superuser'', ''on'', false)'),
    ('RESET ALL'),
    ('SET session_replication_role = replica'),
    ('ALTER ROLE regress_saga_mallory SUPERUSER'),
    ('ALTER ROLE regress_saga_boss RENAME TO regress_saga_x'),
    ('GRANT regress_saga_boss TO regress_saga_mallory'),
    ('GRANT regress_saga_owner TO regress_saga_mallory'),
    ('CREATE EVENT TRIGGER sec_x ON ddl_command_end EXECUTE FUNCTION security.record()'),
    ('CREATE OPERATOR CLASS security.x DEFAULT FOR TYPE jsonb USING btree AS OPERATOR 1 <'),
    ('CREATE CAST (jsonb AS boolean) WITHOUT FUNCTION'),
    ('CREATE CAST (saga.operation AS jsonb) WITHOUT FUNCTION'),
    ('SELECT * FROM saga.saga'),
    ('SELECT * FROM saga.saga_0'),
    ('SELECT * FROM saga.step'),
    ('SELECT * FROM saga.attempt'),
    ('SELECT * FROM saga.history'),
    ('SELECT * FROM saga.message'),
    ('SELECT * FROM saga.branch'),
    ('SELECT * FROM saga.key'),
    ('SELECT * FROM saga.lock'),
    ('SELECT * FROM saga.alert'),
    ('SELECT * FROM saga.coordinator'),
    ('SELECT * FROM saga.definition'),
    ('SELECT * FROM saga.definition_version'),
    ('SELECT * FROM saga.definition_grant'),
    ('SELECT * FROM saga.queue'),
    ('SELECT * FROM saga.queue_grant'),
    ('SELECT * FROM saga.task'),
    ('SELECT nextval(''saga.task_id_seq'')'),
    ('UPDATE saga.task SET claimed = true'),
    ('UPDATE saga.tasks SET queue = ''x'''),
    ('INSERT INTO saga.queue_grant SELECT id, 0, ''public'', ''participate'', ''x'' FROM saga.queue'),
    ('SELECT last_value FROM saga.saga_id_seq'),
    ('SELECT nextval(''saga.saga_id_seq'')'),
    ('SELECT setval(''saga.saga_id_seq'', 1)'),
    ('UPDATE saga.saga SET role = 10'),
    ('UPDATE saga.saga_0 SET role = 10'),
    ('UPDATE saga.sagas SET owner = ''regress_saga_boss'''),
    ('INSERT INTO saga.message (id, saga_id, slot, role, kind, requested_by) VALUES (1, 9000000, 0, 10, ''abandon'', ''x'')'),
    ('INSERT INTO saga.definition_grant SELECT id, 0, ''public'', ''x'' FROM saga.definition'),
    ('DELETE FROM saga.history'),
    ('TRUNCATE saga.saga'),
    ('COPY saga.saga_0 TO PROGRAM ''cat'''),
    ('LOCK TABLE saga.saga IN ACCESS SHARE MODE'),
    ('LOCK TABLE saga.saga_0 IN ACCESS EXCLUSIVE MODE'),
    ('LOCK TABLE saga.sagas IN ROW EXCLUSIVE MODE'),
    ('LOCK TABLE saga.sagas IN ACCESS EXCLUSIVE MODE'),
    ('SELECT * FROM saga.sagas FOR UPDATE'),
    ('ALTER TABLE saga.message ADD x int DEFAULT security.recorded(''column'', 1)'),
    ('ALTER TABLE saga.saga OWNER TO regress_saga_mallory'),
    ('ALTER TYPE saga.operation ADD VALUE ''x'''),
    ('CREATE TABLE saga.x ()'),
    ('CREATE FUNCTION saga.x() RETURNS int LANGUAGE sql RETURN 1'),
    ('CREATE OPERATOR saga.|| (LEFTARG = saga.operation, RIGHTARG = text, FUNCTION = security.record)'),
    ('CREATE OR REPLACE FUNCTION saga.sees_all() RETURNS boolean LANGUAGE sql RETURN true'),
    ('DROP FUNCTION saga.operator_privilege()'),
    ('DROP EXTENSION saga CASCADE'),
    ('ALTER EXTENSION saga ADD FUNCTION security.record(text)'),
    ('ALTER SCHEMA saga OWNER TO regress_saga_mallory'),
    ('SELECT saga.monitor_privilege()'),
    ('SELECT saga.operator_privilege()'),
    ('SELECT saga.grant_usage(''regress_saga_stranger'')'),
    ('SELECT saga.grant_monitor(''regress_saga_mallory'')'),
    ('SELECT saga.grant_operator(''regress_saga_mallory'')'),
    ('CALL saga.adopt()'),
    ('CALL saga.recover()'),
    ('CALL saga.run(9000000)'),
    ('CALL saga.wait(9000000)'),
    ('SELECT saga.wait_within(9000000, ''0'')'),
    ('SELECT saga.cancel(9000000)'),
    ('SELECT saga.pause(9000000)'),
    ('SELECT saga.resume(9000000)'),
    ('SELECT saga.retry(9000000)'),
    ('SELECT saga.skip(9000000)'),
    ('SELECT saga.abandon(9000000)'),
    ('SELECT saga.signal(9000000, ''pay'')'),
    ('SELECT saga.signal(''sec_victim'', ''secret key'', ''pay'')'),
    ('INSERT INTO saga.branch (id, saga_id, role, element, attempt, operation, slot, step, round) VALUES (1, 9000000, 10, 0, 1, ''action'', 0, 0, 0)'),
    ('DELETE FROM saga.lock'),
    ('SELECT saga.define(''sec_victim'', saga.step(''a'', ''security.run_attack''))'),
    ('SELECT saga.configure(''sec_victim'', enabled => false)'),
    ('SELECT saga.drop_definition(''sec_victim'', force => true)'),
    ('SELECT saga.grant_begin(''sec_victim'', ''regress_saga_mallory'')'),
    ('SELECT saga.revoke_begin(''sec_victim'', ''regress_saga_owner'')'),
    ('SELECT saga.begin(''sec_victim'', ''{"card": "x"}'')'),
    ('SELECT saga.begin(''sec_victim'', ''{"card": "x"}'', key => ''secret key'')'),
    ('SELECT saga.begin(''sec_victim'', ''{"card": "x"}'', trust_definition => true)'),
    ('SELECT saga.claim_tasks(''sec_queue'')'),
    ('SELECT saga.complete_task(task, gen_random_uuid()) FROM security.known'),
    ('SELECT saga.drop_queue(''sec_queue'')'),
    ('SELECT saga.configure_queue(''sec_queue'', owner => ''regress_saga_mallory'')'),
    ('SELECT saga.configure_queue(''sec_queue'', paused => true)'),
    ('SELECT saga.reset_breaker(''sec_queue'')'),
    ('SELECT saga.grant_participant(''regress_saga_mallory'', ''sec_queue'')'),
    ('SELECT saga.revoke_participant(''regress_saga_owner'', ''sec_queue'')'),
    ('SELECT saga.grant_participant(''regress_saga_mallory'', ''sec_none'')'),
    ('SELECT saga.grant_offer(''sec_queue'', ''regress_saga_mallory'')'),
    ('SELECT saga.revoke_offer(''sec_queue'', ''regress_saga_owner'')'),
    ('SELECT saga.create_queue(''sec_boss'', ''regress_saga_boss'')'),
    ('SELECT saga.define(''sec_offers'', saga.external_step(''a'', ''sec_queue''))'),
    ('SELECT saga.define(''sec_offers'', saga.external_step(''a'', ''sec_own'')), saga.grant_participant(''regress_saga_friend'', ''sec_own'')'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.tasks HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.queues WHERE queue = ''sec_queue'' HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.participants HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM generate_series(1, 1000) i, saga.queues_raw(i) q WHERE q.offered > 0 HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM generate_series(1, 1000) i, saga.participants_raw(i) HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.workers_raw() WHERE role <> (SELECT oid FROM pg_roles WHERE rolname = current_user) HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.explain_raw(9000000) HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.explain_tree(9000000, 9000000) HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.explain(9000000) HAVING count(*) > 0'),
    ('SELECT 1 / (count(*) - count(*)) FROM saga.locks WHERE owner <> current_user HAVING count(*) > 0'),
    ('SELECT pg_terminate_backend(pid) FROM saga.workers WHERE process = ''launcher''');

SET ROLE regress_saga_mallory;
CREATE FUNCTION security.run_attack(attack int) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    outcome text := 'done';
BEGIN
    BEGIN
        EXECUTE (SELECT a.command FROM security.attack a WHERE a.n = attack);
    EXCEPTION WHEN OTHERS THEN
        outcome := SQLSTATE;
    END;
    PERFORM security.record('command');
    RETURN jsonb_build_object('outcome', outcome, 'step', security.who());
END
$$;
CREATE FUNCTION security.who() RETURNS text LANGUAGE sql AS $$
    SELECT replace(format('%s/%s/%s', current_user, session_user, current_setting('is_superuser')), 'regress_saga_', '')
$$;
SELECT saga.define('sec_attack', saga.step('attack_it', 'security.run_attack'), saga.step('after', 'security.who'));
SELECT count(saga.begin('sec_attack', jsonb_build_object('attack', n), key => n::text)) FROM security.attack;
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.sagas WHERE definition = ''sec_attack'' AND finished_at IS NULL)', 'all attacks');
SELECT a.command, t.result ->> 'outcome' AS outcome, t.result ->> 'step' AS step, s.result #>> '{}' AS next_step
FROM security.attack a
JOIN saga.sagas s ON s.definition = 'sec_attack' AND s.key = a.n::text
JOIN saga.steps t ON t.saga_id = s.saga_id AND t.step = 'attack_it'
ORDER BY a.n;
RESET ROLE;
SELECT * FROM security.loot GROUP BY 1, 2, 3, 4 ORDER BY 1, 2;
SELECT security.jackpot();
TRUNCATE security.loot;
-- DDL on the engine's tables, here and not in a step: PostgreSQL takes the lock
-- before it looks at the privileges.
CREATE TABLE security.ddl_attack (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, command text NOT NULL);
GRANT SELECT ON security.ddl_attack TO PUBLIC;
INSERT INTO security.ddl_attack (command) VALUES
    ('CREATE TRIGGER x BEFORE UPDATE ON saga.saga FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'),
    ('CREATE TRIGGER x INSTEAD OF UPDATE ON saga.sagas FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'),
    ('CREATE RULE x AS ON INSERT TO saga.message DO ALSO SELECT security.record(''rule'')'),
    ('CREATE POLICY x ON saga.saga USING (true)'),
    ('CREATE INDEX ON saga.saga_0 (security.recorded(''index'', id))'),
    ('CREATE STATISTICS security.x ON id, slot FROM saga.saga_0'),
    ('CREATE PUBLICATION sec_x FOR TABLE saga.saga'),
    ('CREATE TABLE security.x () INHERITS (saga.message)'),
    ('CREATE TABLE security.x PARTITION OF saga.saga DEFAULT'),
    ('CREATE TABLE security.x (id bigint, slot smallint, FOREIGN KEY (id, slot) REFERENCES saga.saga)');
SET ROLE regress_saga_mallory;
DO $$
DECLARE
    attack text;
BEGIN
    FOR attack IN SELECT command FROM security.ddl_attack ORDER BY n LOOP
        BEGIN
            EXECUTE attack;
            RAISE NOTICE 'done: %', attack;
        EXCEPTION WHEN OTHERS THEN
            RAISE NOTICE '%: %', SQLSTATE, attack;
        END;
    END LOOP;
END
$$;
RESET ROLE;
-- Nothing of the victim has changed.
SELECT status, waiting_for FROM saga.sagas WHERE saga_id = :victim;
SELECT * FROM saga_test.story(:victim);
SELECT count(*) FROM saga.requests WHERE saga_id = :victim;
SELECT version, enabled FROM saga.definitions WHERE name = 'sec_victim';

------------------------------------------------------------------------------
-- 2. Code that runs at other moments than the call itself.
------------------------------------------------------------------------------
CREATE TABLE security.accounts (owner name, balance int);
INSERT INTO security.accounts VALUES ('regress_saga_owner', 1000), ('regress_saga_mallory', 1);
ALTER TABLE security.accounts ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON security.accounts USING (owner = current_user);
GRANT SELECT ON security.accounts TO PUBLIC;
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.on_row() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record(TG_ARGV[0]); RETURN NEW; END $$;
CREATE FUNCTION security.noted(attack text, n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record(attack); RETURN n; END $$;
CREATE TABLE security.target (
    id int,
    a int DEFAULT security.recorded('default of a column', 1),
    b int GENERATED ALWAYS AS (security.noted('generated column', id)) STORED,
    CHECK (security.noted('check constraint', id) > 0));
CREATE UNIQUE INDEX ON security.target (security.noted('index expression', id));
CREATE TRIGGER t1 BEFORE INSERT ON security.target FOR EACH ROW EXECUTE FUNCTION security.on_row('trigger');
CREATE TRIGGER t2 AFTER INSERT ON security.target FOR EACH ROW EXECUTE FUNCTION security.on_row('after trigger');
CREATE CONSTRAINT TRIGGER t3 AFTER INSERT ON security.target DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION security.on_row('deferred trigger');
CREATE CONSTRAINT TRIGGER t4 AFTER INSERT ON security.target DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.id > 0) EXECUTE FUNCTION security.on_row('another deferred trigger');
CREATE RULE r AS ON INSERT TO security.target DO ALSO SELECT security.record('rule');
CREATE DOMAIN security.noted_int AS int CHECK (security.noted('domain', VALUE) IS NOT NULL);
CREATE TYPE security.pair AS (x security.noted_int, y int);
CREATE TYPE security.colour AS ENUM ('red');
CREATE FUNCTION security.colour_to_json(security.colour) RETURNS json LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('cast to json'); RETURN '"as json"'; END $$;
CREATE CAST (security.colour AS json) WITH FUNCTION security.colour_to_json(security.colour);
CREATE FUNCTION security.plus(int, int) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('operator'); RETURN 0; END $$;
CREATE OPERATOR security.+ (LEFTARG = int, RIGHTARG = int, FUNCTION = security.plus);

CREATE FUNCTION security.triggers(id int) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO security.target (id) VALUES (id); END $$;
CREATE FUNCTION security.arguments(
    n security.noted_int, p security.pair, q security.pair[],
    d int DEFAULT security.recorded('default of a parameter', 7)) RETURNS int LANGUAGE sql AS 'SELECT d';
CREATE FUNCTION security.results() RETURNS security.colour LANGUAGE sql AS $$ SELECT 'red'::security.colour $$;
CREATE FUNCTION security.domain_result() RETURNS security.noted_int LANGUAGE plpgsql AS $$ BEGIN RETURN 5; END $$;
CREATE FUNCTION security.not_with_null(nothing int) RETURNS int STRICT LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('STRICT was called with NULL'); RETURN 1; END $$;
CREATE FUNCTION security.cursors() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c refcursor;
BEGIN
    EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT security.record(''held cursor'') FROM generate_series(1, 3)';
    EXECUTE 'DECLARE started CURSOR WITH HOLD FOR SELECT security.record(''started cursor'') FROM generate_series(1, 3)';
    EXECUTE 'FETCH FORWARD 1 FROM started';
    OPEN c FOR EXECUTE 'SELECT security.record(''open cursor'') FROM generate_series(1, 3)';
    FETCH c INTO c;
END
$$;
CREATE FUNCTION security.operators() RETURNS int LANGUAGE plpgsql SET search_path = security, pg_catalog AS
    $$ BEGIN RETURN 1 OPERATOR(security.+) 1; END $$;
CREATE FUNCTION security.balances() RETURNS int LANGUAGE sql AS 'SELECT sum(balance)::int FROM security.accounts';
CREATE FUNCTION security.later() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'SET CONSTRAINTS ALL IMMEDIATE';
    EXECUTE 'CREATE TEMPORARY TABLE x ON COMMIT DROP AS SELECT security.recorded(''temporary table'', 1)';
    INSERT INTO security.target (id) VALUES (2);
    EXECUTE 'SET CONSTRAINTS ALL DEFERRED';
    INSERT INTO security.target (id) VALUES (3);
END
$$;
CREATE FUNCTION security.fails() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('lost'); RAISE EXCEPTION 'enough'; END $$;
CREATE FUNCTION security.undo() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('compensation'); INSERT INTO security.target (id) VALUES (4); END $$;
SELECT saga.define('sec_moments',
    saga.step('triggers', 'security.triggers', 'security.undo'),
    saga.step('arguments', 'security.arguments'),
    saga.step('results', 'security.results'),
    saga.step('domain_result', 'security.domain_result'),
    saga.step('strict', 'security.not_with_null'),
    saga.step('cursors', 'security.cursors'),
    saga.step('operators', 'security.operators'),
    saga.step('balances', 'security.balances'),
    saga.step('later', 'security.later'),
    saga.step('fails', 'security.fails', retry => saga.retry_policy(1)));
SELECT saga.begin('sec_moments', '{"id": 1, "n": 1, "p": {"x": 1, "y": 2}, "q": [{"x": 3}], "nothing": null}') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.story(:id);
RESET ROLE;
SELECT DISTINCT * FROM security.loot ORDER BY 1, 2;
SELECT security.jackpot();
TRUNCATE security.loot;

-- An event trigger of a superuser's runs with the rights of the step's role.
CREATE FUNCTION security.on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM security.record('event trigger'); END $$;
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.ddl() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'CREATE TABLE security.made ()'; END $$;
SELECT saga.define('sec_ddl', saga.step('ddl', 'security.ddl'));
RESET ROLE;
CREATE EVENT TRIGGER regress_saga_ddl ON ddl_command_end EXECUTE FUNCTION security.on_ddl();
SET ROLE regress_saga_mallory;
SELECT saga.begin('sec_ddl') AS id \gset
SELECT saga_test.outcome(:id);
RESET ROLE;
DROP EVENT TRIGGER regress_saga_ddl;
SELECT * FROM security.loot;
SELECT security.jackpot();
TRUNCATE security.loot;

-- Where PostgreSQL runs code on its own behalf no saga is begun or changed.
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.begin_it(what int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
BEGIN
    CASE what
        WHEN 1 THEN PERFORM saga.begin('sec_ddl', trust_definition => true);
        WHEN 2 THEN PERFORM saga.define('sec_ddl', saga.step('ddl', 'security.undo'));
        WHEN 3 THEN PERFORM saga.cancel(9000000);
        WHEN 4 THEN PERFORM saga.configure('sec_ddl', enabled => false);
        WHEN 5 THEN PERFORM saga.drop_definition('sec_ddl', true);
        WHEN 6 THEN PERFORM saga.grant_begin('sec_ddl', 'public');
        WHEN 7 THEN PERFORM saga.revoke_begin('sec_ddl', 'public');
        ELSE NULL;
    END CASE;
    RETURN 1;
END
$$;
CREATE TABLE security.indexed (what int);
CREATE MATERIALIZED VIEW security.viewed AS SELECT what, security.begin_it(what) FROM security.indexed;
RESET ROLE;
DO $$
DECLARE
    message text;
BEGIN
    FOR i IN 1..7 LOOP
        TRUNCATE security.indexed;
        INSERT INTO security.indexed VALUES (i);
        BEGIN
            EXECUTE 'CREATE INDEX ON security.indexed (security.begin_it(what))';
            RAISE NOTICE 'index %: made', i;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
            RAISE NOTICE 'index %: %', i, message;
        END;
        BEGIN
            EXECUTE 'REFRESH MATERIALIZED VIEW security.viewed';
            RAISE NOTICE 'view %: made', i;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS message = MESSAGE_TEXT;
            RAISE NOTICE 'view %: %', i, message;
        END;
    END LOOP;
END
$$;

------------------------------------------------------------------------------
-- 3. Names of the engine's statements, shadowed by those of a role whose
--    settings prefer its own: in its workers' sessions and in its own.
------------------------------------------------------------------------------
CREATE SCHEMA shadow AUTHORIZATION regress_saga_shadow;
ALTER ROLE regress_saga_shadow SET search_path = shadow, pg_temp, pg_catalog, security;
ALTER ROLE regress_saga_shadow SET row_security = off;
ALTER ROLE regress_saga_shadow SET default_transaction_read_only = off;
ALTER ROLE regress_saga_shadow SET default_transaction_deferrable = on;
ALTER ROLE regress_saga_shadow SET plan_cache_mode = force_generic_plan;
ALTER ROLE regress_saga_shadow SET enable_indexscan = off;
ALTER ROLE regress_saga_shadow SET enable_indexonlyscan = off;
ALTER ROLE regress_saga_shadow SET lock_timeout = '1 min';
ALTER ROLE regress_saga_shadow SET quote_all_identifiers = on;
ALTER ROLE regress_saga_shadow SET transform_null_equals = on;
ALTER ROLE regress_saga_shadow SET role = regress_saga_boss;
ALTER ROLE regress_saga_shadow SET session_authorization = regress_saga_boss;
SET ROLE regress_saga_shadow;
-- Everything of these names, in a schema: domains and enums for types, tables
-- with triggers, functions and operators that record.
CREATE FUNCTION shadow.arm(place text) RETURNS int LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    types constant text[] := '{jsonb,json,uuid,text,oid,int2,int4,int8,bool,timestamptz,interval,name,float8,regclass,regprocedure,xid,numeric,varchar,cstring}';
    tables constant text[] := '{saga,saga_0,step,step_0,attempt,attempt_0,history,history_0,message,key,lock,alert,coordinator,definition,definition_version,definition_grant,queue,queue_grant,task,queues,tasks,participants,sagas,steps,attempts,requests,workers,definitions,pg_roles,pg_authid,pg_database,pg_class,pg_proc,pg_namespace,pg_type,pg_extension,pg_cursors}';
    functions constant text[] := '{now,clock_timestamp,nextval,currval,setval,count,pg_notify,jsonb_build_object,gen_random_uuid,left,format,current_database,pg_has_role,has_function_privilege,pg_get_userbyid,pg_cursor,pg_prepared_xact,jsonb_array_elements,jsonb_array_length,make_interval,to_jsonb,jsonb_to_record,texteq,int8eq,oideq,uuid_eq,enum_in,textin,jsonb_in,jsonb_build_array,min,aclexplode,workers_raw,queues_raw,participants_raw,sees_all}';
    operators constant text[] := '{=,<>,<,<=,>,>=,||,->,->>,#>,#>>,+,-}';
    p record;
    t text;
    n int := 0;
BEGIN
    FOREACH t IN ARRAY types LOOP
        BEGIN
            EXECUTE format('CREATE DOMAIN %I.%I AS pg_catalog.%I CHECK (security.noted(%L, 1) > 0)', place, t, t, 'type ' || t);
            n := n + 1;
        EXCEPTION WHEN OTHERS THEN NULL;    -- cstring
        END;
    END LOOP;
    FOREACH t IN ARRAY tables LOOP
        EXECUTE format('CREATE TABLE %I.%I (id int, name text, oid oid, rolname name)', place, t);
        EXECUTE format('CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON %I.%I FOR EACH STATEMENT EXECUTE FUNCTION security.on_row(%L)',
                       place, t, 'table ' || t);
        EXECUTE format('INSERT INTO %I.%I DEFAULT VALUES', place, t);
        EXECUTE format('ALTER TABLE %I.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', place, t);
        EXECUTE format('CREATE POLICY p ON %I.%I USING (security.noted(%L, 1) > 0)', place, t, 'policy ' || t);
        n := n + 1;
    END LOOP;
    FOR p IN SELECT oid, proname, pg_get_function_identity_arguments(oid) AS arguments, pg_get_function_result(oid) AS result
             FROM pg_proc WHERE pronamespace IN ('pg_catalog'::regnamespace, 'saga'::regnamespace)
             AND proname = ANY (functions) AND prokind IN ('f', 'a') LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', place, p.proname, p.arguments, p.result,
                           format('BEGIN PERFORM security.record(%L); RETURN%s; END', 'function ' || p.proname,
                                  CASE WHEN p.result ~ '^(SETOF|TABLE|void)' THEN '' ELSE ' NULL' END));
            n := n + 1;
        EXCEPTION WHEN OTHERS THEN NULL;    -- parameters of type "any"
        END;
    END LOOP;
    FOR p IN SELECT DISTINCT o.oprname, o.oprleft::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result
             FROM pg_operator o WHERE o.oprname = ANY (operators)
             AND (o.oprleft::regtype::text = ANY (types || '{integer,bigint,smallint,boolean,anyenum,"timestamp with time zone","double precision"}'::text[]))
             AND (o.oprright::regtype::text = ANY (types || '{integer,bigint,smallint,boolean,anyenum,"timestamp with time zone","double precision",text[]}'::text[])) LOOP
        BEGIN
            EXECUTE format('CREATE FUNCTION %I.op(l %s, r %s) RETURNS %s LANGUAGE plpgsql AS %L', place, p.l, p.r, p.result,
                           format('BEGIN PERFORM security.record(%L); RETURN NULL; END', 'operator ' || p.oprname));
        EXCEPTION WHEN duplicate_function THEN NULL;
        END;
        BEGIN
            EXECUTE format('CREATE OPERATOR %I.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %I.op)', place, p.oprname, p.l, p.r, place);
            n := n + 1;
        EXCEPTION WHEN OTHERS THEN NULL;    -- pg_temp
        END;
    END LOOP;
    PERFORM security.record('armed ' || place);
    RETURN n;
END
$$;
SELECT shadow.arm('shadow') > 150 AS armed;
CREATE FUNCTION shadow.first() RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM shadow.arm('pg_temp');
    RETURN security.who();
END
$$;
CREATE FUNCTION shadow.settings() RETURNS jsonb LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(name, current_setting(name)) FROM unnest(
        '{row_security,plan_cache_mode,enable_indexscan,enable_seqscan,lock_timeout,session_replication_role,default_transaction_deferrable,jit}'::text[]) AS name
    WHERE name <> 'jit'
$$;
CREATE FUNCTION shadow.path() RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RETURN pg_catalog.current_setting('search_path'::pg_catalog.text); END $$;
CREATE FUNCTION shadow.fail() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'failed'; END $$;
SELECT saga.define('sec_shadow',
    saga.step('settings', 'shadow.settings'), saga.step('path', 'shadow.path'),
    saga.step('arm', 'shadow.first'), saga.step('again', 'security.who'));
SELECT saga.define('sec_shadow_stuck',
    saga.step('arm', 'shadow.first', 'shadow.fail', compensation_retry => saga.retry_policy(1)),
    saga.step('fail', 'shadow.fail', retry => saga.retry_policy(1)));
SELECT saga.configure('sec_shadow', max_running => 2);
SELECT saga.configure('sec_shadow_stuck', max_running => 1);
SELECT count(saga.begin('sec_shadow', key => n::text)) FROM generate_series(1, 6) n;
SELECT saga.begin('sec_shadow_stuck', key => 'stuck') AS stuck \gset
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.sagas WHERE definition = ''sec_shadow'' AND finished_at IS NULL)', 'the armed sagas');
SELECT saga_test.outcome(:stuck);
SELECT t.step, t.status, t.result, t.error ->> 'message' AS error, count(*)
FROM saga.steps t JOIN saga.sagas s USING (saga_id) WHERE s.definition = 'sec_shadow' GROUP BY 1, 2, 3, 4 ORDER BY min(t.position);
SELECT saga.retry(:stuck, 'again');
SELECT saga_test.wait_until(format('EXISTS (SELECT FROM saga.requests WHERE saga_id = %s AND applied_at IS NOT NULL)', :stuck), 'the retry');
SELECT saga_test.outcome(:stuck);
SELECT saga.abandon(:stuck, 'enough');
SELECT saga_test.wait_until(format('(SELECT status = ''abandoned'' FROM saga.sagas WHERE saga_id = %s)', :stuck), 'the end');

-- The same in a session of its own: every function of the API.
SELECT shadow.arm('pg_temp') > 50 AS armed;
SET search_path = shadow, pg_temp, pg_catalog, security;
SET row_security = off;
SET transform_null_equals = on;
SET quote_all_identifiers = on;
SELECT saga.retry_policy(max_attempts => 3);
SELECT saga.step('a', 'shadow.first');
SELECT saga.define('sec_shadow_own', saga.step('who', 'security.who', timeout => '10 s', retry => saga.retry_policy()));
SELECT saga.define('sec_shadow_own', saga.step('who', 'security.who', 'shadow.fail'));
SELECT saga.define('sec_shadow_own', saga.step('who', 'security.who', 'shadow.fail'));
SELECT saga.define('sec_shadow_own', saga.step('who', 'security.wo'));
SELECT saga.configure('sec_shadow_own', deadline => '1 h', retention => '1 day', max_running => 5, enabled => true);
SELECT saga.grant_begin('sec_shadow_own', 'regress_saga_mallory');
SELECT saga.revoke_begin('sec_shadow_own', 'regress_saga_mallory');
SELECT saga.begin('sec_shadow_own', '{}', key => 'k', start_at => pg_catalog.now() OPERATOR(pg_catalog.+) '1 h'::pg_catalog.interval) AS own \gset
SELECT saga.begin('sec_shadow_own', '{}', key => 'k') OPERATOR(pg_catalog.=) :own AS same;
SELECT saga.begin('sec_shadow_own', '{}', key => 'k', on_duplicate => 'error');
SELECT saga.begin('sec_shadow_own', '{}', key => 'k', on_duplicate => 'new') OPERATOR(pg_catalog.=) :own AS same;
SELECT saga.begin('sec_shadow_on');
SELECT saga.pause(:own, 'x'), saga.resume(:own, 'x'), saga.cancel(:own, 'x') OPERATOR(pg_catalog.=) :own;
SELECT saga.retry(:own);
SELECT saga.skip(:own);
SELECT saga.wait_within(:own, '0'::pg_catalog.interval) IS NOT NULL AS waited;
SELECT saga.wait_within(:own, '1 min'::pg_catalog.interval);
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 AS explained FROM saga.explain(:own);
SELECT saga.result(:own);
SELECT pg_catalog.count(*) FROM saga.sagas WHERE saga_id OPERATOR(pg_catalog.=) :own;
SELECT pg_catalog.count(*) FROM saga.steps WHERE saga_id OPERATOR(pg_catalog.=) :own;
SELECT pg_catalog.count(*) FROM saga.requests WHERE saga_id OPERATOR(pg_catalog.=) :own;
SELECT pg_catalog.count(*) FROM saga.attempts WHERE saga_id OPERATOR(pg_catalog.=) :own;
SELECT pg_catalog.count(*) FROM saga.stuck WHERE saga_id OPERATOR(pg_catalog.=) :own;
SELECT pg_catalog.count(*) OPERATOR(pg_catalog.>) 0 AS workers FROM saga.workers;
SELECT pg_catalog.count(*) FROM saga.definitions WHERE name OPERATOR(pg_catalog.=) 'sec_shadow_own'::pg_catalog.text;
SELECT pg_catalog.count(*) FROM saga.definition_steps WHERE definition OPERATOR(pg_catalog.=) 'sec_shadow_own'::pg_catalog.text;
SELECT saga.drop_definition('sec_shadow_own', true);
RESET ALL;
RESET ROLE;
DISCARD TEMP;   -- or this superuser's own queries would walk into it
SELECT attack, ran_as, session_of = current_user AS own_session, is_superuser, count(*)
FROM security.loot WHERE attack LIKE 'armed%' GROUP BY 1, 2, 3, 4 ORDER BY 1, 3;
SELECT * FROM security.loot WHERE ran_as <> 'regress_saga_shadow';
SELECT security.jackpot();
TRUNCATE security.loot;

-- saga.explain() is for superusers too, with whatever is on their search_path.
CREATE SCHEMA open_to_all;
GRANT ALL ON SCHEMA open_to_all TO regress_saga_mallory;
SET ROLE regress_saga_mallory;
CREATE FUNCTION open_to_all.trap(saga.saga_status, text) RETURNS text LANGUAGE sql AS
    $$ SELECT security.record('explain'); SELECT 'trapped' $$;
CREATE OPERATOR open_to_all.|| (LEFTARG = saga.saga_status, RIGHTARG = text, FUNCTION = open_to_all.trap);
CREATE FUNCTION open_to_all.trap(saga.operation, text) RETURNS text LANGUAGE sql AS
    $$ SELECT security.record('explain'); SELECT 'trapped' $$;
CREATE OPERATOR open_to_all.|| (LEFTARG = saga.operation, RIGHTARG = text, FUNCTION = open_to_all.trap);
CREATE FUNCTION open_to_all.trap(saga.operation_status, text) RETURNS text LANGUAGE sql AS
    $$ SELECT security.record('explain'); SELECT 'trapped' $$;
CREATE OPERATOR open_to_all.|| (LEFTARG = saga.operation_status, RIGHTARG = text, FUNCTION = open_to_all.trap);
RESET ROLE;
SET search_path = open_to_all, public;
SELECT count(*) > 2 AS explained FROM saga.explain(:victim) WHERE detail !~ 'trapped';
SELECT saga.result(:victim);
RESET search_path;
SELECT * FROM security.loot;
SELECT security.jackpot();

------------------------------------------------------------------------------
-- 4. Functions that are no longer what they were when the definition was made.
------------------------------------------------------------------------------
CREATE SCHEMA closed;
GRANT USAGE ON SCHEMA closed TO regress_saga_mallory;
CREATE FUNCTION closed.definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text';
CREATE FUNCTION closed.dropped() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
CREATE FUNCTION closed.becomes_set() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION closed.with_default(x text DEFAULT current_user) RETURNS text LANGUAGE sql AS 'SELECT x';
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.replaced() RETURNS text LANGUAGE sql AS $$ SELECT 'as defined' $$;
CREATE FUNCTION security.hold() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM saga.retry_later('1 day'); END $$;
SELECT saga.define('sec_' || f, saga.step('hold', 'security.hold'), saga.step('call', 'closed.' || f, retry => saga.retry_policy(1)))
FROM unnest('{definer,dropped,becomes_set,with_default}'::text[]) f;
SELECT saga.define('sec_replaced', saga.step('hold', 'security.hold'), saga.step('call', 'security.replaced', retry => saga.retry_policy(1)));
SELECT count(saga.begin('sec_' || f)) FROM unnest('{definer,dropped,becomes_set,with_default,replaced}'::text[]) f;
SELECT saga_test.wait_until('(SELECT count(*) = 5 FROM saga.sagas WHERE definition ~ ''^sec_(definer|dropped|becomes_set|with_default|replaced)$'' AND waiting_for = ''next attempt'')', 'all to hold');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION closed.definer() FROM PUBLIC;
DROP FUNCTION closed.dropped();
DROP FUNCTION closed.becomes_set();
CREATE FUNCTION closed.becomes_set() RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
DROP FUNCTION closed.with_default(text);
CREATE FUNCTION closed.hidden() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
REVOKE EXECUTE ON FUNCTION closed.hidden() FROM PUBLIC;
CREATE FUNCTION closed.with_default(x text DEFAULT closed.hidden()) RETURNS text LANGUAGE sql AS 'SELECT x';
CREATE OR REPLACE FUNCTION security.replaced() RETURNS text LANGUAGE plpgsql AS $$
    BEGIN PERFORM security.record('replaced'); RETURN current_user; END $$;
SET ROLE regress_saga_mallory;
SELECT count(saga.skip(saga_id)) FROM saga.sagas
WHERE definition ~ '^sec_(definer|dropped|becomes_set|with_default|replaced)$' AND waiting_for = 'next attempt';
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.sagas WHERE definition ~ ''^sec_(definer|dropped|becomes_set|with_default|replaced)$'' AND finished_at IS NULL)', 'all calls');
SELECT s.definition, s.status, s.result, s.error ->> 'sqlstate' AS sqlstate, s.error ->> 'message' AS message
FROM saga.sagas s WHERE definition ~ '^sec_(definer|dropped|becomes_set|with_default|replaced)$' ORDER BY 1;
-- A schema that was closed, with a SECURITY DEFINER function of a superuser's.
RESET ROLE;
GRANT EXECUTE ON FUNCTION closed.definer() TO PUBLIC;
REVOKE USAGE ON SCHEMA closed FROM regress_saga_mallory;
SET ROLE regress_saga_mallory;
SELECT saga.begin('sec_definer') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.skip(:id) = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT error ->> 'sqlstate' AS sqlstate, error ->> 'message' AS message FROM saga.sagas WHERE saga_id = :id;
SELECT saga.define('sec_closed', saga.step('call', 'closed.definer'));
RESET ROLE;
SELECT * FROM security.loot;
SELECT security.jackpot();
TRUNCATE security.loot;

------------------------------------------------------------------------------
-- 5. Definitions of others.
------------------------------------------------------------------------------
-- Who is let in begins as itself, and has no say in the definition.
SET ROLE regress_saga_owner;
CREATE FUNCTION security.as_whom() RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
SELECT saga.define('sec_shared', saga.step('as_whom', 'security.as_whom'));
SELECT saga.grant_begin('sec_shared', 'regress_saga_friend');
SET ROLE regress_saga_mallory;
SELECT saga.begin('sec_shared', key => 'k') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
SELECT saga.define('sec_shared', saga.step('as_whom', 'security.undo'));
SELECT saga.configure('sec_shared', enabled => false);
SELECT saga.grant_begin('sec_shared', 'public');
SELECT saga.revoke_begin('sec_shared', 'regress_saga_friend');
SELECT saga.drop_definition('sec_shared');
SELECT count(*) FROM saga.definitions WHERE name IN ('sec_shared', 'sec_victim');
RESET ROLE;
SET ROLE regress_saga_other;
SELECT saga.begin('sec_shared');
SELECT count(*) FROM saga.definitions WHERE name = 'sec_shared';
-- A name that comes free is anybody's; what ran goes on with what it began with.
SET ROLE regress_saga_owner;
SELECT saga.define('sec_moved', saga.step('hold', 'security.hold'), saga.step('as_whom', 'security.as_whom'));
SELECT saga.begin('sec_moved') AS id \gset
SELECT saga_test.waits_for(:id);
SELECT saga.drop_definition('sec_moved', true);
SET ROLE regress_saga_mallory;
SELECT saga.define('sec_moved', saga.step('hold', 'security.undo'), saga.step('as_whom', 'security.undo'));
SELECT saga.grant_begin('sec_moved', 'public');
RESET ROLE;
SET ROLE regress_saga_owner;
SELECT saga.skip(:id) = :id AS skipped;
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
RESET ROLE;
SELECT * FROM security.loot;
-- A superuser does not run by accident what others have defined.
SET ROLE regress_saga_boss;
SELECT saga.begin('sec_moved');
SELECT saga.begin('sec_moved', key => 'k', start_at => now() + interval '1 day');
SELECT saga.begin('sec_shared', trust_definition => NULL);
SELECT saga.define('sec_boss', saga.step('as_whom', 'security.as_whom'));
SELECT saga.begin('sec_boss') AS id \gset
SELECT saga_test.outcome(:id);
SELECT saga.result(:id);
RESET ROLE;
-- ... nor what somebody owns who was one.
ALTER ROLE regress_saga_boss NOSUPERUSER;
SELECT saga.begin('sec_boss');
ALTER ROLE regress_saga_boss SUPERUSER;
-- Neither in a function that a superuser calls, nor in a trigger of another's table.
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.begin_moved() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM saga.begin('sec_moved'); RETURN NEW; END $$;
CREATE TABLE security.trapped (i int);
CREATE TRIGGER t BEFORE INSERT ON security.trapped FOR EACH ROW EXECUTE FUNCTION security.begin_moved();
RESET ROLE;
INSERT INTO security.trapped VALUES (1);
-- The saga is the current user's, in a SECURITY DEFINER function its owner's.
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.begin_as_definer() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS
    $$ SELECT saga.begin('sec_shared') $$;
RESET ROLE;
SELECT security.begin_as_definer() AS id \gset
SELECT saga_test.outcome(:id);
SELECT owner, result FROM saga.sagas WHERE saga_id = :id;

------------------------------------------------------------------------------
-- 6. What others' sagas show.
------------------------------------------------------------------------------
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.peek(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
    $$ BEGIN IF $1::text ~ 'secret' THEN RAISE NOTICE 'seen: %', $1; END IF; RETURN true; END $$;
SELECT count(*) FROM saga.sagas WHERE security.peek(key) AND security.peek(input) AND security.peek(error) AND saga_id = :victim;
SELECT count(*) FROM saga.steps WHERE security.peek(result) AND security.peek(error) AND saga_id = :victim;
SELECT count(*) FROM saga.attempts WHERE security.peek(message) AND saga_id = :victim;
SELECT count(*) FROM saga.requests WHERE security.peek(reason) AND saga_id = :victim;
SELECT count(*) FROM saga.stuck WHERE security.peek(cause) AND saga_id = :victim;
SELECT count(*) FROM saga.definition_steps WHERE security.peek(action) AND definition = 'sec_victim';
SELECT count(*) FROM saga.explain(:victim) WHERE security.peek(detail);
SELECT saga.result(:victim);
SELECT saga.wait_within(:victim, '0');
SELECT saga.cancel(:victim);
SELECT saga.cancel(8999999);
SELECT count(*) FROM pg_stats WHERE schemaname = 'saga';
SELECT count(*) FROM pg_stat_activity WHERE query ~ 'sec_victim' AND pid <> pg_backend_pid();
RESET ROLE;
-- The control: this is what there was to see.
SET ROLE regress_saga_owner;
SELECT key, input FROM saga.sagas WHERE saga_id = :victim;
SELECT step, result, error ->> 'message' AS error FROM saga.steps WHERE saga_id = :victim ORDER BY position;
SELECT step, message FROM saga.attempts WHERE saga_id = :victim;
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT status, owner FROM saga.sagas WHERE saga_id = :victim;
SELECT saga.wait_within(:victim, '0');
SELECT saga.cancel(:victim);
SELECT saga.begin('sec_shared');
RESET ROLE;
SET ROLE regress_saga_stranger;
SELECT * FROM saga.sagas;
SELECT saga.begin('sec_moved');
SELECT saga.retry_policy();
RESET ROLE;
-- Members see and steer: that is what membership is for.
GRANT regress_saga_owner TO regress_saga_other;
SET ROLE regress_saga_other;
SELECT owner FROM saga.sagas WHERE saga_id = :victim;
RESET ROLE;
REVOKE regress_saga_owner FROM regress_saga_other;
-- In a restored dump the OIDs are those of other roles.
BEGIN;
UPDATE saga.coordinator SET id = gen_random_uuid();
UPDATE saga.saga SET role = 'regress_saga_mallory'::regrole WHERE id = :victim;
UPDATE saga.definition SET owner = 'regress_saga_mallory'::regrole WHERE name = 'sec_victim';
INSERT INTO saga.definition_grant SELECT id, 'regress_saga_mallory'::regrole, 'regress_saga_gone', 'x' FROM saga.definition WHERE name = 'sec_victim';
SET LOCAL ROLE regress_saga_mallory;
SELECT count(*) FROM saga.sagas WHERE saga_id = :victim;
SELECT count(*) FROM saga.steps WHERE saga_id = :victim;
SELECT count(*) FROM saga.attempts WHERE saga_id = :victim;
SELECT count(*) FROM saga.definitions WHERE name = 'sec_victim';
SELECT count(*) FROM saga.definition_steps WHERE definition = 'sec_victim';
ROLLBACK;

------------------------------------------------------------------------------
-- 7. What one step leaves in the session is gone before the next one.
------------------------------------------------------------------------------
SET ROLE regress_saga_mallory;
CREATE FUNCTION security.leave(n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found text := concat_ws(', ',
        security.who(),
        'search_path ' || current_setting('search_path'),
        'work_mem ' || current_setting('work_mem'),
        'own setting ' || coalesce(nullif(current_setting('security.x', true), ''), 'none'),
        'prepared ' || (SELECT count(*) FROM pg_prepared_statements),
        'cursors ' || (SELECT count(*) FROM pg_cursors),
        'temporary ' || (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'),
        'advisory locks ' || (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()));
BEGIN
    PERFORM set_config('security.x', 'left', false), set_config('work_mem', '1MB', false);
    EXECUTE 'PREPARE left_statement AS SELECT 1';
    EXECUTE 'DECLARE left_cursor CURSOR WITH HOLD FOR SELECT 1';
    EXECUTE 'CREATE TEMPORARY TABLE left_table (i int)';
    PERFORM pg_advisory_lock(9000000, n);
    EXECUTE 'SET ROLE regress_saga_friend';
    EXECUTE 'SET search_path = security';
    RETURN found;
END
$$;
SELECT saga.define('sec_leave', saga.step('one', 'security.leave'), saga.step('two', 'security.leave'));
SELECT count(saga.begin('sec_leave', jsonb_build_object('n', n))) FROM generate_series(1, 5) n;
SELECT saga_test.wait_until('NOT EXISTS (SELECT FROM saga.sagas WHERE definition = ''sec_leave'' AND finished_at IS NULL)', 'all to leave');
SELECT t.status, t.result, t.error ->> 'message' AS error, count(*)
FROM saga.steps t JOIN saga.sagas s USING (saga_id) WHERE s.definition = 'sec_leave' GROUP BY 1, 2, 3;
RESET ROLE;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 9000000;

------------------------------------------------------------------------------
-- 8. What is granted, and what the engine relies on.
------------------------------------------------------------------------------
SELECT 'schema' AS kind, nspname::text AS name, privilege_type
FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) WHERE nspname = 'saga' AND grantee = 0
UNION ALL
SELECT 'relation', oid::regclass::text, privilege_type
FROM pg_class, aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))
WHERE relnamespace = 'saga'::regnamespace AND grantee = 0
UNION ALL
SELECT 'routine', oid::regprocedure::text, privilege_type
FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) WHERE pronamespace = 'saga'::regnamespace AND grantee = 0
UNION ALL
SELECT 'type', oid::regtype::text, privilege_type
FROM pg_type, aclexplode(coalesce(typacl, acldefault('T', typowner)))
WHERE typnamespace = 'saga'::regnamespace AND grantee = 0 AND typrelid = 0 AND typelem = 0;
-- What users were given is no more than these, and none of it can be passed on.
SELECT relname, string_agg(privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ',') FROM pg_class, aclexplode(relacl)
WHERE relnamespace = 'saga'::regnamespace AND grantee = 'regress_saga_mallory'::regrole GROUP BY 1 ORDER BY 1;
SELECT proname, count(*) FROM pg_proc, aclexplode(proacl)
WHERE pronamespace = 'saga'::regnamespace AND grantee = 'regress_saga_mallory'::regrole AND NOT is_grantable GROUP BY 1 ORDER BY 1;
-- Triggers, rules, policies, deferrable constraints, index expressions but
-- PostgreSQL's own: there are none.  SECURITY DEFINER is what shows monitors
-- numbers of PostgreSQL and of all roles.  SQL of ours has its search_path pinned,
-- but for these, in which every name is qualified, or which are called by others.
-- A view has a barrier, or shows what saga.sagas_raw or a function lets through.
SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'saga'::regnamespace AND prosecdef ORDER BY oid::regprocedure::text COLLATE "C";
SELECT tgname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = 'saga'::regnamespace;
SELECT rulename FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class WHERE relnamespace = 'saga'::regnamespace AND rulename <> '_RETURN';
SELECT relname FROM pg_class WHERE relnamespace = 'saga'::regnamespace AND (relrowsecurity OR relhastriggers);
SELECT conname FROM pg_constraint WHERE connamespace = 'saga'::regnamespace AND condeferrable;
SELECT indexrelid::regclass, pg_get_expr(indexprs, indrelid) AS expression FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace = 'saga'::regnamespace AND indexprs IS NOT NULL;
SELECT relname FROM pg_class WHERE relnamespace = 'saga'::regnamespace AND relkind = 'v' AND NOT 'security_barrier=true' = ANY (coalesce(reloptions, '{}')) ORDER BY relname;
SELECT DISTINCT relowner = extowner AS owned_by_extension FROM pg_class, pg_extension WHERE relnamespace = 'saga'::regnamespace AND extname = 'saga';
SELECT proname FROM pg_proc JOIN pg_language l ON l.oid = prolang
WHERE pronamespace = 'saga'::regnamespace AND lanname IN ('sql', 'plpgsql') AND NOT coalesce(proconfig::text ~ 'search_path=pg_catalog, pg_temp', false) ORDER BY 1;

-- Nothing was won.
SELECT security.jackpot();
SELECT status, participant FROM saga.tasks WHERE saga_id = :outside;
SELECT saga.cancel(:outside) = :outside AS cancelled;
SELECT saga_test.outcome(:outside);
SELECT saga.abandon(:victim) = :victim AS abandoned;
SELECT saga_test.outcome(:victim);
SET client_min_messages = warning;
SELECT count(saga.drop_definition(name)) FROM saga.definitions WHERE name LIKE 'sec\_%';
SELECT count(saga.drop_queue(queue)) FROM saga.queues WHERE queue LIKE 'sec\_%';
DROP SCHEMA security, shadow, closed, open_to_all CASCADE;
DROP OWNED BY regress_saga_mallory, regress_saga_shadow, regress_saga_friend, regress_saga_boss;
DROP ROLE regress_saga_mallory, regress_saga_shadow, regress_saga_friend, regress_saga_boss;
