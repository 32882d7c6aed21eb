# A check of an invariant is a process of its own, and whatever becomes of that
# is known to who asked for it: an owner who can have no session, a query that
# swallows its cancel, a process that is terminated or killed, no slot for it.
# Who asked and goes takes it along.  One check at a time; a definition that is
# paused takes in those whose begin commits just then, also if the check dies in
# between; and a dump carries it all.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = SagaTest->new_node('main', start => 1);
my $version = $node->safe_psql('postgres', 'SHOW server_version_num') / 10000;

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
CREATE ROLE team;
CREATE ROLE op LOGIN;
GRANT team TO app;
GRANT CREATE ON SCHEMA public TO app, team;
SELECT saga.grant_usage('app'), saga.grant_usage('team'), saga.grant_operator('op');
SET ROLE app;
CREATE TABLE book (account text PRIMARY KEY, balance int);
INSERT INTO book VALUES ('cash', 100);
CREATE TABLE gate (nothing int);
CREATE FUNCTION spend(account text, amount int) RETURNS void LANGUAGE sql AS $$
    UPDATE book b SET balance = b.balance - spend.amount WHERE b.account = spend.account $$;
CREATE FUNCTION stubborn() RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        BEGIN
            PERFORM pg_sleep(60);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END $$;
SELECT saga.define('pay', saga.step('spend', 'spend', pivot => true), saga.timer_step('ship', '1 day'));
SELECT saga.add_invariant('cash', 'SELECT account, balance FROM book, (SELECT count(*) FROM gate) g WHERE balance < 0',
    definition => 'pay', pause => true, key => '{account}');
EOS

sub app
{
	my ($sql) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'app' ]);
}

sub check
{
	return $node->safe_psql('postgres', 'CALL saga.check_invariants()');
}

sub state
{
	my ($invariant) = @_;

	return $node->safe_psql('postgres',
		"SELECT concat_ws('|', state, violations, error ->> 'sqlstate', error ->> 'message') "
		  . "FROM saga.invariants WHERE invariant = '$invariant'");
}

# A session of its own, which is left alone.
sub start_session
{
	my ($sql, $role) = @_;
	my %session = (out => '', err => '', in => "$sql;\n");

	$session{handle} = IPC::Run::start(
		[ $node->installed_command('psql'), '-XAtq', '-d', $node->connstr('postgres'),
			'-U', $role || 'op' ],
		'<', \$session{in}, '>', \$session{out}, '2>', \$session{err},
		IPC::Run::timeout(300));
	$session{handle}->pump_nb;
	return \%session;
}

sub end_session
{
	my ($session, $sql) = @_;

	$session->{in} .= "$sql;\n" if defined $sql;
	$session->{in} .= "\\q\n";
	eval { $session->{handle}->finish };
	return $session->{out} . $session->{err};
}

sub wait_for_checker
{
	my ($what, $wait) = @_;

	return poll_sql($node,
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'saga checker' AND $wait",
		qr/^\d+$/, $what);
}

my $at_gate = "wait_event_type = 'Lock'";
my $no_checker = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga checker'";

is(check(), '1|0|0', 'a check');
is(state('cash'), 'good|0', 'finds nothing');

# ---- the owner's settings

$node->safe_psql('postgres', <<'EOS');
ALTER ROLE app SET default_transaction_read_only = on;
ALTER ROLE app SET default_transaction_isolation = 'serializable';
ALTER ROLE app SET role = 'team';
ALTER ROLE app SET search_path = 'nowhere';
ALTER ROLE app SET statement_timeout = '1ms';
ALTER DATABASE postgres SET session_replication_role = 'replica';
EOS
is(check(), '1|0|0', 'settings of the role do not keep it from being recorded');
$node->safe_psql('postgres', 'ALTER ROLE app RESET ALL; ALTER DATABASE postgres RESET ALL');

# ---- owners who can have no session

$node->safe_psql('postgres', <<'EOS');
SET ROLE team;
SELECT saga.add_invariant('of team', 'SELECT 1 AS one');
EOS
is(check(), $version >= 17 ? '2|1|0' : '2|0|1', 'an owner who may not log in');
is( state('of team'),
	$version >= 17 ? 'violated|1' : 'failed|0|28000|role "team" is not permitted to log in',
	'is told so, unless that is no matter');
$node->safe_psql('postgres', <<'EOS');
ALTER ROLE team LOGIN;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO app, op;
EOS
is(check(), $version >= 17 ? '2|1|1' : '2|0|1', 'an owner who may not connect');
like(state('of team'), qr/failed\|.*\|42501\|permission denied for database "postgres"/, 'likewise');
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO PUBLIC; ALTER ROLE team RENAME TO crew');
check();
like(state('of team'), qr/failed\|.*\|42704\|role "team" does not exist/, 'one who has another name');
is( $node->safe_psql('postgres', "SELECT alert FROM saga.alerts WHERE subject = 'invariant of team' AND alert = 'invariant_failed'"),
	'invariant_failed', 'is somebody to be seen to');
$node->safe_psql('postgres', 'CALL saga.adopt()');
is(check(), '2|1|0', 'until that is known');
is(state('of team'), 'violated|1', 'then the violation is found');
is( () = slurp_file($node->logfile) =~ /LOG:  invariant "of team" is violated/g,
	1, 'and said once in the log');
$node->safe_psql('postgres', "SELECT saga.drop_invariant('of team')");

# ---- queries that do not end

app("SELECT saga.add_invariant('stubborn', 'SELECT 1 AS one WHERE stubborn()', timeout => '100 ms')");
is(check(), '2|0|1', 'a query that swallows its cancel');
is(state('stubborn'), 'failed|0|57014|timed out after 100 ms, and had to be ended with its process',
	'is ended all the same');
is($node->safe_psql('postgres', $no_checker), '0', 'and is gone');
# the next time it comes last, and is not to keep others waiting
app("SELECT saga.add_invariant('quick', 'SELECT 1 AS one WHERE false')");
check();
app("SELECT saga.add_invariant('stubborn', 'SELECT 1 AS one FROM pg_sleep(600)', timeout => '1 hour')");
is($node->safe_psql('postgres', "CALL saga.check_invariants('5 s')"), '3|0|1', 'a slow one has the time that is left');
is($node->safe_psql('postgres', "SELECT string_agg(invariant, ' ' ORDER BY checked_at) FROM saga.invariants"),
	'cash quick stubborn', 'when the others are done');
app("SELECT saga.drop_invariant('stubborn'), saga.drop_invariant('quick')");

# ---- who asks, and goes

shut_gate($node, 'gate', 'LOCK TABLE gate');
my $session = start_session('CALL saga.check_invariants()');
my $checker = wait_for_checker('a check to wait', $at_gate);
is(check(), '0|0|0', 'what somebody checks nobody else checks');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND usename = 'op' AND backend_type = 'client backend'"),
	'0', 'who waits for it holds no snapshot');
is( $node->safe_psql('postgres',
		"SELECT string_agg(locktype, ' ' ORDER BY locktype) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
		  . "WHERE usename = 'op' AND backend_type = 'client backend'"),
	'object virtualxid', 'and no lock but that of the invariant');
is( $node->safe_psql('postgres',
		"SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE usename = 'op' AND backend_type = 'client backend'"),
	'1', 'who waits is cancelled');
poll_sql($node, $no_checker, '0', 'the check to go with it');
like(end_session($session), qr/canceling statement due to user request/, 'and is told so');
$session = start_session("SELECT saga.check_invariant('cash')");
wait_for_checker('a check to wait', $at_gate);
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'op' AND backend_type = 'client backend'");
poll_sql($node, $no_checker, '0', 'the check to go with a session that is terminated');
end_session($session);
$session = start_session('CALL saga.check_invariants()');
$checker = wait_for_checker('a check to wait', $at_gate);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($checker)");
is(end_session($session), "1|0|1\n", 'a check that is terminated has failed');
like(state('cash'), qr/failed\|0\|08006\|/, 'which is kept');
$session = start_session("SELECT saga.check_invariant('cash')");
$checker = wait_for_checker('a check to wait', $at_gate);
my $second = start_session("SELECT saga.check_invariant('cash')");
poll_sql($node,
	"SELECT count(*) FROM pg_stat_activity WHERE usename = 'op' AND wait_event_type = 'Lock' AND backend_type = 'client backend'",
	'1', 'a second one to wait for its turn');
restart_after($node, sub { kill 'KILL', $checker }, 'a checker was killed');
end_session($session);
end_session($second);
open_gate($node, 'gate');
is(check(), '1|0|0', 'a crash leaves nothing behind');
is(state('cash'), 'good|0', 'and the next check is good');

# ---- pausing

sub begin_pay
{
	my ($amount) = @_;

	return app(qq{SELECT saga.begin('pay', '{"account": "cash", "amount": $amount}')});
}

sub status
{
	my ($id, $status) = @_;

	return poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id", $status, "saga $id to be $status");
}

my $paid = begin_pay(150);
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE saga_id = $paid", 'timer', 'the saga to have paid');
my $beginner = start_session(qq{BEGIN; SELECT 'begun ' || saga.begin('pay', '{"account": "cash", "amount": 1}')}, 'app');
$beginner->{handle}->pump until $beginner->{out} =~ /^begun (\d+)$/m;
my $late = $1;
$session = start_session('CALL saga.check_invariants()');
poll_sql($node, "SELECT disabled_by FROM saga.definitions WHERE name = 'pay'", 'cash', 'the definition to be paused');
is(status($paid, 'paused'), 'paused', 'as are those that run');
# it waits for those who are beginning: and dies there
$checker = wait_for_checker('the check', 'true');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($checker)");
is(end_session($session), "1|1|0\n", 'what was found counts');
$session = start_session('CALL saga.check_invariants()');
wait_for_checker('the next check', 'true');
end_session($beginner, 'COMMIT');
is(end_session($session), "1|1|0\n", 'the next check');
is(status($late, 'paused'), 'paused', 'pauses the one whose begin has committed meanwhile');
is( $node->safe_psql('postgres', "SELECT count(*) FROM saga.requests WHERE verb = 'pause'"), '2', 'each once');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT saga.begin('pay', '{"account": "cash", "amount": 1}')},
	extra_params => [ '-U', 'app' ]);
like($err, qr/ERROR:  saga definition "pay" is disabled\nDETAIL:  It was paused when invariant "cash" was violated/,
	'no other one begins');

# ---- a dump

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'dump');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'psql', '-Xqv', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'restore');
my $same = q{SELECT i.invariant, i.state, i.violations, v."row", v.sagas, v.first_seen FROM saga.invariants i JOIN saga.violations v USING (invariant)};
is($node->safe_psql('copy', $same), $node->safe_psql('postgres', $same), 'invariants and violations are carried along');
is($node->safe_psql('copy', 'CALL saga.check_invariants()'), '0|0|0', 'nothing is checked before it is adopted');
$node->safe_psql('copy', 'CALL saga.adopt()');
is($node->safe_psql('copy', 'CALL saga.check_invariants()'), '1|1|0', 'and then it is');
$node->safe_psql('copy', 'UPDATE book SET balance = 1');
is($node->safe_psql('copy', "SELECT saga.check_invariant('cash')"), '0', 'the books add up again');
is( $node->safe_psql('copy', 'SELECT ended_at IS NOT NULL FROM saga.violations'), 't', 'which ends the violation');
$node->safe_psql('postgres', 'CREATE DATABASE clone TEMPLATE copy');
($rc, $out, $err) = $node->psql('clone', 'CALL saga.check_invariants()');
like($err, qr/cannot check invariants in a copy of a database/, 'a clone does not act by itself');
$node->stop;

# ---- without the library preloaded, and without a slot

my $plain = SagaTest->new_node('plain', preload => 0, start => 1, conf => { max_worker_processes => 2 });
$plain->safe_psql('postgres', "CREATE EXTENSION saga; SELECT saga.add_invariant('one', 'SELECT 1 AS one')");
is($plain->safe_psql('postgres', 'CALL saga.check_invariants()'), '1|1|0', 'nothing need be preloaded');
$plain->append_conf('postgresql.conf', 'max_worker_processes = 0');
$plain->restart;
is($plain->safe_psql('postgres', 'CALL saga.check_invariants()'), '1|1|1', 'but it needs a slot');
is( $plain->safe_psql('postgres', "SELECT state, error ->> 'sqlstate', error ->> 'message' FROM saga.invariants"),
	'failed|53400|out of background worker slots', 'and says so');
$plain->stop;

done_testing();
