# A synchronous standby of the coordinator is promoted while calls to another
# database are on their way: some are carried out, some are done and their answers
# on the way back, and the primary is gone at that moment.  The standby has called
# nobody before; then it goes on where the primary was: every saga whose begin was
# acknowledged ends as it should, each effect is there once, and each answer is
# that of its effect.  Then once more with a standby that is not synchronous, and
# may lack what came last.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $primary = new_coordinator('first', allows_streaming => 1);
my ($payments, $proxy) = new_remote('payments');
my @acknowledged;

connect_remote($primary, 'payments', $proxy->port);
as_app($primary, <<'EOS');
CREATE FUNCTION patient() RETURNS jsonb LANGUAGE sql IMMUTABLE AS
    $$ SELECT saga.retry_policy(0, '20 ms', '200 ms') $$;
SELECT saga.define('pay',
    saga.remote_step('reserve', 'payments', 'shop.act', compensation => 'shop.act', timeout => '1 min',
        retry => patient(), compensation_retry => patient()),
    saga.remote_step('pay', 'payments', 'shop.act', timeout => '1 min', retry => patient()));
EOS

# One of four fails at its second step.
sub begin_many
{
	my ($node, $n, $input) = @_;

	return split /\n/, as_app($node,
		"SELECT saga.begin('pay', '$input'::jsonb || CASE i % 4 WHEN 0 THEN '{\"fail\": \"pay\"}' ELSE '{}' END::jsonb) FROM generate_series(1, $n) i");
}

foreach my $round (1, 2)
{
	my $standby = PostgreSQL::Test::Cluster->new($round == 1 ? 'second' : 'third');

	$primary->backup("backup$round");
	$standby->init_from_backup($primary, "backup$round", has_streaming => 1);
	$standby->start;
	if ($round == 1)
	{
		$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '*'");
		$primary->reload;
		poll_sql($primary, 'SELECT sync_state FROM pg_stat_replication', 'sync', 'the standby to be synchronous');
	}

	# ---- on their way

	my $backlog = 300;
	push @acknowledged, begin_many($primary, $backlog, '{}');
	# carried out when the primary goes
	shut_gate($payments, 'gate', 'SELECT pg_advisory_xact_lock(7)');
	my @gated = begin_many($primary, 3, '{"gate": 7}');
	poll_sql($payments, "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'shop' AND wait_event = 'advisory'", 't', 'calls that are carried out');
	$primary->wait_for_catchup($standby, 'replay') if $round == 2;
	# done and not answered
	my $rule = $proxy->rule(from => 'client', match => '"operation": "action"', do => 'hold', direction => 'server');
	push @acknowledged, begin_many($primary, 200, '{}');
	$proxy->wait_for_hit($rule);
	push @acknowledged, @gated if $round == 1;
	is($standby->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'saga%'"),
		'0', "round $round: no process of saga on the standby");
	poll_sql($payments, 'SELECT count(*) > 0 FROM shop.effect', 't', 'some effects');

	# ---- the primary goes

	$primary->stop('immediate');
	$proxy->pass;
	$standby->append_conf('postgresql.auto.conf', "synchronous_standby_names = ''");
	$standby->reload;
	my $left = $standby->safe_psql('postgres', 'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');
	my $done = $payments->safe_psql('postgres', 'SELECT count(*) FROM shop.effect');
	note "round $round: $left left at the promotion, $done effects";
	cmp_ok($left, '>', 0, "round $round: there is something left to do");
	$standby->promote;
	open_gate($payments, 'gate');
	push @acknowledged, begin_many($standby, 50, '{}');
	wait_all_final($standby, timeout => 120);

	# ---- what is there

	my $known = join(',', @acknowledged);
	is($standby->safe_psql('postgres', "SELECT count(*) FROM unnest(ARRAY[$known]) id WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = id)"),
		'0', "round $round: every saga whose begin was acknowledged exists") if $round == 1;
	is($standby->safe_psql('postgres', "SELECT status, count(*) FROM saga.sagas WHERE (status = 'compensated') <> (input ? 'fail') OR status NOT IN ('completed', 'compensated') GROUP BY 1"),
		'', "round $round: all have ended as they should");
	(my $connstr = $payments->connstr('postgres')) =~ s/'/''/g;
	$standby->safe_psql('postgres', "DROP TABLE IF EXISTS effects; CREATE TABLE effects AS SELECT * FROM dblink('$connstr', "
		  . "'SELECT e.n, b.token, e.step, e.operation FROM shop.effect e JOIN saga.barrier b ON (b.answer ->> ''n'')::bigint = e.n AND NOT b.void') "
		  . 'AS t (n bigint, token uuid, step text, operation text)');
	is($standby->safe_psql('postgres', 'SELECT token, step, operation FROM effects GROUP BY 1, 2, 3 HAVING count(*) > 1'),
		'', "round $round: no effect is there twice");
	is($payments->safe_psql('postgres', 'SELECT count(*) FROM shop.effect e WHERE NOT EXISTS (SELECT FROM saga.barrier b WHERE (b.answer ->> \'n\')::bigint = e.n)'),
		'0', '... and each is remembered');
	is( $standby->safe_psql('postgres',
			'SELECT count(*) FROM saga.steps s JOIN saga.saga g ON g.id = s.saga_id LEFT JOIN effects e ON e.token = g.token AND e.step = s.step AND e.operation = s.operation::text '
			  . "WHERE s.status = 'succeeded' AND (s.result ->> 'n')::bigint IS DISTINCT FROM e.n"),
		'0', "round $round: each answer is that of its effect");
	is( $standby->safe_psql('postgres',
			'SELECT count(*) FROM effects e JOIN saga.saga g ON g.token = e.token LEFT JOIN saga.steps s ON s.saga_id = g.id AND e.step = s.step AND e.operation = s.operation::text '
			  . "WHERE s.status IS DISTINCT FROM 'succeeded'"),
		'0', "round $round: nothing else was done");
	# what was begun on a server that is gone, and not replicated, is nobody's
	note "round $round: effects of sagas that are lost: "
	  . $standby->safe_psql('postgres', 'SELECT count(*) FROM effects e WHERE NOT EXISTS (SELECT FROM saga.saga g WHERE g.token = e.token)');
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM effects e WHERE NOT EXISTS (SELECT FROM saga.saga g WHERE g.token = e.token)'),
		'0', "round $round: nothing was done for a saga that is lost") if $round == 1;
	is($standby->safe_psql('postgres', "SELECT status, count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed') GROUP BY 1"), '', "round $round: no call is left");
	$primary = $standby;
}

$_->stop foreach $primary, $payments;
done_testing();
