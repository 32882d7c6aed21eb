# A synchronous standby is promoted while clients begin sagas on the primary
# and its workers run them, and the primary is gone at that moment.  Before the
# promotion nothing of saga runs on the standby, and nothing can be begun
# there; after it every saga whose begin was acknowledged exists and ends as it
# should, and nothing has a second effect.  Twice: the standby of the promoted
# server takes over from it.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $primary =
  SagaTest->new_node('first', start => 1, allows_streaming => 1);
my @acknowledged;

create_bank($primary);

foreach my $round (1, 2)
{
	my $backup  = "backup$round";
	my $name    = $round == 1 ? 'second' : 'third';
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup($backup);
	$standby->init_from_backup($primary, $backup, has_streaming => 1);
	$standby->start;
	$primary->safe_psql('postgres',
		"ALTER SYSTEM SET synchronous_standby_names = '*'");
	$primary->reload;
	poll_sql($primary,
		'SELECT sync_state FROM pg_stat_replication', 'sync',
		'the standby to be synchronous');

	# the table of the load's definitions has to be there, and some sagas
	$primary->safe_psql('postgres',
		'SET ROLE bank; SELECT begin_transfers(10)');
	$primary->wait_for_catchup($standby, 'replay');
	my ($rc, $out, $err) = $standby->psql('postgres',
		"SELECT saga.begin('transfer', '{}')");
	like($err,
		qr/cannot execute .* (in a read-only transaction|during recovery)/,
		"round $round: begin on the standby raises PostgreSQL's own error");
	is( $standby->safe_psql(
			'postgres', "SELECT count(*) > 0 FROM saga.sagas"),
		't',
		"round $round: the views can be read on the standby");

	push @acknowledged, split /\n/,
	  $primary->safe_psql('postgres',
		'SET ROLE bank; SELECT begin_transfers(1500)');
	my $load = start_clients($primary, 3, 3000);
	my $final = $standby->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NULL');
	poll_sql($standby,
		"SELECT count(*) > $final + 200 FROM saga.saga WHERE due_at IS NULL",
		't', 'the load to reach the standby');
	is( $standby->safe_psql(
			'postgres',
			"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'saga%'"),
		'0',
		"round $round: no process of saga on the standby");

	$primary->stop('immediate');
	my @ids = end_clients($load);
	push @acknowledged, @ids;
	cmp_ok(scalar(@ids), '>', 0, "round $round: clients were beginning sagas");
	cmp_ok(scalar(@ids), '<', 9000, "round $round: ... and not done");

	$standby->append_conf('postgresql.auto.conf',
		"synchronous_standby_names = ''");
	$standby->reload;
	my $left = $standby->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');
	$standby->promote;
	note "round $round: " . scalar(@ids)
	  . " begun one by one, $left left at the promotion";
	cmp_ok($left, '>', 0, "round $round: there is something left to do");
	poll_sql(
		$standby,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga launcher'",
		'1',
		'the launcher of the promoted server');
	push @acknowledged, split /\n/,
	  $standby->safe_psql('postgres',
		'SET ROLE bank; SELECT begin_transfers(100)');
	wait_all_final($standby);
	is(audit($standby), '', "round $round: nothing lost, nothing twice");
	is(
		$standby->safe_psql('postgres',
			'SELECT count(*) FROM unnest(ARRAY['
			  . join(',', @acknowledged)
			  . ']) id WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = id)'),
		'0',
		"round $round: every saga whose begin was acknowledged exists");
	is( $standby->safe_psql(
			'postgres', "SELECT count(*) FROM saga.attempts WHERE outcome = 'lost'"),
		'0',
		"round $round: no step is blamed for the end of the primary");
	$primary = $standby;
}

$primary->stop;
done_testing();
