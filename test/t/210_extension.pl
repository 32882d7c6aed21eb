# The extension comes and goes: DROP EXTENSION and CREATE EXTENSION while sagas
# run, in a transaction that is rolled back, in several databases.  saga.enabled
# is switched off and on by a reload.  A server that does not preload the
# library: CREATE EXTENSION warns, and sagas advance in the foreground.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

sub create_app
{
	my ($server, $db) = @_;

	$server->safe_psql($db, <<'EOS');
SELECT saga.grant_usage('app');
SET ROLE app;
SELECT saga.define('work', saga.step('one', 'app.work'), saga.step('two', 'app.work'));
EOS
	return;
}

sub prepare
{
	my ($server, $db) = @_;

	$server->safe_psql($db, <<'EOS');
CREATE SCHEMA app AUTHORIZATION app;
SET ROLE app;
CREATE TABLE app.effect (saga_id bigint, step text);
CREATE FUNCTION app.work(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO app.effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step');
	PERFORM pg_sleep(0.002);
END $$;
CREATE FUNCTION app.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(86400)';
EOS
	return;
}

sub begin
{
	my ($server, $n) = @_;

	$server->safe_psql('postgres', 'TRUNCATE app.effect');
	return $server->safe_psql('postgres',
		"SET ROLE app; SELECT count(saga.begin('work')) FROM generate_series(1, $n)");
}

# All sagas have completed, and each step has run once.
sub all_done
{
	my ($server, $n) = @_;

	wait_all_final($server);
	return $server->safe_psql('postgres',
		'SELECT (SELECT count(*) FROM app.effect), (SELECT count(DISTINCT (saga_id, step)) FROM app.effect)'
	) eq 2 * $n . '|' . 2 * $n;
}

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN');
prepare($node, 'postgres');

# ---- DROP and CREATE EXTENSION

$node->safe_psql('postgres', 'CREATE EXTENSION saga');
create_app($node, 'postgres');
for my $round (1 .. 3)
{
	begin($node, 2000);
	poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't', 'sagas to run');
	$node->safe_psql('postgres', 'DROP EXTENSION saga');
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_class WHERE relnamespace = 'saga'::regnamespace"),
		'0', "round $round: the extension is dropped while its workers are busy");
	poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('saga worker', 'saga coordinator')",
		'0', 'its processes to go');
	$node->safe_psql('postgres', 'CREATE EXTENSION saga');
	create_app($node, 'postgres');
	# ids begin anew: what is remembered of the old ones must not count
	begin($node, 200);
	ok(all_done($node, 200), "round $round: new sagas run after it was created again");
	is( $node->safe_psql('postgres',
			"SELECT min(saga_id), max(saga_id), count(*) FILTER (WHERE status = 'completed') FROM saga.sagas"),
		'1|200|200', "round $round: ... and nothing is left of the old ones");
}

# In the middle of a long step.
$node->safe_psql('postgres', "SET ROLE app; SELECT saga.define('sleep', saga.step('sleep', 'app.sleep', timeout => '1 d')); SELECT saga.begin('sleep')");
poll_sql($node, 'SELECT count(*) FROM saga.workers WHERE operation IS NOT NULL', '1', 'a step to run');
$node->safe_psql('postgres', 'DROP EXTENSION saga');
pass('it is dropped in the middle of a long step');
$node->safe_psql('postgres', 'CREATE EXTENSION saga');
create_app($node, 'postgres');

# Rolled back: as if nothing had been.
begin($node, 1000);
poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't', 'sagas to run');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION saga; ROLLBACK');
ok(all_done($node, 1000), 'sagas go on after a DROP EXTENSION that was rolled back');

# Dropped and created in one transaction.
begin($node, 1000);
poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't', 'sagas to run');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION saga; CREATE EXTENSION saga; COMMIT');
create_app($node, 'postgres');
begin($node, 100);
ok(all_done($node, 100), 'dropped and created in one transaction');

# With its schema.
begin($node, 1000);
poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't', 'sagas to run');
$node->safe_psql('postgres', 'DROP SCHEMA saga CASCADE');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_extension WHERE extname = 'saga'"),
	'0', 'it goes with its schema');

# A session that knew the extension finds it gone, and there again.
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('CREATE EXTENSION saga; SET client_min_messages = warning');
create_app($node, 'postgres');
$session->query_safe("SET ROLE app; SELECT saga.begin('work'); RESET ROLE");
$node->safe_psql('postgres', 'DROP EXTENSION saga; CREATE EXTENSION saga');
create_app($node, 'postgres');
$node->safe_psql('postgres', 'TRUNCATE app.effect');
is($session->query_safe("SET ROLE app; SELECT saga.begin('work'); RESET ROLE"),
	'1', 'an old session begins sagas of the new extension');
ok(all_done($node, 1), '... and they run');
$session->quit;

# A second database gets it later, a third one never: nobody stays there.
$node->safe_psql('postgres', 'CREATE DATABASE later');
$node->safe_psql('postgres', 'CREATE DATABASE never');
prepare($node, 'later');
$node->safe_psql('later', 'CREATE EXTENSION saga');
create_app($node, 'later');
$node->safe_psql('later', "SET ROLE app; SELECT saga.begin('work')");
wait_all_final($node, dbname => 'later');
is($node->safe_psql('later', 'SELECT count(*) FROM app.effect'), '2', 'the extension is found in a new database');
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE datname = 'never'", '0', 'everybody to leave the database without it');
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process = 'coordinator'", '0', 'the coordinators to leave');

# ---- saga.enabled

sub set_enabled
{
	my ($value) = @_;

	$node->safe_psql('postgres', "ALTER SYSTEM SET saga.enabled = $value");
	$node->reload;
	poll_sql($node, 'SHOW saga.enabled', $value, 'the reload');
	return;
}

begin($node, 2000);
poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't', 'sagas to run');
set_enabled('off');
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('saga worker', 'saga coordinator')",
	'0', 'the processes to go when saga.enabled is off');
my $effects = $node->safe_psql('postgres', 'SELECT count(*) FROM app.effect');
cmp_ok($effects, '<', 4000, 'saga.enabled = off stops sagas between steps');
is($node->safe_psql('postgres', "SELECT reason FROM saga.workers WHERE process = 'launcher'"),
	'saga.enabled is off', '... and the view says so');
is($node->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('work') > 0"), 't', '... they can be begun');
is($node->safe_psql('postgres', 'SELECT count(*) FROM app.effect'), $effects, '... and wait');
like($node->safe_psql('postgres', "SELECT string_agg(detail, ' ') FROM saga.explain((SELECT max(saga_id) FROM saga.sagas))"),
	qr/saga\.enabled is off/, '... and explain says why');
is($node->safe_psql('postgres', 'CALL saga.recover(max => 100)', extra_params => [ '-U', 'app' ]) =~ /^(\d+)\|/ && $1 > 0,
	1, '... in the foreground they advance');
set_enabled('on');
ok(all_done($node, 2001), 'saga.enabled = on starts them again');
set_enabled('off');
$node->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('work')");
$node->restart;
is($node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = 'running'"), '1', 'a server that starts with it off runs nothing');
set_enabled('on');
ok(all_done($node, 2002), '... until it is on');

$node->stop;

# ---- not preloaded

my $plain = SagaTest->new_node('plain', preload => 0, start => 1);
my ($rc, $out, $err) = $plain->psql('postgres', 'CREATE EXTENSION saga');
is($rc, 0, 'CREATE EXTENSION works without preloading');
like($err, qr/WARNING:.*shared_preload_libraries.*HINT:/s, '... with a warning and a hint');
$plain->safe_psql('postgres', 'CREATE ROLE app LOGIN');
prepare($plain, 'postgres');
create_app($plain, 'postgres');
begin($plain, 20);
my $id = $plain->safe_psql('postgres', 'SELECT min(saga_id) FROM saga.sagas');
my @app = (extra_params => [ '-U', 'app' ]);
is($plain->safe_psql('postgres', 'SELECT state, reason FROM saga.workers'),
	'absent|saga is not loaded via shared_preload_libraries', 'view saga.workers says why nothing runs');
like($plain->safe_psql('postgres', "SELECT string_agg(detail, ' ') FROM saga.explain($id)"),
	qr/not loaded via shared_preload_libraries/, '... and saga.explain()');
is($plain->safe_psql('postgres', "CALL saga.run($id)", @app), 'completed', 'saga.run() runs one');
is($plain->safe_psql('postgres', 'CALL saga.recover()', @app), '38|19|f|0|0|{}', 'saga.recover() runs the others');
is($plain->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE status = 'completed'"), '20', '... to their end');
is($plain->safe_psql('postgres', 'SELECT count(*), count(DISTINCT (saga_id, step)) FROM app.effect'), '40|40', '... each step once');
is($plain->safe_psql('postgres', 'CALL saga.recover()', @app), '0|0|f|0|0|{}', 'nothing is left to do');
is($plain->safe_psql('postgres', "CALL saga.wait($id)", @app), 'completed', 'saga.wait() works');
is($plain->safe_psql('postgres', "SELECT saga.wait_within($id)", @app), 'completed', '... and saga.wait_within()');
# two sessions at once: each saga once
begin($plain, 200);
my @sessions = map { $plain->background_psql('postgres', extra_params => [ '-U', 'app' ]) } 1 .. 3;
$_->query_until(qr/begins/, "\\echo begins\nCALL saga.recover();\n") foreach @sessions;
poll_sql($plain, "SELECT count(*) FROM saga.sagas WHERE status = 'completed'", '220', 'three sessions to run them');
$_->quit foreach @sessions;
is($plain->safe_psql('postgres', 'SELECT count(*), count(DISTINCT (saga_id, step)) FROM app.effect'), '400|400',
	'three sessions that recover at once run each step once');
# verbs and a waiter that nobody wakes
$plain->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('work')");
$id = $plain->safe_psql('postgres', 'SELECT max(saga_id) FROM saga.sagas');
is($plain->safe_psql('postgres', "SELECT saga.pause($id); CALL saga.wait($id, timeout => '10 ms')", @app), "$id\nrunning", 'a verb is written');
is($plain->safe_psql('postgres', "CALL saga.run($id)", @app), 'paused', '... and acted on');
my $waiter = $plain->background_psql('postgres');
$waiter->query_until(qr/begins/, "\\echo begins\nCALL saga.wait($id);\n");
is($plain->safe_psql('postgres', "SELECT saga.cancel($id); CALL saga.recover()", @app), "$id\n0|1|f|0|0|{}", 'a cancel ends it');
$waiter->query_until(qr/compensated/, '');
$waiter->quit;
pass('a waiter in another session notices');
# drop and create
$plain->safe_psql('postgres', "SET client_min_messages = error; DROP EXTENSION saga; CREATE EXTENSION saga");
create_app($plain, 'postgres');
begin($plain, 1);
is($plain->safe_psql('postgres', 'CALL saga.recover()', @app), '2|1|f|0|0|{}', 'dropped and created again');
# from then on preloaded
$plain->append_conf('postgresql.conf', "shared_preload_libraries = 'saga'");
begin($plain, 10);
$plain->restart;
ok(all_done($plain, 10), 'with the library preloaded workers take over');

$plain->stop;
done_testing();
