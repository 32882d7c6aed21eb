# 2,000 random definitions, a saga of each and the children that come of them,
# with random failures, signals and requests of people, while workers are killed
# and terminated and the server is stopped at once.  Then the histories are
# checked against a second reading of the rules, in SQL: see SagaRandom.
#
# The definitions, inputs and failures are a function of the seed, when
# something is killed is not.
#
#	SAGA_SEED     the seed, if it is not to be the same one each time
#	SAGA_RANDOM   how many definitions (2000)
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaRandom;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed   = $ENV{SAGA_SEED}   || 12;
my $n      = $ENV{SAGA_RANDOM} || 2000;
my $random = SagaRandom->new($seed);

# So many sagas that have not ended are enough, and begun at a time.
use constant BACKLOG => 150;
use constant WAVE    => 50;

# ... and so many seconds for all of it.
use constant LONGEST => 300;

diag "SAGA_SEED=$seed";

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => {
		'saga.workers_per_role' => 3,
		'deadlock_timeout'      => '100ms',
	});

$node->safe_psql('postgres', $random->setup_sql);
$node->safe_psql('postgres', $random->children_sql);

# ---- ends of processes

my $ended = 0;
my $killed = 0;

sub a_worker
{
	my @pids = backend_pids($node, 'saga worker');

	return @pids ? $pids[ int(rand(@pids)) ] : undef;
}

sub terminate_worker
{
	my $pid = a_worker() or return;

	$ended++ if kill 'TERM', $pid;
	return;
}

sub kill_worker
{
	my $pid = a_worker() or return;

	my $offset = -s $node->logfile;
	kill 'KILL', $pid or return;
	$ended++;
	$killed++;
	wait_for_server_log($node, qr/all server processes terminated; reinitializing/,
		$offset, 'the server to restart');
	poll_sql($node, 'SELECT 1', '1', 'connections after the kill');
	return;
}

sub restart_at_once
{
	$node->stop('immediate');
	$node->start;
	return;
}

# ---- the run

my $begin = time();
my $begun = 0;
my $left  = 0;
my %at;

# what is to happen when so many have been begun
$at{ 1 + int($n * $_ / 16) } = \&terminate_worker foreach 1 .. 15;
$at{ 1 + int($n * $_) } = \&kill_worker foreach 0.17, 0.42, 0.67, 0.9;
$at{ 1 + int($n * 0.55) } = \&restart_at_once;
my @events = sort { $a <=> $b } keys %at;

while ($begun < $n || $left > 0)
{
	if (time() - $begin > LONGEST)
	{
		diag $node->safe_psql('postgres', $random->unfinished_sql);
		die "timed out with $left sagas that have not ended";
	}
	if ($begun < $n && $left < BACKLOG)
	{
		my $to = $begun + WAVE;

		$to = $n if $to > $n;
		$node->safe_psql('postgres', $random->wave_sql($begun + 1, $to));
		$begun = $to;
		note sprintf '%.0f s: %d begun, %d have not ended', time() - $begin, $begun, $left;
	}
	while (@events && $events[0] <= $begun)
	{
		$at{ shift @events }->();
	}
	$left = $node->safe_psql('postgres', 'SELECT tick()');
	usleep(50_000);
}
note sprintf '%d sagas of %d definitions in %.0f s; %d processes ended, %d of them killed',
  $node->safe_psql('postgres', 'SELECT count(*) FROM saga.saga'),
  $n, time() - $begin, $ended, $killed;
is($node->safe_psql('postgres', 'SELECT count(*) FROM begun'),
	$n, 'a saga of each definition was begun');

# ---- the second reading

# What a saga that has ended leaves may be cleaned up a moment later.
eval {
	poll_sql($node,
		'SELECT (SELECT count(*) FROM saga.branch) + (SELECT count(*) FROM saga.message) '
		  . '+ (SELECT count(*) FROM saga.lock)',
		'0', 'what is left to be cleaned up', timeout => 10);
};
$node->safe_psql('postgres', $random->history_sql($ended));
note $node->safe_psql('postgres', $random->summary_sql);

foreach my $check ($random->checks)
{
	my ($name, $rule, $query) = @$check;
	my $wrong = $node->safe_psql('postgres',
		"SET search_path = history, public; SELECT * FROM ($query) q LIMIT 10");

	is($wrong, '', $rule) or diag "$name: SAGA_SEED=$seed";
}

# What the engine cannot place it says in the log, and tries again.
unlike(slurp_file($node->logfile),
	qr/could not advance saga|the machine refused|is not consistent/,
	'nothing went wrong within the engine');

# ---- each check finds what it is for

$node->safe_psql('postgres', $random->forged_sql);
my %query = map { $_->[0] => $_->[2] } $random->checks;
my %found;

foreach my $name (sort keys %query)
{
	my $wrong = $node->safe_psql('postgres',
		"SET search_path = forged, public; SELECT * FROM ($query{$name}) q");
	is($wrong, '', "nothing is wrong with a right history: $name");
}
foreach my $forgery ($random->forgeries)
{
	my ($name, $sql) = @$forgery;
	my $count = $node->safe_psql('postgres',
		"SET search_path = forged, public; SET client_min_messages = warning; BEGIN; $sql; "
		  . SagaRandom::derive_sql()
		  . "SELECT count(*) FROM ($query{$name}) q; ROLLBACK");

	$found{$name} = 1;
	cmp_ok($count, '>', 0, "found: $name") or diag $sql;
}
is(join(', ', grep { !$found{$_} } sort keys %query), '',
	'every check has been seen to find something');

$node->stop;
done_testing();
