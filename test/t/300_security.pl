# A role gets no more rights than it has, nor a hold on others' sagas (P7, P8),
# where that takes sessions of its own:
#
#	the schema of the extension, made beforehand by an ordinary role
#	CALL saga.run() and saga.recover() in a session that is somebody else's
#	names of the engine's statements, shadowed in the session that runs them
#	an error of ours that a step swallows, and then a commit that fails
#	a type that changes between two sagas of a batch
#	settings of the database that make another role of every session
#	a role that ceases to be a superuser while it has a worker
#	what a role may lock, while others' sagas go on
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);
my ($rc, $out, $err);

sub as
{
	my ($role, $sql, %opt) = @_;

	return $node->safe_psql($opt{dbname} || 'postgres', $sql,
		extra_params => [ '-U', $role ]);
}

# The error that a command of a role ends with.
sub error_as
{
	my ($role, $sql, %opt) = @_;

	($rc, $out, $err) = $node->psql($opt{dbname} || 'postgres', $sql,
		extra_params => [ '-U', $role ]);
	return $err;
}

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE boss SUPERUSER LOGIN;
CREATE ROLE victim LOGIN;
CREATE ROLE friend;
CREATE ROLE mallory LOGIN;
GRANT friend TO mallory;
CREATE DATABASE taken;
GRANT CREATE ON DATABASE taken TO mallory;
EOS

# The schema.
as('mallory', 'CREATE SCHEMA saga', dbname => 'taken');
like(error_as('postgres', 'CREATE EXTENSION saga', dbname => 'taken'),
	qr/schema "saga" belongs to role "mallory", which is not a superuser/,
	'no extension in a schema of an ordinary role');
as('postgres', 'DROP SCHEMA saga; CREATE EXTENSION saga', dbname => 'taken');
$node->safe_psql('postgres', 'DROP DATABASE taken');

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
SELECT saga.grant_usage('victim'), saga.grant_usage('mallory');
GRANT TEMPORARY ON DATABASE postgres TO mallory;
CREATE SCHEMA m AUTHORIZATION mallory;
CREATE SCHEMA v AUTHORIZATION victim;
CREATE SEQUENCE m.jackpot;
GRANT ALL ON SEQUENCE m.jackpot TO PUBLIC;
GRANT USAGE ON SCHEMA m, v TO PUBLIC;
SET ROLE mallory;
CREATE TABLE m.loot (attack text, ran_as text);
GRANT ALL ON m.loot TO PUBLIC;
CREATE FUNCTION m.who() RETURNS text LANGUAGE sql SET search_path = pg_catalog, pg_temp AS
    $$ SELECT format('%s/%s/%s', current_user, session_user, current_setting('is_superuser')) $$;
CREATE FUNCTION m.record(attack text, result anyelement) RETURNS anyelement LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF m.who() NOT IN ('mallory/mallory/off', 'friend/mallory/off') THEN
        PERFORM nextval('m.jackpot');
    END IF;
    INSERT INTO m.loot VALUES (attack, m.who());
    RETURN result;
END
$$;
CREATE FUNCTION m.identity(n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text := m.who();
BEGIN
    EXECUTE (ARRAY['RESET ROLE', 'SET ROLE NONE', 'SET SESSION AUTHORIZATION DEFAULT',
                   'RESET ALL', 'SET ROLE friend'])[n];
    PERFORM m.record('identity', 1);
    EXECUTE 'DECLARE held CURSOR WITH HOLD FOR SELECT m.record(''held cursor'', 1)';
    RETURN before || ' then ' || m.who();
END
$$;
SELECT saga.define('identity', saga.step('one', 'm.identity'), saga.step('two', 'm.who'));
RESET ROLE;
SET ROLE victim;
CREATE FUNCTION v.nothing() RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT saga.define('nothing', saga.step('nothing', 'v.nothing'));
EOS

sub jackpot
{
	return $node->safe_psql('postgres',
		'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM m.jackpot');
}

# Sagas in the foreground.
$node->append_conf('postgresql.conf', 'saga.enabled = off');
$node->reload;
as('mallory', q{SELECT saga.begin('identity', jsonb_build_object('n', n)) FROM generate_series(1, 5) n});
foreach my $call ('CALL saga.run(1)', 'CALL saga.recover()')
{
	foreach my $set ('SET ROLE mallory', 'SET SESSION AUTHORIZATION mallory')
	{
		like(error_as('postgres', "$set; $call"),
			qr/must be called by the role that is logged in/,
			"$call after $set of a superuser");
	}
	like(error_as('mallory', "SET ROLE friend; $call"),
		qr/permission denied|must be called by the role that is logged in/,
		"$call after SET ROLE friend");
	like(error_as('mallory', "BEGIN; $call"),
		qr/cannot be called inside a transaction block or a function/,
		"$call in a transaction block");
}
as('postgres', <<'EOS');
CREATE PROCEDURE v.run_it() LANGUAGE plpgsql AS $$
DECLARE
    operations bigint;
    finished bigint;
    remaining boolean;
    leases bigint;
    woken bigint;
    unserved text[];
BEGIN
    CALL saga.recover(10, '1 min', operations, finished, remaining, leases, woken, unserved);
END
$$;
CREATE PROCEDURE v.run_it_as_definer() LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    operations bigint;
    finished bigint;
    remaining boolean;
    leases bigint;
    woken bigint;
    unserved text[];
BEGIN
    CALL saga.recover(10, '1 min', operations, finished, remaining, leases, woken, unserved);
END
$$;
EOS
like(error_as('mallory', 'CALL v.run_it_as_definer()'),
	qr/cannot be called inside a transaction block or a function/,
	'no sagas in a SECURITY DEFINER procedure');
is(as('postgres', q{SELECT count(*) FROM saga.steps WHERE status <> 'pending'}),
	'0', 'no step has run so far');
as('mallory', 'CALL saga.run(1)');
as('mallory', 'CALL v.run_it()');
is( as('mallory', q{SELECT step, result #>> '{}' FROM saga.steps ORDER BY saga_id, position}),
	join("\n",
		(map { ("one|mallory/mallory/off then $_/mallory/off", 'two|mallory/mallory/off') }
			qw(mallory mallory mallory mallory friend))),
	'every step in the foreground was its role, and so was the next');
is(as('mallory', 'SELECT DISTINCT ran_as FROM m.loot ORDER BY 1'),
	"friend/mallory/off\nmallory/mallory/off", 'and all that they left behind');
is(jackpot(), '0', 'nothing was won in the foreground');

# The engine's statements in a session whose names are mallory's, temporary and
# on its search_path.
as('mallory', <<'EOS');
CREATE FUNCTION m.noted(attack text) RETURNS boolean LANGUAGE sql AS 'SELECT m.record(attack, true)';
CREATE FUNCTION m.arm(place text) RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text;
    p record;
    n int := 0;
BEGIN
    FOREACH t IN ARRAY '{jsonb,uuid,text,oid,int2,int4,int8,bool,timestamptz,interval,name,regclass,xid}'::text[] LOOP
        EXECUTE format('CREATE DOMAIN %I.%I AS pg_catalog.%I CHECK (m.noted(%L))', place, t, t, t);
    END LOOP;
    FOREACH t IN ARRAY '{saga,step,attempt,history,message,key,lock,alert,coordinator,definition,definition_version,pg_roles,pg_database,pg_class}'::text[] LOOP
        EXECUTE format('CREATE VIEW %I.%I AS SELECT m.record(%L, 1) AS id', place, t, t);
    END LOOP;
    FOREACH t IN ARRAY '{now(),current_database(),gen_random_uuid(),clock_timestamp()}'::text[] LOOP
        EXECUTE format('CREATE FUNCTION %I.%s RETURNS text LANGUAGE sql AS %L', place, t, format('SELECT m.record(%L, NULL::text)', t));
    END LOOP;
    EXECUTE format('CREATE FUNCTION %I.nextval(regclass) RETURNS bigint LANGUAGE sql AS %L', place, 'SELECT m.record(''nextval'', 1::bigint)');
    EXECUTE format('CREATE FUNCTION %I.pg_notify(text, text) RETURNS void LANGUAGE sql AS %L', place, 'SELECT m.record(''pg_notify'', 1)');
    IF place = 'pg_temp' THEN RETURN 0; END IF;
    FOR p IN SELECT oprname, oprleft::regtype AS l, oprright::regtype AS r, oprresult::regtype AS result, row_number() OVER () AS i
             FROM pg_operator WHERE oprname IN ('=', '<>', '<', '<=', '>', '>=')
             AND oprleft::regtype::text IN ('jsonb', 'uuid', 'text', 'oid', 'smallint', 'integer', 'bigint', 'boolean',
                                            'timestamp with time zone', 'interval', 'name', 'anyenum', 'xid')
             AND oprright <> 0 LOOP
        EXECUTE format('CREATE FUNCTION %I.op%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', place, p.i, p.l, p.r, p.result,
                       format('BEGIN PERFORM m.record(%L, 1); RETURN NULL; END', p.oprname));
        EXECUTE format('CREATE OPERATOR %I.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = %I.op%s)', place, p.oprname, p.l, p.r, place, p.i);
        n := n + 1;
    END LOOP;
    RETURN n;
END
$$;
CREATE FUNCTION m.fails() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'failed'; END $$;
SELECT saga.define('armed', saga.step('who', 'm.who', 'm.fails', compensation_retry => saga.retry_policy(1)),
                            saga.step('fails', 'm.fails', retry => saga.retry_policy(1)));
SELECT saga.define('limited', saga.step('who', 'm.who'));
SELECT saga.configure('armed', max_running => 2), saga.configure('limited', max_running => 1);
SELECT saga.begin('armed'), saga.begin('limited'), saga.begin('limited'), saga.begin('limited', key => 'k');
EOS
as('postgres', 'CREATE SCHEMA shadow AUTHORIZATION mallory');
cmp_ok(as('mallory', q{SELECT m.arm('shadow')}), '>', 30, 'armed');
as('mallory', <<'EOS');
SELECT m.arm('pg_temp');
SET search_path = shadow, pg_temp, pg_catalog, m;
CALL saga.recover(100, '1 min'::pg_catalog.interval);
SELECT saga.begin('limited', key => 'l') AS id \gset
CALL saga.run(:id);
CALL saga.wait(:id);
SELECT saga.retry(saga_id) FROM saga.stuck;
CALL saga.recover(100, '1 min'::pg_catalog.interval);
CALL saga.recover(100, '1 min'::pg_catalog.interval);
EOS
is( as('mallory', q{SELECT definition, status, count(*) FROM saga.sagas WHERE definition <> 'identity' GROUP BY 1, 2 ORDER BY 1, 2}),
	"armed|stuck|1\nlimited|completed|4",
	'the engine does its work in a session whose names are shadowed');
is(as('mallory', q{SELECT count(*) FROM m.loot WHERE ran_as NOT LIKE '%/mallory/off'}),
	'0', 'the shadows have seen nobody else');
is(jackpot(), '0', 'nothing was won by shadows');

# A step swallows an error that was raised within the engine's own statements;
# then its transaction cannot commit.
as('mallory', <<'EOS');
CREATE TABLE m.skew (i int PRIMARY KEY, v int);
INSERT INTO m.skew VALUES (1, 1), (2, 2);
CREATE SEQUENCE m.tries;
CREATE FUNCTION m.skew(me int, other int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    x int;
BEGIN
    BEGIN
        PERFORM saga.begin('no such definition');
    EXCEPTION WHEN undefined_object THEN
        NULL;
    END;
    SELECT sum(v) INTO x FROM m.skew WHERE i = other;
    UPDATE m.skew SET v = v + x WHERE i = me;
    PERFORM nextval('m.tries'), pg_advisory_xact_lock_shared(4711);
    RETURN 'done';
END
$$;
SELECT saga.define('skew', saga.step('skew', 'm.skew', isolation => 'serializable',
    retry => saga.retry_policy(initial_delay => '10 ms', max_delay => '10 ms')));
EOS
my $one = as('mallory', q{SELECT saga.begin('skew', '{"me": 1, "other": 2}')});
my $two = as('mallory', q{SELECT saga.begin('skew', '{"me": 2, "other": 1}')});
my $gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(4711)');
my @runs = map { $node->background_psql('postgres', extra_params => [ '-U', 'mallory' ]) } 1 .. 2;
$runs[0]->query_until(qr/started/, "\\echo started\nCALL saga.run($one);\n\\echo ended\n");
$runs[1]->query_until(qr/started/, "\\echo started\nCALL saga.run($two);\n\\echo ended\n");
poll_sql($node, q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, '2',
	'both steps to have read what the other writes');
$gate->query_safe('SELECT pg_advisory_unlock(4711)');
$_->query_until(qr/ended/, '') foreach @runs;
$_->quit foreach @runs;
$gate->quit;
unlike(slurp_file($node->logfile), qr/terminated by signal|server process .* exited/,
	'a swallowed error and a failed commit do not crash the server');

# From here on with workers.
$node->append_conf('postgresql.conf', "saga.enabled = on\nsaga.batch_time = '10 s'");
$node->reload;
poll_sql($node, q{SELECT count(*) FROM saga.sagas WHERE definition = 'skew' AND status = 'completed'}, '2',
	'the loser to have tried again');
cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM m.tries'), '>', 2,
	'one of the commits did fail');

# A type that changes while a batch that uses it is under way.
as('mallory', <<'EOS');
CREATE TYPE m.pair AS (a int, b int);
CREATE FUNCTION m.takes(n int, p m.pair) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    a text;
BEGIN
    IF n = 5 THEN
        PERFORM pg_advisory_xact_lock_shared(4712);
    END IF;
    SELECT p.a INTO a;
    RETURN a;
END
$$;
SELECT saga.define('takes', saga.step('takes', 'm.takes'));
EOS
$gate = $node->background_psql('postgres');
$gate->query_safe('SELECT pg_advisory_lock(4712)');
as('mallory', q{SELECT saga.begin('takes', jsonb_build_object('n', n, 'p', '{"a": 123456789, "b": 2}'::jsonb)) FROM generate_series(1, 20) n});
poll_sql($node, q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, 't',
	'the batch to be in the middle');
as('mallory', 'ALTER TYPE m.pair ALTER ATTRIBUTE a TYPE text');
$gate->query_safe('SELECT pg_advisory_unlock(4712)');
$gate->quit;
poll_sql($node, q{SELECT status, result, count(*) FROM saga.sagas WHERE definition = 'takes' GROUP BY 1, 2},
	'completed|"123456789"|20', 'all that take the type');
unlike(slurp_file($node->logfile), qr/terminated by signal/,
	'a type that is altered does not crash the worker');

# Settings of the database.
$node->safe_psql('postgres', <<'EOS');
ALTER DATABASE postgres SET role = 'friend';
ALTER DATABASE postgres SET search_path = shadow, pg_temp, pg_catalog, m;
ALTER DATABASE postgres SET row_security = off;
ALTER DATABASE postgres SET default_transaction_isolation = serializable;
EOS
$node->restart;
$node->safe_psql('postgres', q{SET ROLE none; SET search_path = public; SET SESSION AUTHORIZATION mallory;
SELECT saga.begin('limited', key => n::text) FROM generate_series(1, 3) n;
SELECT saga.begin('identity', '{"n": 5}')});
poll_sql($node, q{SET ROLE none; SET search_path = public;
SELECT DISTINCT result FROM saga.sagas WHERE definition IN ('limited', 'identity') AND saga_id > (SELECT max(saga_id) - 4 FROM saga.sagas)},
	'"mallory/mallory/off"', 'sagas under settings of the database');
$node->safe_psql('postgres', 'SET ROLE none; ALTER DATABASE postgres RESET ALL');
is($node->safe_psql('postgres', q{SELECT count(*) FROM m.loot WHERE ran_as NOT LIKE '%/mallory/off'}),
	'0', 'the shadows have seen nobody else');
is(jackpot(), '0', 'nothing was won by settings of the database');
$node->restart;

# Once a superuser.
as('boss', <<'EOS');
CREATE FUNCTION v.rights() RETURNS text LANGUAGE sql AS
    $$ SELECT current_setting('is_superuser') || (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) $$;
SELECT saga.define('rights', saga.step('rights', 'v.rights'));
SELECT saga.begin('rights');
EOS
poll_sql($node, q{SELECT result #>> '{}' FROM saga.sagas WHERE definition = 'rights'}, 'ontrue', 'the superuser');
$node->safe_psql('postgres', q{ALTER ROLE boss NOSUPERUSER; SELECT saga.grant_usage('boss')});
as('boss', q{SELECT saga.begin('rights')});
poll_sql($node, q{SELECT result #>> '{}' FROM saga.sagas WHERE definition = 'rights' ORDER BY saga_id DESC LIMIT 1},
	'offfalse', 'who was a superuser');

# Everything that mallory may lock, while the victim's sagas go on.
sub victim_goes_on
{
	my ($what, $timeout) = @_;
	my $id;

	($rc, $out, $err) = $node->psql('postgres',
		"SET statement_timeout = '${timeout}s'; SELECT saga.begin('nothing')",
		extra_params => [ '-U', 'victim' ]);
	return fail("$what: $err") if $rc != 0;
	$id = (split /\n/, $out)[-1];
	return ok(
		eval {
			poll_sql($node, "SELECT saga.result($id)", '1', 'the victim', timeout => $timeout);
			1;
		},
		$what);
}

my $holder = $node->background_psql('postgres', extra_params => [ '-U', 'mallory' ]);
$holder->query_safe($_) foreach (
	'BEGIN',
	q{SELECT saga.begin('limited', key => 'held')},
	q{SELECT saga.configure('limited', max_running => 3)},
	q{SELECT saga.retry(saga_id) FROM saga.stuck},
	'SELECT count(*) FROM saga.sagas, saga.steps, saga.attempts, saga.requests, saga.stuck, saga.workers, saga.definitions, saga.definition_steps',
	'LOCK TABLE saga.sagas IN ACCESS SHARE MODE',
	'SELECT count(pg_advisory_lock(n)) FROM generate_series(0, 1000) n');
victim_goes_on('what mallory holds stops nobody', 30);

$holder->query_safe('ROLLBACK');
$holder->quit;
victim_goes_on('when the locks are gone all is well', 30);
is(jackpot(), '0', 'nothing was won');

$node->stop;
done_testing();
