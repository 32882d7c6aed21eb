# The whole server goes away at any moment (immediate shutdown, SIGKILL of the
# postmaster) while clients begin sagas and workers run them, several times;
# with durable and with asynchronous commits between the steps.  What was
# acknowledged is there, each saga ends as it should, nothing has a second
# effect, and no step is blamed for the end of the server.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);
my $clients = 3;
my @acknowledged;

create_bank($node);

# After SIGKILL the children may need a moment to notice.
sub start_again
{
	my $deadline = time() + 60;

	until ($node->start(fail_ok => 1))
	{
		die 'the server does not start' if time() > $deadline;
		$node->stop('fast', fail_ok => 1);
	}
	return;
}

foreach my $round (1 .. 6)
{
	my $mode = $round % 2 ? 'durable' : 'async';
	my $kill = $round % 3 == 0;
	my $final = $node->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NULL');

	$node->safe_psql('postgres',
		"ALTER ROLE bank SET saga.local_commit = $mode");
	# a backlog, so that the workers are busy with full batches
	push @acknowledged, split /\n/,
	  $node->safe_psql('postgres',
		'SET ROLE bank; SELECT begin_transfers(1500)');
	my $load = start_clients($node, $clients, 3000);
	my $goal = $final + 100 + int(rand(500));
	poll_sql($node,
		"SELECT count(*) >= $goal FROM saga.saga WHERE due_at IS NULL",
		't', 'the load to be under way');
	if ($kill)
	{
		$node->kill9;
	}
	else
	{
		$node->stop('immediate');
	}
	my @ids = end_clients($load);
	push @acknowledged, @ids;
	cmp_ok(scalar(@ids), '>', 0, "round $round: clients were beginning sagas")
	  or diag(map { $_->{err} } @$load);
	cmp_ok(scalar(@ids), '<', 3000 * $clients, "round $round: ... and not done");

	start_again();
	my $left = $node->safe_psql('postgres',
		'SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL');
	note "round $round ($mode): " . scalar(@ids)
	  . " begun one by one, $left left after the restart";
	# else nobody could start the server while there is work to do
	cmp_ok($left, '>', 0,
		"round $round: the workers did not outlive the postmaster")
	  if $kill;
}

wait_all_final($node);
is(audit($node), '', 'nothing lost, nothing twice');
is(
	$node->safe_psql('postgres',
		'SELECT count(*) FROM unnest(ARRAY['
		  . join(',', @acknowledged)
		  . ']) id WHERE NOT EXISTS (SELECT FROM saga.saga s WHERE s.id = id)'),
	'0',
	'every saga whose begin was acknowledged exists');
is( $node->safe_psql(
		'postgres', "SELECT count(*) FROM saga.attempts WHERE outcome = 'lost'"),
	'0',
	'no step is blamed for the end of the server');

$node->stop;
done_testing();
