--
-- The settings: each with its unit, range and context; what they refuse; and
-- that nobody else can use their prefix.
--
SELECT name, boot_val, unit, min_val, max_val, enumvals, context FROM pg_settings WHERE name LIKE 'saga.%' ORDER BY name;
SELECT name, short_desc, extra_desc FROM pg_settings WHERE name LIKE 'saga.%' ORDER BY name;
-- Settings of the server are not those of a session.
SET saga.enabled = off;
SET saga.max_workers = 1;
SET saga.workers_per_role = 1;
SET saga.batch_size = 1;
SET saga.batch_time = 1;
SET saga.step_timeout = 1;
SET saga.worker_idle_timeout = 1;
SET saga.answer_retention = 60;
SET saga.retention_interval = 0;
SET saga.remote_connections_per_server = 1;
SET saga.remote_connect_timeout = 100;
SET saga.remote_idle_timeout = 0;
SET saga.statistics_memory = '1 MB';
ALTER ROLE regress_saga_owner SET saga.batch_size = 1;
-- Values that make no sense.
ALTER SYSTEM SET saga.enabled = 'perhaps';
ALTER SYSTEM SET saga.max_workers = 0;
ALTER SYSTEM SET saga.max_workers = 65;
ALTER SYSTEM SET saga.max_workers = 'many';
ALTER SYSTEM SET saga.workers_per_role = 0;
ALTER SYSTEM SET saga.batch_size = 0;
ALTER SYSTEM SET saga.batch_size = 61;
ALTER SYSTEM SET saga.batch_time = 0;
ALTER SYSTEM SET saga.batch_time = '2 min';
ALTER SYSTEM SET saga.step_timeout = 0;
ALTER SYSTEM SET saga.step_timeout = '2 days';
ALTER SYSTEM SET saga.worker_idle_timeout = '-1 s';
ALTER SYSTEM SET saga.worker_idle_timeout = '1 kB';
ALTER SYSTEM SET saga.answer_retention = '59 s';
ALTER SYSTEM SET saga.answer_retention = '31 d';
ALTER SYSTEM SET saga.retention_interval = '-1 s';
ALTER SYSTEM SET saga.retention_interval = '25 h';
ALTER SYSTEM SET saga.remote_connections_per_server = 0;
ALTER SYSTEM SET saga.remote_connections_per_server = 101;
ALTER SYSTEM SET saga.remote_connect_timeout = '99 ms';
ALTER SYSTEM SET saga.remote_connect_timeout = '11 min';
ALTER SYSTEM SET saga.remote_idle_timeout = '-1 s';
ALTER SYSTEM SET saga.remote_idle_timeout = '25 h';
ALTER SYSTEM SET saga.statistics_memory = '64 kB';
ALTER SYSTEM SET saga.statistics_memory = '2 GB';
SET saga.local_commit = 'sometimes';
-- What a role chooses for itself.
SET saga.local_commit = async;
SHOW saga.local_commit;
RESET saga.local_commit;
ALTER ROLE regress_saga_other SET saga.local_commit = 'async';
ALTER ROLE regress_saga_other RESET saga.local_commit;
-- The prefix is taken.
SET saga.no_such_setting = 1;
SELECT set_config('saga.enabeld', 'off', false);
SELECT current_setting('saga.no_such_setting');

-- They take effect on reload: a timeout of all steps that have none of their own,
-- and workers that leave.
CREATE SCHEMA guc_test AUTHORIZATION regress_saga_owner;
SET ROLE regress_saga_owner;
CREATE FUNCTION guc_test.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)';
SELECT saga.define('guc_sleep', saga.step('sleep', 'guc_test.sleep', retry => saga.retry_policy(1)));
RESET ROLE;
ALTER SYSTEM SET saga.step_timeout = '150 ms';
ALTER SYSTEM SET saga.worker_idle_timeout = 0;
SELECT pg_reload_conf();
SELECT setval('saga.saga_id_seq', 6000000, false) AS ids_begin_at;
SET ROLE regress_saga_owner;
SELECT saga_test.wait_until($$ NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'saga worker' AND datname = current_database()) $$, 'idle workers to leave');
SELECT saga.begin('guc_sleep') AS id \gset
SELECT saga_test.outcome(:id);
SELECT * FROM saga_test.failures(:id);
SELECT saga_test.wait_until($$ NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'saga worker' AND datname = current_database()) $$, 'the worker to leave');
RESET ROLE;
ALTER SYSTEM RESET saga.step_timeout;
ALTER SYSTEM RESET saga.worker_idle_timeout;
SELECT pg_reload_conf();
SET client_min_messages = warning;
SELECT saga.drop_definition('guc_sleep');
DROP SCHEMA guc_test CASCADE;
