
=pod

=head1 NAME

SagaParticipant - run a participant of examples/ against a server

=head1 SYNOPSIS

  use SagaParticipant;

  need_program('pgbouncer', 'pgbouncer --version');
  my $directory = copy_example('participant-python');
  test_participant($directory, [ 'python3', "$directory/participant.py" ],
	  'python', [ 'python3', '-m', 'py_compile' ]);

=head1 DESCRIPTION

The participants do the same in every language, and so are their tests.  Each
README is followed to the letter: its blocks of SQL and shell are run as they
are.

=cut

package SagaParticipant;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(copy_example need_program code_blocks test_participant);

# pgbouncer is there
$ENV{PATH} .= ':/usr/sbin';

my @started;

# What a test that dies leaves running goes with it.
END
{
	my $status = $?;

	eval { $_->kill_kill(grace => 1) } foreach @started;
	$? = $status;
}

=pod

=head2 need_program($package, $command)

Die if that command fails, which only looks whether what the package has is
there.  "make check" has installed it.

=cut

sub need_program
{
	my ($package, $command) = @_;

	system("$command >/dev/null 2>&1") == 0
	  or die "$package is missing: \"make prerequisites\" installs it\n";
	return;
}

=pod

=head2 copy_example($name)

Copy that directory of examples/ to a temporary one, and return its path.

=cut

sub copy_example
{
	my ($name) = @_;
	my $copy = PostgreSQL::Test::Utils::tempdir();

	system('cp', '-R', "$FindBin::RealBin/../../examples/$name/.", $copy) == 0
	  or croak "could not copy examples/$name";
	return $copy;
}

=pod

=head2 code_blocks($file, $language)

The fenced blocks of that language in a Markdown file; '' for those of none.

=cut

sub code_blocks
{
	my ($file, $language) = @_;
	my @blocks;
	my $text = slurp_file($file);

	while ($text =~ /^```(\w*)\n(.*?)^```$/msg)
	{
		push @blocks, $2 if $1 eq $language;
	}
	return @blocks;
}

# Start a program with that environment.
sub start_program
{
	my ($command, $log, %environment) = @_;
	local @ENV{ keys %environment } = values %environment;
	my $handle = IPC::Run::start(
		$command, '<', \undef, '>>', $log, '2>&1',
		IPC::Run::timeout(180));

	push @started, $handle;
	return $handle;
}

# SIGTERM, and its exit status.
sub stop_program
{
	my ($handle) = @_;

	$handle->signal('TERM');
	$handle->finish;
	return $handle->full_result(0);
}

# A server on which the README can be followed: it can be reached at localhost,
# where role "payments" needs its password.
sub start_server
{
	my $node = SagaTest->new_node('main', conf => { listen_addresses => 'localhost' });
	my $hba  = $node->data_dir . '/pg_hba.conf';

	unlink $hba or croak "could not remove $hba: $!";
	append_to_file($hba, <<'EOF');
local all all      trust
host  all payments localhost scram-sha-256
EOF
	$node->start;
	return $node;
}

# PgBouncer in transaction mode in front of it; returns its port and log.
sub start_pgbouncer
{
	my ($node)    = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir();
	my $port      = PostgreSQL::Test::Cluster::get_free_port();

	append_to_file("$directory/users.txt", qq("payments" ""\n));
	append_to_file("$directory/pgbouncer.ini", <<EOF);
[databases]
shop = host=${\ $node->host} port=${\ $node->port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = trust
auth_file = $directory/users.txt
pool_mode = transaction
default_pool_size = 2
server_login_retry = 0.2
EOF
	my $handle = start_program([ 'pgbouncer', "$directory/pgbouncer.ini" ], "$directory/log");

	for (1 .. 200)
	{
		return ($port, "$directory/log") if slurp_file("$directory/log") =~ /process up/;
		croak "pgbouncer has ended:\n" . slurp_file("$directory/log") if !$handle->pumpable;
		usleep(50_000);
	}
	croak "timed out waiting for pgbouncer to start";
}

# Wait until so many participants listen.
sub wait_for_listeners
{
	my ($node, $n) = @_;

	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE usename = 'payments' AND query LIKE 'LISTEN%' AND state = 'idle'",
		$n, "$n participants to listen");
	return;
}

# Orders whose work takes so many seconds each; returns the number of the first
# one, which ends with 0.  Those that end with 5 cannot be shipped, and the card
# of those that end with 9 is declined.  Nobody waits for what takes LONGER.
use constant LONGER => 3600;
my $orders = 1000;

sub begin_orders
{
	my ($node, $n, $seconds) = @_;
	my $first = $orders;
	my $last  = $first + $n - 1;

	$orders += 10 * (1 + int($n / 10));
	$node->safe_psql('shop', <<EOF);
SELECT count(saga.begin('paid_order', jsonb_build_object('order_id', n, 'seconds', $seconds,
    'amount', CASE WHEN n % 10 = 9 THEN 5000 ELSE 100 END)))
FROM generate_series($first, $last) n
EOF
	return $first;
}

# What is wrong once all of them are final.
sub check_orders
{
	my ($node, $what) = @_;

	wait_all_final($node, dbname => 'shop');
	is($node->safe_psql('shop', <<"EOF"), '', "$what: each is completed, refunded or declined, by effects that are there once");
SELECT s.input ->> 'order_id', s.status, p.charges, p.refunds
FROM saga.sagas s,
    LATERAL (SELECT count(*) FILTER (WHERE amount > 0) AS charges, count(*) FILTER (WHERE amount < 0) AS refunds
             FROM payment WHERE order_id = (s.input ->> 'order_id')::int) p,
    LATERAL (SELECT (s.input ->> 'amount')::int > 1000 OR (s.input ->> 'seconds')::numeric = ${\ LONGER} AS declined,
                    (s.input ->> 'order_id')::int % 10 = 5 AS refunded) o
WHERE (s.status::text, p.charges, p.refunds) IS DISTINCT FROM
    (CASE WHEN declined OR refunded THEN 'compensated' ELSE 'completed' END,
     CASE WHEN declined THEN 0 ELSE 1 END, CASE WHEN refunded THEN 1 ELSE 0 END)
EOF
	is($node->safe_psql('shop', "SELECT count(*) FROM saga.tasks WHERE status IN ('ready', 'claimed')"),
		'0', "$what: no task is left");
	return;
}

# The README, as a new user would.
sub follow_readme
{
	my ($node, $directory, $log) = @_;
	my $readme = "$directory/README.md";
	my ($setup,  $look)  = code_blocks($readme, 'sql');
	my ($result) = code_blocks($readme, '');
	my ($start)  = code_blocks($readme, 'sh');
	my ($out, $err);

	$node->psql('postgres', $setup, stdout => \$out, stderr => \$err, on_error_stop => 1);
	is($err, '', 'README: the server is set up');

	# the signal is for the participant, not for the shell
	$start =~ s/^(.*)\n\z/exec $1/m;
	my $handle = start_program([ 'sh', '-c', "cd '$directory'\n$start" ],
		$log, PGPORT => $node->port, npm_config_cache => "$directory/.npm");

	IPC::Run::run([ $node->installed_command('psql'), '-X', '-d', $node->connstr('shop') ],
		'<', \$look, '>', \$out, '2>&1');
	$out =~ s/ +$//mg;
	$out =~ s/\n+\z/\n/;
	is($out, $result, 'README: ... and the result is what it says');
	is(stop_program($handle), 0, 'README: ... and SIGTERM ends it');
	return;
}

=pod

=head2 test_participant($directory, $command, $language, $parse)

All of it, for the example in that directory, which $command starts.  The
README has blocks of that language; $parse is the command that checks the
syntax of such a file.

=cut

sub test_participant
{
	my ($directory, $command, $language, $parse) = @_;
	my $node = start_server();
	# beside the server's
	my $log = $node->logfile =~ s/\.log$/_participant.log/r;

	follow_readme($node, $directory, $log);
	foreach my $block (code_blocks("$directory/README.md", $language))
	{
		my $file = "$directory/block.$language";

		append_to_file($file, $block);
		is(system(@$parse, $file), 0, "README: a block of $language can be read");
		unlink $file;
	}

	my ($port, $pgbouncer_log) = start_pgbouncer($node);
	my %direct = (
		PGHOST     => $node->host,
		PGPORT     => $node->port,
		PGUSER     => 'payments',
		PGDATABASE => 'shop',
		SAGA_LEASE => 4);
	my %pooled = (
		%direct,
		PGHOST          => '127.0.0.1',
		PGPORT          => $port,
		SAGA_LISTEN_DSN => "postgresql://payments\@/shop?host=$direct{PGHOST}&port=$direct{PGPORT}");

	foreach my $way ([ 'direct', \%direct ], [ 'pgbouncer', \%pooled ])
	{
		my ($name, $environment) = @$way;
		my $start = sub { return start_program($command, $log, %$environment, @_); };

		test_notification($node, $name, $start);
		test_restart($node, $name, $start);
		test_sigterm($node, $name, $start);
	}

	test_long($node, sub { return start_program($command, $log, %pooled, @_); });
	like(slurp_file($pgbouncer_log), qr/login attempt: db=shop user=payments/, 'PgBouncer was asked');
	my $start = sub { return start_program($command, $log, %direct, @_); };
	test_poll($node, $start);
	test_lost_lease($node, $start);
	like(slurp_file($log), qr/task \d+: .*lease/, '... and says what was refused');
	$node->stop;
	return;
}

# With leases and pauses so long that only a notification helps.
sub test_notification
{
	my ($node, $name, $start) = @_;
	my $participant = $start->(SAGA_LEASE => 900, SAGA_POLL => 900);

	wait_for_listeners($node, 1);
	begin_orders($node, 10, 0);
	check_orders($node, "$name, when told");
	is(stop_program($participant), 0, "$name: ... and it ends");
	return;
}

# Without being told.
sub test_poll
{
	my ($node, $start) = @_;
	my $participant =
	  $start->(SAGA_LISTEN_DSN => 'postgresql://payments@127.0.0.1:1/shop');

	for (1 .. 2)
	{
		begin_orders($node, 5, 0);
		check_orders($node, 'without a connection to listen');
	}
	is(stop_program($participant), 0, '... and it ends');
	return;
}

# Stopped for longer than its lease, it answers too late and goes on.
sub test_lost_lease
{
	my ($node, $start) = @_;
	my $participant = $start->(SAGA_LEASE => 1);
	my $first       = begin_orders($node, 1, 2);
	my $statuses    = <<"EOF";
SELECT string_agg(t.status, ', ' ORDER BY t.id) FROM saga.tasks t JOIN saga.sagas s USING (saga_id)
WHERE s.input ->> 'order_id' = '$first'
EOF

	poll_sql($node, $statuses, 'claimed', 'the task to be claimed', dbname => 'shop');
	$participant->signal('STOP');
	poll_sql($node, $statuses, qr/^expired/, 'its lease to end', dbname => 'shop');
	$participant->signal('CONT');
	check_orders($node, 'answered too late');
	like($node->safe_psql('shop', $statuses), qr/^expired.*answered$/, '... by another attempt');
	is(stop_program($participant), 0, '... and it ends');
	return;
}

# The server ends while tasks are in work: at once while others wait, and then
# politely, until the work has been done that nobody can be told of.
sub test_restart
{
	my ($node, $name, $start) = @_;
	my @participants = map { $start->() } 1 .. 2;
	my $first        = begin_orders($node, 200, 0.1);

	poll_sql($node, "SELECT count(*) > 40 FROM payment WHERE order_id >= $first",
		't', 'some of the payments', dbname => 'shop');
	$node->stop('immediate');
	$node->start;
	check_orders($node, "$name, with a restart");
	is(stop_program($_), 0, "$name: ... and a participant ends") foreach @participants;

	my $patient = $start->(SAGA_LEASE => 900);
	$first = begin_orders($node, 4, 1);
	poll_sql($node, "SELECT count(*) > 0 FROM saga.tasks WHERE status = 'claimed'", 't', 'work', dbname => 'shop');
	$node->stop('fast');
	usleep(1_200_000);
	$node->start;
	check_orders($node, "$name, done without a server");
	is(stop_program($patient), 0, "$name: ... and a participant ends");
	return;
}

# One participant that has more tasks than it can do at once is told to end, and
# another one goes on.
sub test_sigterm
{
	my ($node, $name, $start) = @_;
	my $first = begin_orders($node, 8, 1);
	my $tasks = <<"EOF";
SELECT string_agg(format('%s %s', n, status), ', ' ORDER BY status)
FROM (SELECT t.status, count(*) AS n FROM saga.tasks t JOIN saga.sagas s USING (saga_id)
      WHERE (s.input ->> 'order_id')::int >= $first AND t.task = 'charge_card' GROUP BY 1) x
EOF

	poll_sql($node, $tasks, '8 ready', 'tasks', dbname => 'shop');
	my $participant = $start->(SAGA_CONCURRENCY => 2);
	poll_sql($node, $tasks, qr/claimed/, 'a participant to have them', dbname => 'shop');
	is(stop_program($participant), 0, "$name: with tasks a participant ends too");
	like($node->safe_psql('shop', $tasks), qr/^[2-6] answered, [2-6] ready$/,
		"$name: ... and does what it began, and gives back the others");

	$participant = $start->();
	check_orders($node, "$name, by another one");
	is($node->safe_psql('shop', <<"EOF"), '1', "$name: ... no attempt was in vain");
SELECT max(t.attempt) FROM saga.tasks t JOIN saga.sagas s USING (saga_id) WHERE (s.input ->> 'order_id')::int >= $first
EOF
	is(stop_program($participant), 0, "$name: ... and it ends");
	return;
}

# Two tasks that take longer than their lease, one of which is cancelled.
sub test_long
{
	my ($node, $start) = @_;
	my $participant = $start->();
	my $long        = begin_orders($node, 1, 5);
	my $unwanted    = begin_orders($node, 1, LONGER);
	my $task        = "FROM saga.tasks t JOIN saga.sagas s USING (saga_id) WHERE t.task = 'charge_card' AND s.input ->> 'order_id' =";

	poll_sql($node, "SELECT t.status $task '$unwanted'", 'claimed', 'the task to be claimed', dbname => 'shop');
	$node->safe_psql('shop', "SELECT saga.cancel(saga_id, 'not wanted') FROM saga.sagas WHERE input ->> 'order_id' = '$unwanted'");
	check_orders($node, 'longer than a lease');
	is($node->safe_psql('shop', "SELECT attempt, extensions > 0 $task '$long'"), '1|t', '... it was extended');
	is(stop_program($participant), 0, '... and it ends');
	return;
}

1;
