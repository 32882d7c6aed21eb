# Commands that need a database for themselves, while sagas run in it: DROP
# DATABASE (plain, WITH FORCE, by an owner who is no superuser), ALTER DATABASE
# RENAME and SET TABLESPACE, CREATE DATABASE ... TEMPLATE.  Our processes let go
# and come back, nothing is lost, and a copy does not act before saga.adopt().
# Several databases at once, one of them after the other, and the extension in
# template1.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

$node->safe_psql('postgres', 'CREATE ROLE app LOGIN CREATEDB');

# A database in which saga "work" has two steps, each of which leaves a row,
# and saga "sleep" one that sleeps for a day.
sub create_app
{
	my ($db, $owner) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $db OWNER $owner")
	  if $db ne 'template1';
	$node->safe_psql($db, <<'EOS');
CREATE EXTENSION saga;
SELECT saga.grant_usage('app');
CREATE SCHEMA app AUTHORIZATION app;
SET ROLE app;
CREATE TABLE app.effect (saga_id bigint, step text, PRIMARY KEY (saga_id, step));
CREATE FUNCTION app.work(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO app.effect VALUES ((context ->> 'saga_id')::bigint, context ->> 'step');
	PERFORM pg_sleep(0.002);
END $$;
CREATE FUNCTION app.sleep() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(86400)';
SELECT saga.define('work', saga.step('one', 'app.work'), saga.step('two', 'app.work'));
SELECT saga.define('sleep', saga.step('sleep', 'app.sleep', timeout => '1 d'));
EOS
	return;
}

sub begin
{
	my ($db, $definition, $n) = @_;

	return $node->safe_psql($db,
		"SET ROLE app; SELECT count(saga.begin('$definition')) FROM generate_series(1, $n)");
}

# Sagas are running there, and there are more to come.
sub make_busy
{
	my ($db, $n) = @_;

	begin($db, 'work', $n);
	poll_sql($node, 'SELECT count(*) > 0 FROM app.effect', 't',
		"sagas to run in $db", dbname => $db);
	return;
}

sub wait_done
{
	my ($db, $n) = @_;

	wait_all_final($node, dbname => $db);
	return $node->safe_psql($db,
		"SELECT (SELECT count(*) FROM saga.sagas WHERE definition = 'work' AND status = 'completed'), "
		  . '(SELECT count(*) FROM app.effect)') eq "$n|" . 2 * $n;
}

sub oid_of
{
	my ($db) = @_;

	return $node->safe_psql('postgres',
		"SELECT oid FROM pg_database WHERE datname = '$db'");
}

# ---- two databases at once

create_app('one', 'app');
create_app('two', 'postgres');
begin('one', 'work', 200);
begin('two', 'work', 200);
ok(wait_done('one', 200), 'sagas of one database run to their end');
ok(wait_done('two', 200), '... and those of another at the same time');

# ---- DROP DATABASE

make_busy('one', 2000);
$node->safe_psql('postgres', 'DROP DATABASE one');
is(oid_of('one'), '', 'a busy database is dropped');

create_app('one', 'app');
begin('one', 'sleep', 1);
poll_sql($node,
	"SELECT count(*) FROM saga.workers WHERE operation IS NOT NULL AND role = 'app'", '1',
	'a step to run', dbname => 'one');
$node->safe_psql('postgres', 'DROP DATABASE one');
is(oid_of('one'), '', '... also in the middle of a long step');

create_app('one', 'app');
make_busy('one', 2000);
$node->safe_psql('postgres', 'DROP DATABASE one WITH (FORCE)');
is(oid_of('one'), '', '... WITH (FORCE)');

create_app('one', 'app');
begin('one', 'sleep', 1);
make_busy('one', 500);
$node->safe_psql('postgres', 'SET SESSION AUTHORIZATION app; DROP DATABASE one');
is(oid_of('one'), '', "... by its owner, who is no superuser");

create_app('one', 'app');
make_busy('one', 2000);
$node->safe_psql('postgres',
	'SET SESSION AUTHORIZATION app; DROP DATABASE one WITH (FORCE)');
is(oid_of('one'), '', "... by its owner WITH (FORCE)");

# Who may not drop it does not stop its sagas either.
$node->safe_psql('postgres', 'CREATE ROLE mallory LOGIN CREATEDB');
begin('two', 'sleep', 1);
poll_sql($node,
	"SELECT count(*) FROM saga.workers WHERE operation IS NOT NULL AND role = 'app'", '1',
	'a step to run', dbname => 'two');
my $pids = $node->safe_psql('postgres',
	"SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = 'saga worker'");
foreach my $command ('DROP DATABASE two', 'DROP DATABASE two WITH (FORCE)',
	'ALTER DATABASE two RENAME TO three', 'CREATE DATABASE mine TEMPLATE two')
{
	my ($rc, $out, $err) = $node->psql('postgres',
		"SET SESSION AUTHORIZATION mallory; $command");
	like($err, qr/must be owner|permission denied to copy/,
		"a stranger's $command is refused");
}
is( $node->safe_psql('postgres',
		"SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = 'saga worker'"),
	$pids, '... and ends no worker');

# Somebody else is connected: the command fails as it would without us, and
# the sagas go on.
my $session = $node->background_psql('two');
my ($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE two');
like($err, qr/is being accessed by other users/, 'other sessions are no business of ours');
$session->quit;
poll_sql($node,
	"SELECT count(*) FROM saga.workers WHERE operation IS NOT NULL AND role = 'app'", '1',
	'the step to run again', dbname => 'two');
is( $node->safe_psql('two',
		"SELECT count(*) FROM saga.attempts WHERE outcome <> 'lost'"),
	'0', '... what was interrupted counts as that');
$node->safe_psql('two',
	"SET ROLE app; SELECT saga.abandon(saga_id) FROM saga.sagas WHERE definition = 'sleep'; "
	  . "RESET ROLE; SELECT pg_cancel_backend(pid) FROM saga.workers WHERE operation IS NOT NULL");
wait_all_final($node, dbname => 'two');

# ---- an unrelated database

# It waits for every process of the cluster (ProcSignalBarrier).
sub drop_unrelated
{
	my ($when) = @_;

	$node->safe_psql('postgres', 'CREATE DATABASE unrelated');
	$node->safe_psql('postgres',
		"SET statement_timeout = '30 s'; DROP DATABASE unrelated");
	is(oid_of('unrelated'), '', "an unrelated database is dropped while our processes are $when");
	return;
}
make_busy('two', 1000);
drop_unrelated('busy');
wait_all_final($node, dbname => 'two');
poll_sql($node,
	"SELECT count(*) FROM saga.workers WHERE process = 'worker' AND state = 'idle'",
	qr/^[1-9]/, 'idle workers', dbname => 'two');
drop_unrelated('idle');
ok(wait_done('two', 1200), 'nothing was lost');

# ---- RENAME, SET TABLESPACE

begin('two', 'work', 300);
$node->safe_psql('postgres', 'ALTER DATABASE two RENAME TO deux');
begin('deux', 'work', 300);
ok(wait_done('deux', 1800), 'sagas go on after a rename');

my $space = PostgreSQL::Test::Utils::tempdir_short();
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$space'");
begin('deux', 'work', 300);
$node->safe_psql('postgres', 'ALTER DATABASE deux SET TABLESPACE elsewhere');
ok(wait_done('deux', 2100), '... and after a move to another tablespace');

# ---- CREATE DATABASE ... TEMPLATE

# of a busy database
make_busy('deux', 1000);
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE deux STRATEGY wal_log');
$node->safe_psql('deux', 'CREATE TABLE app.original ()');
ok(wait_done('deux', 3100), 'the original goes on');

my $left = $node->safe_psql('copy', "SELECT count(*) FROM saga.sagas WHERE status = 'running'");
cmp_ok($left, '>', 0, 'the copy has sagas that are not final');
my $effects = $node->safe_psql('copy', 'SELECT count(*) FROM app.effect');
is( $node->safe_psql('copy',
		"SELECT DISTINCT waiting_for FROM saga.sagas WHERE status = 'running'"),
	'saga.adopt()', '... they wait for saga.adopt()');
like(
	$node->safe_psql('copy',
		"SELECT detail FROM saga.sagas s, saga.explain(s.saga_id) e "
		  . "WHERE status = 'running' AND topic = 'waits for' LIMIT 1"),
	qr/CALL saga\.adopt\(\)/, '... and saga.explain() says so');
($rc, $out, $err) = $node->psql('copy', "SET ROLE app; SELECT saga.begin('work')");
like($err, qr/cannot begin a saga in a copy of a database.*HINT:  CALL saga\.adopt\(\)/s,
	'none can be begun there, with a hint');
($rc, $out, $err) = $node->psql('copy', "SELECT saga.cancel(max(saga_id)) FROM saga.sagas WHERE status = 'running'");
like($err, qr/belongs to another coordinator/, '... nor steered');
is( $node->safe_psql('copy', 'CALL saga.recover()'),
	'0|0|f|0|0|{}', '... nor run in the foreground');
# a restart makes everybody look at everything
$node->restart;
is( $node->safe_psql('deux', "SET ROLE app; SELECT saga.begin('work') > 0"), 't', 'the original can begin');
ok(wait_done('deux', 3101), '... and run sagas after a restart');
is( $node->safe_psql('copy', "SELECT count(*) FROM saga.sagas WHERE status = 'running'"),
	$left, 'none of the copy has moved');
is($node->safe_psql('copy', 'SELECT count(*) FROM app.effect'),
	$effects, '... nor has any step run');
is($node->safe_psql('copy', 'CALL saga.adopt()'), "$left|{}", 'CALL saga.adopt() takes them over');
# the wake-up is a hint: should it meet a look that has just begun, the next one
# is a minute later
wait_all_final($node, dbname => 'copy', timeout => 180);
is( $node->safe_psql('copy', "SELECT count(*) = 2 * (SELECT count(*) FROM saga.sagas WHERE definition = 'work') FROM app.effect"),
	't', '... and they go on to their end');
begin('copy', 'work', 100);
wait_all_final($node, dbname => 'copy');
is( $node->safe_psql('copy', "SELECT DISTINCT status FROM saga.sagas WHERE definition = 'work'"),
	'completed', 'new ones run there as well');
isnt(
	$node->safe_psql('deux', 'SELECT id FROM saga.coordinator'),
	$node->safe_psql('copy', 'SELECT id FROM saga.coordinator'),
	'they are two coordinators');

# ---- the extension in template1

create_app('template1', 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
pass('the extension in template1 does not keep databases from being created');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE datname = 'template1'"),
	'0', '... since none of our processes is connected to it');
($rc, $out, $err) = $node->psql('fresh', "SET ROLE app; SELECT saga.begin('work')");
like($err, qr/copy of a database/, 'a database made from it has to be adopted');
$node->safe_psql('fresh', 'CALL saga.adopt()');
begin('fresh', 'work', 50);
ok(wait_done('fresh', 50), '... and is then one like any other');
# sagas in the template itself wait
begin('template1', 'work', 1);
$node->safe_psql('postgres', 'CREATE DATABASE fresh2');
is($node->safe_psql('template1', 'SELECT count(*) FROM app.effect'), '0', 'no saga runs in a template');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE datname = 'template1'"),
	'0', '... and it stays free');

# ---- a database that allows no connections

begin('fresh', 'work', 50);
$node->safe_psql('postgres', 'ALTER DATABASE fresh ALLOW_CONNECTIONS false');
begin('deux', 'work', 50);
ok(wait_done('deux', 3151), 'a database that allows no connections is left alone');
$node->safe_psql('postgres', 'ALTER DATABASE fresh ALLOW_CONNECTIONS true');
ok(wait_done('fresh', 100), '... until it does again');

unlike(slurp_file($node->logfile), qr/FATAL:  database .* is not currently accepting/,
	'nobody has tried in vain');

$node->stop;
done_testing();
