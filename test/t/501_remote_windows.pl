# A call to another database, and its compensation, with something broken in each
# window that it has: when it is claimed and not sent, when it is carried out and
# not committed, when it is committed and its answer not here, and when the answer
# is here and not recorded.  In each the courier or a backend of the other server
# is killed, the courier is terminated, either server is stopped without a chance
# to say goodbye, or the network is cut.  The effect is there once, and its answer
# is the one that the saga has.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaRemote;
use SagaTest;
use Test::More;

# so that a commit can wait for a standby
my $orders = new_coordinator('orders', allows_streaming => 1);
my ($payments, $proxy) = new_remote('payments');

connect_remote($orders, 'payments', $proxy->port);
$orders->safe_psql('postgres', 'ALTER ROLE app SET synchronous_commit = local');
as_app($orders, <<'EOS');
CREATE FUNCTION refuse() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
CREATE FUNCTION patient() RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(0, '50 ms', '200 ms') $$;
SELECT saga.define('action',
    saga.remote_step('pay', 'payments', 'shop.act', timeout => '1 min', retry => patient()));
SELECT saga.define('compensation',
    saga.remote_step('pay', 'payments', 'shop.act', compensation => 'shop.act', timeout => '1 min',
        retry => patient(), compensation_timeout => '1 min', compensation_retry => patient()),
    saga.step('refuse', 'refuse'));
EOS

# A saga whose call of that operation waits at a gate of the other server.
sub begin_gated
{
	my ($operation) = @_;

	return begin_saga($orders, $operation, qq({"gate": 7, "gate_of": "$operation"}));
}

sub poll_at_gate
{
	poll_sql($payments,
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'shop' AND wait_event = 'advisory'",
		't', 'the call to be carried out');
	return;
}

sub poll_courier
{
	my ($condition, $what) = @_;

	poll_sql($orders,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga courier' AND $condition",
		'1', $what);
	return;
}

# Not waited for by anybody but the courier, and by it until there is a standby.
sub shut_commits
{
	$orders->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
	$orders->reload;
	poll_sql($orders, 'SHOW synchronous_standby_names', 'nobody', 'the setting');
	return;
}

sub open_commits
{
	$orders->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
	$orders->reload;
	return;
}

sub pause_server
{
	my ($paused) = @_;

	$orders->safe_psql('postgres',
		"SET synchronous_commit = local; SELECT saga.configure_server('payments', paused => $paused)");
	return;
}

# ---- windows: how to get in, and how to go on

# Of a call that is carried out when the other server has it.
my $sent;
my @windows = (
	{
		name  => 'before it is sent',
		enter => sub {
			my ($operation) = @_;
			my $id;

			# a compensation waits before its claim, too: its action is let through
			if ($operation eq 'action')
			{
				pause_server('true');
				$id = begin_saga($orders, $operation);
			}
			else
			{
				shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
				$id = begin_saga($orders, $operation, '{"gate": 7}');
				poll_at_gate();
				pause_server('true');
				open_gate($payments, 'gate');
			}
			poll_sql($orders,
				"SELECT count(*) FROM saga.tasks WHERE saga_id = $id AND operation = '$operation' AND status = 'ready'",
				'1', 'the call to be offered');
			shut_commits();
			$sent = $proxy->rule(from => 'client', match => qq("operation": "$operation"), do => 'note', times => 100);
			pause_server('false');
			poll_courier("wait_event = 'SyncRep'", 'the courier to claim it');
			return $id;
		},
		check => sub {
			is($proxy->hits($sent), 0, "$_[0]: nothing was sent");
		},
		leave => sub { open_commits(); },
	},
	{
		name  => 'before it commits there',
		enter => sub {
			my ($operation) = @_;

			shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
			my $id = begin_gated($operation);
			poll_at_gate();
			return $id;
		},
		check => sub {
			my ($what, $id, $operation) = @_;

			is(effects_of($payments, $id, $operation), 0, "$what: it is not committed");
		},
		leave => sub { open_gate($payments, 'gate'); },
		seen  => 1,
	},
	{
		name  => 'before its answer is here',
		enter => sub {
			my ($operation) = @_;
			my $rule = $proxy->rule(from => 'client', match => qq("operation": "$operation"), do => 'hold', direction => 'server');
			my $id   = begin_saga($orders, $operation);

			$proxy->wait_for_hit($rule);
			poll_sql($payments,
				"SELECT count(*) FROM shop.effect WHERE saga_id = $id AND operation = '$operation'",
				'1', 'the effect');
			return $id;
		},
		check => sub {
			my ($what, $id, $operation) = @_;

			is($orders->safe_psql('postgres', "SELECT status FROM saga.steps WHERE saga_id = $id AND operation = '$operation' AND step = 'pay'"),
				'running', "$what: nobody knows");
		},
		leave => sub { $proxy->release; },
		seen  => 1,
	},
	{
		name  => 'before its answer is recorded',
		enter => sub {
			my ($operation) = @_;

			shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
			my $id = begin_gated($operation);
			poll_at_gate();
			shut_gate($orders, 'record', 'LOCK TABLE saga.task IN SHARE MODE');
			open_gate($payments, 'gate');
			poll_courier("wait_event_type = 'Lock'", 'the courier to record the answer');
			return $id;
		},
		check => sub {
			my ($what, $id, $operation) = @_;

			is(effects_of($payments, $id, $operation), 1, "$what: it is committed");
		},
		leave => sub { open_gate($orders, 'record'); },
	});

# ---- what breaks in them

sub unreachable
{
	return $orders->safe_psql('postgres', "SELECT coalesce(sum(unreachable), 0) FROM saga.servers WHERE server = 'payments'");
}

# Wait until the courier has found nobody there, where it can see that.
sub poll_unreachable
{
	my ($window, $before) = @_;

	poll_sql($orders,
		"SELECT sum(unreachable) > $before FROM saga.servers WHERE server = 'payments'",
		't', 'the courier to find nobody there') if $window->{seen};
	return;
}

my @faults = (
	{
		name   => 'the courier is killed',
		strike => sub {
			my $pid = courier_pid($orders);

			restart_after($orders, sub { kill 'KILL', $pid }, 'the kill of the courier');
		},
	},
	{
		name   => 'the courier is terminated',
		strike => sub {
			my $pid = courier_pid($orders);

			kill 'TERM', $pid;
			poll_sql($orders, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", '0', 'its end');
		},
	},
	{
		name   => 'its server is stopped',
		strike => sub {
			$orders->stop('immediate');
			$orders->start;
		},
	},
	{
		name   => 'a backend there is killed',
		strike => sub {
			my $pid = $payments->safe_psql('postgres', "SELECT min(pid) FROM pg_stat_activity WHERE usename = 'shop'");

			restart_after($payments, sub { kill 'KILL', $pid }, 'the kill of a backend');
		},
	},
	{
		name   => 'the server there is stopped',
		strike => sub {
			my ($window) = @_;
			my $before = unreachable();

			$payments->stop('immediate');
			# what is held back in the network is not that there is nobody
			$proxy->cut;
			poll_unreachable($window, $before);
			$payments->start;
		},
	},
	{
		name   => 'the network is cut',
		strike => sub {
			my ($window) = @_;
			my $before = unreachable();

			$proxy->refuse;
			$proxy->cut;
			poll_unreachable($window, $before);
		},
	});

foreach my $operation ('action', 'compensation')
{
	foreach my $window (@windows)
	{
		foreach my $fault (@faults)
		{
			my $what = "$operation, $window->{name}, $fault->{name}";

			# so that there is a connection
			poll_saga($orders, begin_saga($orders, 'action'), 'completed', "the saga before: $what");

			my $id = $window->{enter}->($operation);
			$window->{check}->($what, $id, $operation);
			$fault->{strike}->($window);
			$window->{leave}->();
			$proxy->pass;
			poll_saga($orders, $id, $operation eq 'action' ? 'completed' : 'compensated', $what);
			is( $payments->safe_psql('postgres',
					"SELECT string_agg(operation, ',' ORDER BY n) FROM shop.effect WHERE saga_id = $id"),
				$operation eq 'action' ? 'action' : 'action,compensation',
				"$what: its effect is there once");
			is( $orders->safe_psql('postgres',
					"SELECT result ->> 'n' FROM saga.steps WHERE saga_id = $id AND step = 'pay' AND operation = 'action'"),
				$payments->safe_psql('postgres',
					"SELECT n FROM shop.effect WHERE saga_id = $id AND operation = 'action'"),
				"$what: the answer is that of the effect");
			note attempts_of($orders, $id);
		}
	}
}

is($orders->safe_psql('postgres', "SELECT status, count(*) FROM saga.sagas WHERE status NOT IN ('completed', 'compensated') GROUP BY 1"),
	'', 'all sagas have ended');
is($orders->safe_psql('postgres', "SELECT status, count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') GROUP BY 1"),
	'', 'no call is left');
is($payments->safe_psql('postgres', 'SELECT saga_id, operation FROM shop.effect GROUP BY 1, 2 HAVING count(*) > 1'),
	'', 'nothing was done twice');
is($payments->safe_psql('postgres', 'SELECT count(*) - (SELECT count(*) FROM shop.effect) FROM saga.barrier WHERE NOT void'),
	'0', 'what was done is known there');

$orders->stop;
$payments->stop;
done_testing();
