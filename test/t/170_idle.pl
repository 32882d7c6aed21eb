# Idle is idle (P10): with nothing unfinished no worker and no coordinator
# stays, and no transaction of ours runs; with a saga that waits for a far time
# there is at most one look a minute.  Nothing is held while waiting (P9): a
# saga that waits for its next attempt, its start or a person is in nobody's
# transaction, snapshot or lock, and neither is an idle process.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time);

# Transactions are counted in database "quiet", and looked at from another.
my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.worker_idle_timeout' => '1s',
		'autovacuum'               => 'off'
	});

$node->safe_psql('postgres', 'CREATE DATABASE quiet');
$node->safe_psql('quiet', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
SELECT saga.grant_usage('app');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION later() RETURNS void LANGUAGE sql AS $$
    SELECT saga.retry_later('1 h', 'not yet')
$$;
CREATE FUNCTION fails() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'not today' USING ERRCODE = '57000';
END $$;
SET ROLE app;
SELECT saga.define('quick', saga.step('nothing', 'nothing'));
SELECT saga.define('later', saga.step('later', 'later'));
SELECT saga.define('retried', saga.step('fails', 'fails', retry =>
    saga.retry_policy(initial_delay => '1 h', max_delay => '1 h')));
SELECT saga.define('stuck', saga.step('nothing', 'nothing', compensation => 'fails',
        compensation_retry => saga.retry_policy(max_attempts => 1)),
    saga.step('fails', 'fails', retry => saga.retry_policy(max_attempts => 1)));
EOS

my $ours = "backend_type IN ('saga worker', 'saga coordinator')";

sub sessions_end
{
	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE datname = 'quiet'",
		'0', 'every process to leave the database');
	return;
}

sub transactions
{
	return $node->safe_psql('postgres',
		"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'quiet'");
}

# How many transactions does the database have in so many seconds?
sub transactions_within
{
	my ($seconds) = @_;
	my $before    = transactions();
	my $end       = time() + $seconds;

	poll_sql($node, "SELECT clock_timestamp() >= to_timestamp($end)",
		't', 'time to pass');
	return transactions() - $before;
}

# ---- nothing unfinished

$node->safe_psql('quiet',
	"SET ROLE app; SELECT count(saga.begin('quick')) FROM generate_series(1, 200)");
my $begun = time();
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE status = 'completed'",
	'200', 'the sagas to complete', dbname => 'quiet');
sessions_end();
pass(sprintf('all processes have left after %.1f s', time() - $begun));
is(transactions_within(5), 0, 'nothing unfinished: no transaction at all');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE $ours"),
	'0', '... and no process');

# ---- things that wait

$node->safe_psql('quiet', <<'EOS');
SET ROLE app;
SELECT saga.begin('quick', start_at => now() + interval '1 day');
SELECT saga.begin('later');
SELECT saga.begin('retried');
SELECT saga.begin('stuck');
EOS
poll_sql(
	$node,
	"SELECT string_agg(concat_ws(' ', definition, status, waiting_for), ',' ORDER BY definition) "
	  . "FROM saga.sagas WHERE status <> 'completed'",
	'later running next attempt,quick scheduled start time,'
	  . 'retried running next attempt,stuck stuck retry, skip or abandon',
	'the sagas to wait',
	dbname => 'quiet');

# while the processes are there, idle
poll_sql($node,
	"SELECT bool_and(state = 'idle') FROM pg_stat_activity WHERE $ours",
	't', 'the processes to be idle');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FILTER (WHERE backend_xid IS NOT NULL OR backend_xmin IS NOT NULL "
		  . "OR xact_start IS NOT NULL) || ' of ' || (count(*) > 0) "
		  . "FROM pg_stat_activity WHERE backend_type LIKE 'saga%'"),
	'0 of true',
	'an idle process holds no transaction and no snapshot');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
		  . "WHERE a.backend_type LIKE 'saga%'"),
	'0',
	'... and no lock');
sessions_end();
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE $ours"),
	'0', 'nobody stays for sagas that wait');
is($node->safe_psql('quiet',
		"SELECT count(*) FROM (SELECT FROM saga.saga WHERE due_at IS NOT NULL FOR UPDATE NOWAIT) x"),
	'4', '... and their rows are free');
sessions_end();

# A look at the database is: a coordinator that connects, probes, sweeps.
my $count = transactions_within(20);
cmp_ok($count, '<=', 6, "sagas that wait: one look a minute at most ($count transactions in 20 s)");

# ---- a near time is kept, by a process that is started for it

$node->safe_psql('quiet',
	"SET ROLE app; SELECT saga.begin('quick', start_at => now() + interval '9 s')");
sessions_end();
poll_sql($node,
	"SELECT status || ' ' || (started_at - start_at < interval '2 s') FROM saga.sagas "
	  . "WHERE start_at < created_at + interval '1 min'",
	'completed true', 'the scheduled saga to run in time', dbname => 'quiet');
pass('a saga runs at its time though nobody waited for it');

# Waiting for a saga holds nothing either.
my $id = $node->safe_psql('quiet', "SET ROLE app; SELECT saga.begin('later')");
my $waiter = IPC::Run::start(
	[
		$node->installed_command('psql'), '-XAtq', '-d', $node->connstr('quiet'),
		'-c', "CALL saga.wait($id, '30 s')"
	],
	'<', \undef, '>', \my $out, '2>', \my $err);
poll_sql(
	$node,
	"SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL saga.wait%' "
	  . "AND wait_event_type = 'Extension'",
	'1',
	'the waiter to wait');
is( $node->safe_psql(
		'postgres',
		"SELECT backend_xid IS NULL AND backend_xmin IS NULL FROM pg_stat_activity "
		  . "WHERE query LIKE 'CALL saga.wait%'"),
	't',
	'CALL saga.wait() holds no snapshot and no xid');
$node->safe_psql('quiet', "SELECT saga.abandon($id, 'test')");
$waiter->finish;
is($out, "abandoned\n", '... and learns of the end at once');

$node->stop;
done_testing();
