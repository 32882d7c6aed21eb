# The courier as a process: started when there is something to call, gone a while
# after that; ended in every way, idle and with calls in flight, it comes back
# and each effect is there once.  saga.enabled = off ends it, DROP EXTENSION and
# DROP DATABASE do not wait for it for long.  Databases that share one place get
# their turns, also when one of them always has something to call, and so do the
# processes that share one slot.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time);

my $orders = new_coordinator('orders',
	conf => { 'saga.remote_idle_timeout' => '300 ms', 'saga.max_workers' => 4 });
my ($payments, $proxy) = new_remote('payments');

# In any database of the coordinator: saga "pay" has one step, there.
sub define_pay
{
	my ($db) = @_;
	(my $password = password_of('payments')) =~ s/'/''/g;
	my $port = $proxy->port;

	if ($db ne 'postgres')
	{
		$orders->safe_psql('postgres', "CREATE DATABASE $db");
		$orders->safe_psql($db, <<'EOS');
CREATE EXTENSION saga;
CREATE EXTENSION dblink;
SELECT saga.grant_usage('app');
EOS
	}
	$orders->safe_psql($db, <<"EOS");
CREATE SERVER payments FOREIGN DATA WRAPPER dblink_fdw
    OPTIONS (host '127.0.0.1', port '$port', dbname 'postgres');
GRANT USAGE ON FOREIGN SERVER payments TO app;
CREATE USER MAPPING FOR app SERVER payments OPTIONS (user 'shop', password '$password');
SET ROLE app;
SELECT saga.define('pay', saga.remote_step('pay', 'payments', 'shop.act', timeout => '1 min',
    retry => saga.retry_policy(0, '20 ms', '200 ms')));
EOS
	return;
}

# Begin so many; their ids.
sub pay
{
	my ($db, $n, $input) = @_;

	return split /\n/, $orders->safe_psql($db,
		"SET ROLE app; SELECT saga.begin('pay', '" . ($input || '{}') . "') FROM generate_series(1, $n)");
}

sub wait_completed
{
	my ($what, @ids) = @_;

	poll_saga($orders, $_, 'completed', "saga $_ $what") foreach @ids;
	return;
}

# Of one saga of database "postgres": ids are the same in all.
sub effects
{
	my ($id) = @_;

	return effects_of($payments, $id, 'action');
}

sub couriers
{
	my ($where) = @_;

	return "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga courier'"
	  . ($where ? " AND $where" : '');
}

sub close_gate
{
	shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
	return;
}

# A call that is being carried out, there.
sub pay_slowly
{
	my ($db) = @_;
	my ($id) = pay($db, 1, '{"gate": 7}');

	poll_sql($payments,
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'shop' AND wait_event = 'advisory'",
		't', "a call of $db that waits there");
	return $id;
}

my $row = "SELECT state, database, role, pid IS NOT NULL, reason FROM saga.workers WHERE process = 'courier'";

# ---- comes and goes

is($orders->safe_psql('postgres', couriers()), '0', 'no courier as long as there is nothing to call');
define_pay('postgres');
is($orders->safe_psql('postgres', couriers()), '0', '... nor when there is a definition');
my ($first) = pay('postgres', 1);
wait_completed('to have its call made', $first);
is(effects($first), '1', 'it is started for the first call');
my ($second) = pay('postgres', 1);
wait_completed('to have its call made', $second);
is($orders->safe_psql('postgres', $row), 'running|postgres||t|', '... and stays for a while');
is($orders->safe_psql('postgres', "$row AND since <= now()"), 'running|postgres||t|', '... as the view shows');
is($orders->safe_psql('postgres', "SET ROLE app; $row"), 'running|postgres||t|', '... to everybody');
poll_sql($orders, couriers(), '0', 'the courier to leave');
is($orders->safe_psql('postgres', "SELECT count(*) FROM saga.workers WHERE process = 'courier'"),
	'0', 'nobody misses one that has nothing to do');

# ---- ended

foreach my $way ('TERM', 'INT', 'KILL')
{
	foreach my $busy (0, 1)
	{
		my $name = ($busy ? 'busy' : 'idle') . ", $way";
		my ($id) = pay('postgres', 1);
		my $pid;

		wait_completed("before the end of the courier: $name", $id);
		close_gate() if $busy;
		my $slow = $busy ? pay_slowly('postgres') : undef;
		$pid = courier_pid($orders);
		if ($way eq 'KILL')
		{
			restart_after($orders, sub { kill 'KILL', $pid }, "the kill of a courier: $name");
		}
		else
		{
			kill $way, $pid;
		}
		if ($way eq 'INT')
		{
			my ($next) = pay('postgres', 1);

			wait_completed('after a cancel', $next);
			is(courier_pid($orders), $pid, "$name: nothing happens");
		}
		else
		{
			poll_sql($orders, couriers("pid = $pid"), '0', "the end of the courier: $name");
			poll_sql($orders, couriers(), '1', 'a new one') if $busy;
		}
		open_gate($payments, 'gate') if $busy;
		my ($after) = pay('postgres', 1);

		wait_completed("after the end of the courier: $name", $after, $busy ? $slow : ());
		is(effects($after), '1', "$name: calls go on");
		is(effects($slow), '1', '... and what was in flight is there once') if $busy;
	}
}

# ---- switched off

close_gate();
my $slow = pay_slowly('postgres');
$orders->safe_psql('postgres', 'ALTER SYSTEM SET saga.enabled = off');
$orders->reload;
poll_sql($orders, couriers(), '0', 'the courier to stop');
is($orders->safe_psql('postgres', $row), 'absent|postgres||f|saga.enabled is off',
	'off: it ends, calls in flight or not, and is missed');
open_gate($payments, 'gate');
$orders->safe_psql('postgres', 'ALTER SYSTEM RESET saga.enabled');
$orders->reload;
wait_completed('when couriers are there again', $slow);
is(effects($slow), '1', '... and back on: the call counts once');

# ---- the extension goes

close_gate();
pay_slowly('postgres');
my $start = time();
$orders->safe_psql('postgres', 'SET client_min_messages = warning; DROP EXTENSION saga CASCADE');
cmp_ok(time() - $start, '<', 4, 'DROP EXTENSION does not wait for a call');
open_gate($payments, 'gate');
poll_sql($orders, couriers(), '0', 'the courier to leave');
$orders->safe_psql('postgres', "CREATE EXTENSION saga; SELECT saga.grant_usage('app')");
$orders->safe_psql('postgres', "DROP SERVER payments CASCADE");
define_pay('postgres');
my ($again) = pay('postgres', 1);
wait_completed('of an extension that was made again', $again);
pass('... and a new one has its calls made');

# ---- several databases, and one place

define_pay('one');
define_pay('two');
poll_sql($orders, couriers(), '0', 'the courier to leave');

# more of them than can be carried out, so that the courier is never idle
$payments->safe_psql('postgres', <<'EOS');
SET ROLE shop;
CREATE FUNCTION shop.dawdle(context jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.05)';
EOS
$orders->safe_psql('one', <<'EOS');
CREATE TABLE enough ();
GRANT SELECT ON enough TO app;
SET ROLE app;
SELECT saga.define('dawdle', saga.remote_step('dawdle', 'payments', 'shop.dawdle', timeout => '1 min'));
EOS
my ($out, $err) = ('', '');
my $client = IPC::Run::start(
	[
		$orders->installed_command('psql'), '-XAtq', '-U', 'app',
		'-d', $orders->connstr('one'), '-c', <<'EOS'
DO $$ BEGIN
    WHILE to_regclass('enough') IS NOT NULL LOOP
        PERFORM saga.begin('dawdle');
        COMMIT;
        PERFORM pg_sleep(0.004);
    END LOOP;
END $$
EOS
	],
	'<', \undef, '>', \$out, '2>', \$err);
poll_sql($orders, couriers("datname = 'one'"), '1', 'a courier of the first');
my $count = "SELECT count(*) FROM saga.sagas WHERE status = 'completed'";
foreach my $round (1, 2)
{
	pay('two', 20);
	poll_sql($orders, $count, 20 * $round, "round $round: calls of the second", dbname => 'two');
	my $before = $orders->safe_psql('one', $count);

	poll_sql($orders, "SELECT count(*) > $before + 20 FROM saga.sagas WHERE status = 'completed'", 't',
		"round $round: more calls of the first",
		dbname => 'one');
	pass("round $round: each database has its turn");
}
$orders->safe_psql('one', 'DROP TABLE enough');
$client->finish;
is($err, '', 'the first had something to call all the time');
wait_all_final($orders, dbname => $_) foreach 'one', 'two';
is($orders->safe_psql('one', 'SELECT count(*) FROM saga.attempts'), '0', 'nothing was lost in between');

# ---- databases go

close_gate();
pay_slowly('one');
$start = time();
$orders->safe_psql('postgres', 'ALTER DATABASE one RENAME TO uno');
cmp_ok(time() - $start, '<', 4, 'ALTER DATABASE ... RENAME does not wait for a call');
poll_sql($orders, couriers("datname = 'uno'"), '1', 'the courier to be back');
$start = time();
$orders->safe_psql('postgres', 'DROP DATABASE uno');
cmp_ok(time() - $start, '<', 4, '... nor does DROP DATABASE');
open_gate($payments, 'gate');
is($orders->safe_psql('postgres', "SELECT count(*) FROM saga.workers WHERE database IS NULL AND process <> 'launcher'"),
	'0', '... and nothing is left of it');
($again) = pay('two', 1);
poll_sql($orders, $count, 41, 'calls of the one that is left', dbname => 'two');
pass('... and others go on');

# ---- too few processes

# one slot for coordinator, courier and worker, and the worker would stay
$orders->append_conf('postgresql.conf', <<'EOS');
max_worker_processes = 3
saga.worker_idle_timeout = '1 h'
EOS
$orders->restart;
pay('two', 20);
poll_sql($orders, $count, 61, 'calls with a single slot', dbname => 'two');
pass('with a single slot for all processes calls are made');

done_testing();
