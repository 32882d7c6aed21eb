# What somebody should see to is announced once when it comes and once when it
# goes, and stands in saga.alerts as long as it holds: sagas that are stuck or
# past their deadline, open breakers, roles that can have no worker.  A restart
# or a crash of the server announces nothing again; a restored dump knows what
# is stuck in it once it was adopted; and without workers CALL saga.recover()
# does it all.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = SagaTest->new_node('main', start => 1);

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
CREATE ROLE other LOGIN;
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
GRANT CREATE ON SCHEMA public TO app, other;
SELECT saga.grant_usage('app'), saga.grant_usage('other');
SET ROLE app;
CREATE TABLE broken (nothing int);
CREATE FUNCTION work() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION undo(n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'cannot undo number %', n;
END $$;
CREATE FUNCTION refuse() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM saga.fail('no'); END $$;
SELECT saga.define('sticks', saga.step('do', 'work', 'undo',
        compensation_retry => saga.retry_policy(max_attempts => 1)),
    saga.step('refuse', 'refuse'));
SELECT saga.define('waits', saga.step('do', 'work', pivot => true), saga.signal_step('go'));
SELECT saga.define('turns', saga.signal_step('go'));
SELECT saga.define('offers', saga.external_step('mail', 'letters', retry => saga.retry_policy(max_attempts => 1)));
SELECT saga.configure_queue('letters', breaker_failures => 2, breaker_pause => '10 min', breaker_max_pause => '10 min');
SELECT saga.define('plain', saga.step('do', 'work'));
SELECT saga.grant_begin('plain', 'public');
EOS

sub app
{
	my ($sql, %opt) = @_;

	return $node->safe_psql($opt{dbname} || 'postgres', $sql,
		extra_params => [ '-U', 'app' ]);
}

sub alerts
{
	return $node->safe_psql('postgres',
		"SELECT COALESCE(string_agg(alert || ': ' || subject, '; ' ORDER BY alert, subject), '-') FROM saga.alerts");
}

# Have the coordinator look at everything, and wait until it has.
sub look
{
	my $pid = start_coordinator($node);

	# the announcement of what it has seen follows at once
	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga coordinator' AND state <> 'idle'",
		'0', 'the coordinator to have looked');
	return;
}

# ---- a session that listens

my %listener;

sub start_listener
{
	%listener = (in => '', out => '', err => '', marks => 0, last_id => 0,
		heard => $listener{heard} || []);
	$listener{handle} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres') ],
		'<', \$listener{in}, '>', \$listener{out}, '2>', \$listener{err},
		IPC::Run::timeout(300));
	$listener{in} .= "LISTEN saga_alert;\n";
	listen_now();
	return;
}

# Have it take what was sent until now.
sub listen_now
{
	# psql shows what has come with a result behind the result
	for (1 .. 2)
	{
		my $mark = 'mark ' . ++$listener{marks};

		$listener{in} .= "SELECT '$mark';\n";
		$listener{handle}->pump until $listener{out} =~ /^\Q$mark\E$/m;
	}
	while ($listener{out} =~
		s/^Asynchronous notification "saga_alert" with payload "(.*)" received.*\n//m)
	{
		push @{ $listener{heard} }, decode_json($1);
	}
	return;
}

# Wait for an alert that has these fields; all that were heard are forgotten up
# to it, and returned are those before it and it.
sub hear
{
	my ($what, %fields) = @_;
	my $deadline = time() + 60;

	while (1)
	{
		listen_now();
		for my $i (0 .. $#{ $listener{heard} })
		{
			my $alert = $listener{heard}[$i];

			next
			  if grep { !defined $alert->{$_} || $alert->{$_} ne $fields{$_} }
			  keys %fields;
			my @all = splice @{ $listener{heard} }, 0, $i + 1;
			return @all;
		}
		die "timed out waiting for $what; heard: " . encode_json($listener{heard})
		  if time() >= $deadline;
		usleep(20_000);
	}
}

sub end_listener
{
	$listener{in} .= "\\q\n";
	eval { $listener{handle}->finish };
	return;
}

start_listener();

# ---- stuck

my $id = app(q{SELECT saga.begin('sticks', '{"n": 1}')});
my @heard = hear('a stuck saga', alert => 'stuck', state => 'on');
my %alert = %{ $heard[0] };
is(scalar @heard, 1, 'one alert of a saga that gets stuck');
like($alert{at}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/, 'it has its time');
like($alert{id}, qr/^\d+$/, 'and a number');
delete @alert{qw(at id)};
is_deeply(
	\%alert,
	{
		alert      => 'stuck',
		state      => 'on',
		saga_id    => $id,
		definition => 'sticks',
		step       => 'do'
	},
	'and what it is about, but nothing that the step has said');
is( $node->safe_psql('postgres',
		"SELECT alert, severity, subject, saga_id, definition, message, since <= now() FROM saga.alerts"),
	"stuck|critical|saga $id|$id|sticks|cannot undo number 1|t",
	'as has the view');
like($node->safe_psql('postgres', 'SELECT hint FROM saga.alerts'),
	qr/saga\.retry\($id\)/, 'which says what mends it');

app("SELECT saga.retry($id)");
@heard = hear('the end of the retry', state => 'on');
is(join(' ', map { $_->{state} } @heard), 'off on', 'not stuck, then stuck again');
app("SELECT saga.abandon($id)");
@heard = hear('its end', state => 'off');
is($heard[0]{message}, 'abandoned', 'what became of it');
is(alerts(), '-', 'it is not stuck any more');

# many at once: each once
app(q{SELECT saga.begin('sticks', jsonb_build_object('n', n)) FROM generate_series(1, 60) n});
poll_sql($node, 'SELECT count(*) FROM saga.alerts', '60', '60 sagas to be stuck');
look();
$node->safe_psql('postgres', 'NOTIFY saga_alert, \'{"alert": "mark"}\'');
@heard = hear('the alerts of them', alert => 'mark');
my %ids = map { ($_->{saga_id} || 0) => 1 } grep { $_->{alert} eq 'stuck' } @heard;
is(scalar @heard, 61, 'as many alerts as sagas');
is(scalar keys %ids, 60, 'one of each');
app('SELECT count(saga.abandon(saga_id)) FROM saga.stuck WHERE saga_id NOT IN '
	  . '(SELECT min(saga_id) FROM saga.stuck)');
poll_sql($node, 'SELECT count(*) FROM saga.alerts', '1', 'all but one to be abandoned');
my $stuck = $node->safe_psql('postgres', 'SELECT saga_id FROM saga.stuck');
look();
listen_now();
is(scalar(grep { $_->{state} eq 'off' } @{ $listener{heard} }), 59, 'and as many that went');
@{ $listener{heard} } = ();

# ---- overdue

my $turns = app(q{SELECT saga.begin('turns', deadline => now() + interval '100 ms')});
my $waits = app(q{SELECT saga.begin('waits', deadline => now() + interval '1 s')});
@heard = hear('an overdue saga', alert => 'overdue', state => 'on');
is(scalar @heard, 1, 'one alert of a saga past its deadline');
is($heard[0]{saga_id}, $waits, 'which cannot go back');
is( $node->safe_psql('postgres', "SELECT status FROM saga.sagas WHERE saga_id = $turns"),
	'compensated', 'of one that could, and did, there is none');
is(alerts(), "overdue: saga $waits; stuck: saga $stuck", 'the view has it');
like(app("SELECT hint FROM saga.alerts WHERE alert = 'overdue'"), qr/explain\($waits\)/, 'with a hint');
look() for 1 .. 2;
listen_now();
is(scalar @{ $listener{heard} }, 0, 'no further look announces it again');

# ---- breakers

sub answer_task
{
	my ($sql) = @_;

	poll_sql($node, "SELECT ready > 0 FROM saga.queues WHERE queue = 'letters'", 't', 'a task');
	app("SELECT saga.$sql FROM saga.claim_tasks('letters', 1) t");
	return;
}

app(q{SELECT saga.begin('offers') FROM generate_series(1, 2)});
answer_task(q{fail_task(t.id, t.lease_token, 'no stamps')}) for 1 .. 2;
@heard = hear('a breaker to open', alert => 'breaker', state => 'on');
is(scalar @heard, 1, 'one alert of an open breaker');
is($heard[0]{queue}, 'letters', 'which names the queue');
like(alerts(), qr/^breaker: queue letters;/, 'the view has it');
look();
app(q{SELECT saga.reset_breaker('letters')});
@heard = hear('a breaker to close', alert => 'breaker', state => 'off');
is(scalar @heard, 1, 'and one when it is closed');
app(q{SELECT saga.begin('offers') FROM generate_series(1, 2)});
answer_task(q{fail_task(t.id, t.lease_token, 'no stamps')}) for 1 .. 2;
hear('a breaker to open again', alert => 'breaker', state => 'on');

# ---- no worker

$node->safe_psql('postgres', <<'EOS');
CREATE ROLE outsider LOGIN;
SELECT saga.grant_usage('outsider');
GRANT CONNECT ON DATABASE postgres TO app, other, watcher;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
SET ROLE outsider;
SELECT saga.begin('plain');
EOS
@heard = hear('a role without a worker', alert => 'no_worker', state => 'on');
is(scalar @heard, 1, 'one alert of a role that can have no worker');
is($heard[0]{role}, 'outsider', 'which names the role');
is($heard[0]{message}, 'role has no CONNECT privilege on the database', 'and the reason');
like(alerts(), qr/no_worker: role outsider/, 'the view has it');
look();
listen_now();
is(scalar @{ $listener{heard} }, 0, 'it is not announced again');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO outsider');
@heard = hear('a worker for the role', alert => 'no_worker', state => 'off');
is(scalar @heard, 1, 'and one when it has a worker');
unlike(alerts(), qr/no_worker/, 'then the view has it no more');

# ---- who sees what

is( $node->safe_psql('postgres',
		"SELECT string_agg(alert || COALESCE(' ' || message, ''), ', ' ORDER BY alert) FROM saga.alerts",
		extra_params => [ '-U', 'watcher' ]),
	'breaker, overdue, stuck',
	'a member of pg_monitor sees what there is, without messages');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM saga.alerts', extra_params => [ '-U', 'other' ]),
	'0', 'another role sees nothing');
isnt(
	$node->psql('postgres', 'SELECT * FROM saga.condition', extra_params => [ '-U', 'app' ]),
	0, 'and nobody the table');

# ---- a restart, and a crash

my $before = "overdue: saga $waits; stuck: saga $stuck";
end_listener();
$node->restart;
start_listener();
look();
poll_sql($node, "SELECT count(*) FROM saga.alerts WHERE alert = 'breaker'", '0',
	'the breaker to be closed by the restart');
is(alerts(), $before, 'a restart ends nothing else');
listen_now();
is(scalar(grep { $_->{state} eq 'on' } @{ $listener{heard} }), 0, 'and announces nothing again');
end_listener();
restart_after($node,
	sub { kill 'KILL', start_coordinator($node); },
	'the coordinator was killed');
start_listener();
look();
is(alerts(), $before, 'nor does a crash');
listen_now();
is(scalar(grep { $_->{state} eq 'on' } @{ $listener{heard} }), 0, 'or announce');
@{ $listener{heard} } = ();

# ---- a restored dump

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'dump');
unlike(slurp_file($dump), qr/COPY saga\.(condition|alert) /, 'conditions are not dumped');
$node->safe_psql('postgres', 'CREATE DATABASE copy; GRANT CONNECT ON DATABASE copy TO PUBLIC');
$node->command_ok([ 'psql', '-Xqv', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'restore');
is($node->safe_psql('copy', 'SELECT count(*) FROM saga.alerts'), '0', 'nothing is to be seen to in a copy');
$node->safe_psql('copy', 'CALL saga.adopt()');
is( $node->safe_psql('copy', "SELECT alert, saga_id, definition, message FROM saga.alerts WHERE alert = 'stuck'"),
	"stuck|$stuck|sticks|" . $node->safe_psql('copy', "SELECT error ->> 'message' FROM saga.sagas WHERE saga_id = $stuck"),
	'once it was adopted what is stuck there is');
poll_sql($node, "SELECT subject FROM saga.alerts WHERE alert = 'overdue'", "saga $waits",
	'the overdue one to be noticed there', dbname => 'copy');
# a template has the rows of the original
$node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE copy');
is($node->safe_psql('clone', "SELECT count(*) FROM saga.alerts WHERE alert = 'stuck'"), '1', 'a clone has what the original had');
$node->safe_psql('postgres', 'DROP DATABASE clone');
$node->safe_psql('postgres', 'DROP DATABASE copy');

# ---- without workers

app("SELECT saga.signal($waits, 'go'), saga.abandon($stuck)");
hear('the end of what is overdue', alert => 'overdue', state => 'off');
poll_sql($node, 'SELECT count(*) FROM saga.alerts', '0', 'nothing to be seen to');
$node->safe_psql('postgres', 'ALTER SYSTEM SET saga.enabled = off');
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
poll_sql($node, "SELECT count(*) FROM saga.workers WHERE process <> 'launcher' AND pid IS NOT NULL", '0', 'all to leave');
listen_now();
@{ $listener{heard} } = ();
is(alerts(), '-', 'with nothing to do no worker is missed');
$stuck = app(q{SELECT saga.begin('sticks', '{"n": 2}')});
$waits = app(q{SELECT saga.begin('waits', deadline => clock_timestamp() + interval '4 s')});
is(alerts(), 'no_worker: all roles', 'with something to do they are');
is($node->safe_psql('postgres', 'SELECT message FROM saga.alerts'), 'saga.enabled is off', 'and why');
is(app('SELECT count(*) FROM saga.alerts'), '0', 'which is for those who watch');
app('CALL saga.recover()');
is(alerts(), "no_worker: all roles; stuck: saga $stuck", 'CALL saga.recover() notices the others');
poll_sql($node, "SELECT now() > deadline + interval '3 s' FROM saga.sagas WHERE saga_id = $waits", 't', 'the deadline to have passed');
app('CALL saga.recover()') for 1 .. 2;
is(alerts(), "no_worker: all roles; overdue: saga $waits; stuck: saga $stuck", 'those that come with time too');
listen_now();
is(join(' ', map { $_->{alert} } @{ $listener{heard} }), 'stuck overdue', 'and sends the alerts, once');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET saga.enabled');
$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
app("SELECT saga.signal($waits, 'go'), saga.abandon($stuck)");
poll_sql($node, 'SELECT count(*) FROM saga.alerts', '0', 'nothing to be left');
end_listener();

$node->stop;
done_testing();
