--
-- Foreign servers: which of them saga connects to, as whom and with which
-- options; settings and who may change them; and what is seen of the calls of a
-- role.  Where something is connected to it is this server.
--
SELECT setval('saga.saga_id_seq', 45200000, false) AS ids_begin_at;
CREATE SCHEMA servers_test;
SET client_min_messages = warning;
CREATE EXTENSION dblink SCHEMA servers_test;
CREATE EXTENSION postgres_fdw SCHEMA servers_test;
DROP ROLE IF EXISTS regress_servers_host, regress_servers_team, regress_servers_member;
CREATE ROLE regress_servers_host LOGIN;
CREATE ROLE regress_servers_team LOGIN;
CREATE ROLE regress_servers_member LOGIN IN ROLE regress_servers_team;
RESET client_min_messages;
SELECT saga.grant_usage('regress_servers_host');
SELECT saga.grant_usage('regress_servers_team');
SELECT saga.grant_usage('regress_saga_stranger');
GRANT USAGE ON FOREIGN DATA WRAPPER dblink_fdw, postgres_fdw TO regress_servers_host;
-- This server, by its socket, and a port where nobody is.
SELECT format('OPTIONS (host %L, port %L, dbname %L)', split_part(current_setting('unix_socket_directories'), ',', 1),
    current_setting('port'), current_database()) AS here \gset
SELECT $$OPTIONS (host '127.0.0.1', port '1', dbname 'none')$$ AS nowhere \gset
CREATE SERVER servers_here FOREIGN DATA WRAPPER dblink_fdw :here;
CREATE SERVER servers_nowhere FOREIGN DATA WRAPPER postgres_fdw :nowhere;
CREATE FOREIGN DATA WRAPPER servers_wrapper;
CREATE SERVER servers_files FOREIGN DATA WRAPPER servers_wrapper;
GRANT USAGE ON FOREIGN SERVER servers_here, servers_nowhere, servers_files TO regress_servers_team;
-- What saga.check_server() says, but for what differs between runs.
CREATE FUNCTION saga_test.check_server(name text) RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws(' ', c.server, 'as', c.role, CASE WHEN c.reachable THEN 'reached' ELSE 'not reached' END,
        'once: ' || c.once, 'recovery: ' || c.in_recovery,
        CASE WHEN c.saga_version = (SELECT extversion FROM pg_extension WHERE extname = 'saga') THEN 'this saga' END,
        CASE WHEN c.server_version = current_setting('server_version_num')::int / 10000 || '.' ||
                                     current_setting('server_version_num')::int % 10000 THEN 'this version' END,
        CASE WHEN c.round_trip > '0' AND c.round_trip < '10 s' THEN 'in time' END,
        substring(c.error FROM '^.*?(?= failed: |$)'))
    FROM saga.check_server(name) c
$$;

------------------------------------------------------------------------------
-- 1. Who goes where
------------------------------------------------------------------------------
-- Superusers need neither mapping nor password.
SELECT replace(saga_test.check_server('servers_here'), current_user, '<superuser>');
SELECT replace(saga_test.check_server('servers_nowhere'), current_user, '<superuser>');
SELECT saga.check_server('servers_none');
SELECT saga.check_server('servers_files');
SELECT saga.check_server(NULL);
SELECT saga.check_server('');
SELECT saga.check_server(repeat('x', 100));
-- Others need USAGE, ...
SET ROLE regress_saga_stranger;
SELECT saga.check_server('servers_here');
SELECT saga.check_server('servers_none');
RESET ROLE;
-- ... a mapping, ...
SET ROLE regress_servers_member;
SELECT saga.check_server('servers_here');
SELECT saga.check_server('servers_nowhere');
RESET ROLE;
-- ... and in it a password, ...
CREATE USER MAPPING FOR regress_servers_member SERVER servers_here OPTIONS (user 'regress_servers_member');
CREATE USER MAPPING FOR PUBLIC SERVER servers_nowhere OPTIONS (user 'nobody', password '');
SET ROLE regress_servers_member;
SELECT saga.check_server('servers_here');
SELECT saga.check_server('servers_nowhere');
RESET ROLE;
-- ... which was asked for.  This server asks for none on its socket.
ALTER USER MAPPING FOR regress_servers_member SERVER servers_here OPTIONS (ADD password 'servers secret');
ALTER USER MAPPING FOR PUBLIC SERVER servers_nowhere OPTIONS (SET password 'servers secret');
SET ROLE regress_servers_member;
SELECT saga_test.check_server('servers_here');
SELECT saga_test.check_server('servers_nowhere');
RESET ROLE;
-- The mapping of a role is not that of another, nor of its members.
DROP USER MAPPING FOR PUBLIC SERVER servers_nowhere;
CREATE USER MAPPING FOR regress_servers_team SERVER servers_nowhere OPTIONS (user 'nobody', password 'servers secret');
SET ROLE regress_servers_member;
SELECT saga_test.check_server('servers_nowhere');
RESET ROLE;
-- A superuser may say that a mapping needs none, with postgres_fdw.
CREATE SERVER servers_fdw FOREIGN DATA WRAPPER postgres_fdw :here;
GRANT USAGE ON FOREIGN SERVER servers_fdw TO regress_servers_team;
CREATE USER MAPPING FOR regress_servers_member SERVER servers_fdw OPTIONS (user 'regress_servers_member', password_required 'false');
SET ROLE regress_servers_member;
SELECT saga_test.check_server('servers_fdw');
RESET ROLE;
ALTER USER MAPPING FOR regress_servers_member SERVER servers_fdw OPTIONS (SET password_required 'true');
SET ROLE regress_servers_member;
SELECT saga.check_server('servers_fdw');
RESET ROLE;
ALTER USER MAPPING FOR regress_servers_member SERVER servers_fdw OPTIONS (SET password_required 'false');
-- Calls are made once for those who have saga.participate() there.
SELECT saga.grant_remote('regress_servers_member');
SET ROLE regress_servers_member;
SELECT saga_test.check_server('servers_fdw');
RESET ROLE;

------------------------------------------------------------------------------
-- 2. Options
------------------------------------------------------------------------------
-- Of wrappers, and of libpq: those that only say how.
ALTER SERVER servers_fdw OPTIONS (ADD fetch_size '7', ADD extensions 'saga', ADD application_name 'servers', ADD connect_timeout '5',
    ADD options '-c work_mem=123456', ADD gssencmode 'prefer', ADD target_session_attrs 'any', ADD keepalives '1');
SELECT saga_test.check_server('servers_fdw') ~ ' reached ' AS reached;
-- Others are refused, not left out.
ALTER SERVER servers_fdw OPTIONS (SET gssencmode 'require');
SELECT saga.check_server('servers_fdw');
ALTER SERVER servers_fdw OPTIONS (DROP gssencmode, ADD service 'elsewhere');
SELECT saga.check_server('servers_fdw');
ALTER SERVER servers_fdw OPTIONS (DROP service, ADD krbsrvname 'x');
SELECT saga.check_server('servers_fdw');
ALTER SERVER servers_fdw OPTIONS (DROP krbsrvname);
-- Files of this server are for superusers, and for whom they let use them.
CREATE SERVER servers_own TYPE 'x' FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '1', sslcert '/etc/passwd', sslkey '/etc/shadow');
CREATE USER MAPPING FOR regress_servers_host SERVER servers_own OPTIONS (user 'nobody', password 'servers secret');
ALTER SERVER servers_own OWNER TO regress_servers_host;
SET ROLE regress_servers_host;
SELECT saga_test.check_server('servers_own');
ALTER SERVER servers_own OPTIONS (DROP sslcert, DROP sslkey, ADD passfile '/etc/shadow');
SELECT saga_test.check_server('servers_own');
RESET ROLE;
SELECT saga_test.check_server('servers_own') ~ 'not reached 08001' AS goes_on;
ALTER SERVER servers_own OWNER TO CURRENT_USER;
GRANT USAGE ON FOREIGN SERVER servers_own TO regress_servers_host;
SET ROLE regress_servers_host;
SELECT saga_test.check_server('servers_own');
RESET ROLE;
ALTER SERVER servers_own OPTIONS (DROP passfile);
ALTER SERVER servers_own OWNER TO regress_servers_host;
-- Nothing hides in a value.
CREATE SERVER servers_sly FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1', dbname 'host=/tmp dbname=postgres');
SELECT replace(saga_test.check_server('servers_sly'), current_user, '<superuser>');
ALTER SERVER servers_sly OPTIONS (SET port '1 host=/tmp');
SELECT replace(saga_test.check_server('servers_sly'), current_user, '<superuser>');
ALTER SERVER servers_sly OPTIONS (SET port '1', SET host '127.0.0.1'' host=''/tmp', SET dbname 'postgresql:///postgres');
SELECT saga_test.check_server('servers_sly') ~ 'not reached 08001' AS not_reached;
ALTER SERVER servers_sly OPTIONS (SET host '127.0.0.1,127.0.0.1', SET port '1,2,3');
SELECT replace(saga_test.check_server('servers_sly'), current_user, '<superuser>');
-- Each of several hosts is tried.
SELECT '127.0.0.1,' || split_part(current_setting('unix_socket_directories'), ',', 1) AS hosts, '1,' || current_setting('port') AS ports,
    current_database() AS database \gset
ALTER SERVER servers_sly OPTIONS (SET host :'hosts', SET port :'ports', SET dbname :'database');
SELECT replace(saga_test.check_server('servers_sly'), current_user, '<superuser>');

------------------------------------------------------------------------------
-- 3. Settings: for the owner of the server, and for operators
------------------------------------------------------------------------------
SET ROLE regress_servers_host;
SELECT saga.configure_server('servers_own', breaker_failures => 3, breaker_max_pause => '5 s');
SELECT saga.configure_server('servers_own', breaker_pause => '10 ms');
SELECT saga.configure_server('servers_here', paused => true);
SELECT saga.configure_server('servers_none', paused => true);
SELECT saga.configure_server(NULL, paused => true);
SELECT saga.configure_server('servers_own', breaker_failures => -1);
SELECT saga.configure_server('servers_own', breaker_pause => '0');
SELECT saga.configure_server('servers_own', breaker_pause => '-1 s');
SELECT saga.configure_server('servers_own', breaker_max_pause => '1 us');
SELECT saga.configure_server('servers_own', breaker_pause => '1 month');
SELECT saga.configure_server('servers_own', breaker_pause => '1 hour');
SELECT saga.configure_server('servers_own', breaker_max_pause => '1 ms');
SELECT saga.configure_server('servers_own', breaker_pause => '1 hour', breaker_max_pause => '1 day');
SELECT saga.reset_breaker(server => 'servers_own');
SELECT saga.reset_breaker(server => 'servers_here');
SELECT saga.reset_breaker(server => 'servers_none');
SELECT saga.reset_breaker('none', 'servers_own');
SELECT saga.reset_breaker();
BEGIN READ ONLY;
SELECT saga.configure_server('servers_own', paused => true);
ROLLBACK;
BEGIN READ ONLY;
SELECT saga.reset_breaker(server => 'servers_own');
ROLLBACK;
RESET ROLE;
SELECT name, paused, breaker_failures, breaker_pause, breaker_max_pause FROM saga.server WHERE name LIKE 'servers%';
SET ROLE regress_servers_member;
SELECT saga.configure_server('servers_own', paused => true);
SELECT saga.reset_breaker(server => 'servers_own');
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT saga.configure_server('servers_own', paused => true);
SELECT saga.check_server('servers_own');
RESET ROLE;
SET ROLE regress_saga_operator;
SELECT saga.configure_server('servers_own', paused => true);
SELECT saga.configure_server('servers_nowhere', paused => true);
SELECT saga.reset_breaker(server => 'servers_own');
RESET ROLE;
SELECT name, paused, breaker_failures, breaker_pause, breaker_max_pause FROM saga.server WHERE name LIKE 'servers%' ORDER BY name;

------------------------------------------------------------------------------
-- 4. The view: the calls of one's own roles
------------------------------------------------------------------------------
SET client_min_messages = error;
SET ROLE regress_servers_team;
SELECT saga.define('servers_go', saga.remote_step('go', 'servers_nowhere', 'there.go'));
SELECT saga.begin('servers_go', '{}') AS first, saga.begin('servers_go', '{}') AS second \gset
RESET ROLE;
RESET client_min_messages;
SELECT saga_test.wait_until($$(SELECT ready = 2 FROM saga.servers WHERE server = 'servers_nowhere')$$, 'two calls');
SET ROLE regress_servers_member;
SELECT server, role, state, connections, in_flight, ready, oldest_ready <= now() AS waits, calls, failed, lost,
    latency_p50, latency_p99, breaker, breaker_until, once, saga_version, last_call, breaker_failures, breaker_pause, breaker_max_pause
FROM saga.servers WHERE server LIKE 'servers%';
RESET ROLE;
SELECT id AS queue FROM saga.server_role WHERE server = 'servers_nowhere' \gset
SET ROLE regress_saga_stranger;
SELECT count(*) FROM saga.servers;
SELECT ready IS NOT NULL AS known FROM saga.servers_raw(:queue);
SELECT ready IS NOT NULL AS known FROM saga.servers_raw(1);
CREATE FUNCTION pg_temp.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$;
SELECT count(*) FROM saga.servers WHERE pg_temp.tell(server);
SELECT count(*) FROM saga.server;
SELECT count(*) FROM saga.server_role;
RESET ROLE;
SET ROLE regress_saga_monitor;
SELECT role, state, ready FROM saga.servers WHERE server = 'servers_nowhere';
RESET ROLE;
-- A role of another name is not the role that was meant.
ALTER ROLE regress_servers_team RENAME TO regress_servers_renamed;
SET ROLE regress_servers_member;
SELECT count(*) FROM saga.servers;
SELECT ready IS NOT NULL AS known FROM saga.servers_raw(:queue);
RESET ROLE;
ALTER ROLE regress_servers_renamed RENAME TO regress_servers_team;
-- While it is paused nothing is called.
SET ROLE regress_servers_team;
SELECT waiting_for ~ 'paused' AS paused FROM saga.steps WHERE saga_id = :first;
SELECT saga.cancel(:first), saga.cancel(:second);
RESET ROLE;
SELECT saga_test.outcome(:first), saga_test.outcome(:second);
SELECT ready FROM saga.servers WHERE server = 'servers_nowhere';
-- No password is in anything that is shown.
SELECT count(*) FROM saga.servers v WHERE v::text ~ 'servers secret';

------------------------------------------------------------------------------
-- 5. Gone again
------------------------------------------------------------------------------
SET ROLE regress_servers_team;
SELECT saga.drop_definition('servers_go');
RESET ROLE;
DELETE FROM saga.server WHERE name LIKE 'servers%';
SET client_min_messages = warning;
DROP FOREIGN DATA WRAPPER servers_wrapper CASCADE;
DROP SCHEMA servers_test CASCADE;
DROP FUNCTION saga_test.check_server;
DROP OWNED BY regress_servers_host, regress_servers_team, regress_servers_member;
DROP OWNED BY regress_saga_stranger;
GRANT USAGE ON SCHEMA saga_test TO PUBLIC;
DROP ROLE regress_servers_host, regress_servers_team, regress_servers_member;
