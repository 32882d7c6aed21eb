# Steps that take too long harm nobody else (P8):
#
#	- one that catches the cancel of its timeout and returns has timed out all
#	  the same; one that catches it for ever loses its process, which is
#	  replaced; the sagas of its batch do not wait for either;
#	- many that hang do not keep a role's other sagas waiting for longer than
#	  a timeout, nor another role's at all: those that have timed out once use
#	  at most workers_per_role - 1 workers;
#	- two sagas that wait for each other's locks both finish.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;
use Time::HiRes qw(time);

my $node = SagaTest->new_node(
	'main',
	start => 1,
	conf  => { 'deadlock_timeout' => '100ms' });

create_bank($node);
$node->safe_psql('postgres', <<'EOS');
CREATE ROLE other LOGIN;
SELECT saga.grant_usage('other');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION hang() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
CREATE FUNCTION swallow(for_ever boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        BEGIN
            PERFORM pg_sleep(600);
        EXCEPTION WHEN query_canceled OR OTHERS THEN
            IF NOT for_ever THEN
                RETURN 'swallowed ' || SQLSTATE;
            END IF;
        END;
    END LOOP;
END $$;
SET ROLE bank;
SELECT saga.define('swallow', saga.step('swallow', 'swallow', timeout => '1 s',
    retry => saga.retry_policy(max_attempts => 2, initial_delay => '100 ms')));
SELECT saga.define('hang', saga.step('hang', 'hang', timeout => '1 s',
    retry => saga.retry_policy(max_attempts => 1000, initial_delay => '100 ms', max_delay => '100 ms')));
SELECT saga.define('quick', saga.step('one', 'nothing'), saga.step('two', 'nothing'));
SET ROLE other;
SELECT saga.define('others_quick', saga.step('one', 'nothing'), saga.step('two', 'nothing'));
EOS

# No clock: those that hang do so for a thousand attempts, so had the others
# waited for them they would not have ended at all.
sub still_hang
{
	my ($name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return cmp_ok($node->safe_psql('postgres',
			"SELECT count(*) FROM saga.sagas WHERE definition = 'hang' "
			  . "AND status IN ('running', 'compensating')"), '>', 0, $name);
}

sub attempts_of
{
	my ($id) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', attempt, outcome, sqlstate), ',' "
		  . "ORDER BY attempt) FROM saga.attempts WHERE saga_id = $id");
}

# ---- swallowed, once

my $others = "DO 'BEGIN PERFORM begin_transfers(30); END'";
my $swallow = sub {
	my ($for_ever) = @_;

	return $node->safe_psql('postgres',
		"SET ROLE bank; BEGIN; $others; "
		  . "SELECT saga.begin('swallow', '{\"for_ever\": $for_ever}'); "
		  . "$others; COMMIT");
};
my $id = $swallow->('false');
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
	'compensated', 'the saga that swallows its timeouts to fail');
is(attempts_of($id), '1 timeout 57014,2 timeout 57014',
	'a step that swallows its timeout has timed out');
wait_all_final($node);
is($node->safe_psql('postgres',
		"SELECT max(s.finished_at) < (SELECT min(a.finished_at) FROM saga.attempts a WHERE a.saga_id = $id) "
		  . "FROM saga.sagas s WHERE s.definition = 'transfer'"),
	't', 'the others of its batch have not waited for its timeout');

# ---- swallowed for ever

$id = $swallow->('true');
my $pid = poll_sql($node,
	"SELECT pid FROM saga.workers WHERE saga_id = $id AND step = 'swallow'",
	qr/^\d+$/, 'the saga that swallows for ever to run');
poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE pid = $pid",
	'0', 'the process that cannot be cancelled to end', timeout => 20);
pass('a step that swallows its timeout for ever loses its process');
$node->safe_psql('postgres', "SET ROLE bank; SELECT begin_transfers(100)");
poll_sql($node,
	"SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL AND id <> $id",
	'0', 'the others of its role to finish');
is(audit($node), '', 'the others are as they should be');
like(attempts_of($id), qr/^1 lost SG012/,
	'... and its attempt is on record');
$node->safe_psql('postgres', "SELECT saga.abandon($id, 'it will not end')");

# ---- many that hang

$node->safe_psql('postgres', <<'EOS');
SET ROLE bank;
SELECT count(saga.begin('hang')) FROM generate_series(1, 12);
EOS
poll_sql($node,
	"SELECT count(*) FROM saga.attempts WHERE outcome = 'timeout' "
	  . "AND saga_id IN (SELECT saga_id FROM saga.sagas WHERE definition = 'hang')",
	qr/^([2-9]|1.)$/, 'sagas to hang');

foreach my $round (1 .. 3)
{
	$node->safe_psql('postgres',
		"SET ROLE other; SELECT count(saga.begin('others_quick')) FROM generate_series(1, 200)");
	$node->safe_psql('postgres',
		"SET ROLE bank; SELECT count(saga.begin('quick')) FROM generate_series(1, 200)");
	poll_sql($node,
		"SELECT count(*) FROM saga.sagas WHERE definition IN ('quick', 'others_quick') "
		  . "AND status = 'completed'",
		$round * 400, 'the sagas that do not hang to finish');
	still_hang("round $round: the others of the role and of another one end meanwhile");
}

# All have timed out once: from now on one worker of the two is free of them.
poll_sql($node,
	"SELECT count(*) FROM saga.sagas WHERE definition = 'hang' AND suspect",
	'12', 'all that hang to have timed out once');
my $most = 0;
for (1 .. 20)
{
	my $n = $node->safe_psql('postgres',
		"SELECT count(*) FROM saga.workers WHERE process = 'worker' AND step = 'hang'");
	$most = $n if $n > $most;
}
is($most, 1, 'suspects use all workers of a role but one');
$node->safe_psql('postgres',
	"SET ROLE bank; SELECT count(saga.begin('quick')) FROM generate_series(1, 200)");
poll_sql($node,
	"SELECT count(*) FROM saga.sagas WHERE definition = 'quick' AND status = 'completed'",
	'800', 'the sagas that do not hang to finish');
still_hang("... so that the role's other sagas do not wait");

# With one worker for the role suspects run after all others.
$node->safe_psql('postgres', 'ALTER SYSTEM SET saga.workers_per_role = 1');
$node->reload;
$node->safe_psql('postgres',
	"SET ROLE bank; SELECT count(saga.begin('quick')) FROM generate_series(1, 200)");
poll_sql($node,
	"SELECT count(*) FROM saga.sagas WHERE definition = 'quick' AND status = 'completed'",
	'1000', 'the sagas that do not hang to finish');
still_hang("one worker: suspects run after all others");
$node->safe_psql('postgres',
	"SELECT count(saga.abandon(saga_id, 'test')) FROM saga.sagas WHERE definition = 'hang'");
$node->safe_psql('postgres', 'ALTER SYSTEM RESET saga.workers_per_role');
$node->reload;
wait_all_final($node);

# ---- deadlocks between workers

$node->safe_psql('postgres', <<'EOS');
SET ROLE bank;
CREATE FUNCTION cross(first int, second int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE account SET balance = balance + 1 WHERE id = first;
    PERFORM pg_sleep(0.01);
    UPDATE account SET balance = balance - 1 WHERE id = second;
END $$;
SELECT saga.define('cross', saga.step('cross', 'cross',
    retry => saga.retry_policy(max_attempts => 0, initial_delay => '10 ms', max_delay => '50 ms')));
SELECT count(saga.begin('cross', jsonb_build_object('first', 1 + i % 2, 'second', 2 - i % 2)))
FROM generate_series(1, 50) i;
EOS
wait_all_final($node);
is( $node->safe_psql(
		'postgres',
		"SELECT status, count(*) FROM saga.sagas WHERE definition = 'cross' GROUP BY 1"),
	'completed|50',
	'sagas that lock each other out all finish');
is($node->safe_psql('postgres', 'SELECT sum(balance) - 1000 * count(*) FROM account'),
	'0', '... each with its whole effect');

$node->stop;
done_testing();
