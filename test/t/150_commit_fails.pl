# A step whose COMMIT fails, which no subtransaction can catch: the batch that
# it shared is done again without harm to anybody, and alone it is an attempt
# of that saga, with the error of the commit.  And a serializable step that
# finds out at its end that it cannot be: it is retried.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

create_bank($node);

# That these two tables do not go together is found out when one of them is
# emptied, at the commit.
$node->safe_psql('postgres', <<'EOS');
SET ROLE bank;
CREATE TABLE mended (mended boolean);
CREATE FUNCTION doom(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM move(context, 1, 1);
    IF NOT EXISTS (TABLE mended) THEN
        CREATE TEMP TABLE a (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
        CREATE TEMP TABLE b (id int REFERENCES a);
    END IF;
END $$;
CREATE FUNCTION undo_doom(context jsonb) RETURNS void LANGUAGE sql AS
    'SELECT move(context, 1, -1)';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
-- fails for good
SELECT saga.define('doomed', saga.step('first', 'nothing', compensation => 'nothing'),
    saga.step('doom', 'doom'));
-- fails for now, as often as its policy says
SELECT saga.define('retried', saga.step('first', 'nothing', compensation => 'nothing'),
    saga.step('doom', 'doom', retry => saga.retry_policy(max_attempts => 3,
        initial_delay => '100 ms', retry_on => ARRAY['0A000'])));
-- cannot go back
SELECT saga.define('stuck', saga.step('first', 'nothing', compensation => 'doom',
        compensation_retry => saga.retry_policy(max_attempts => 2, initial_delay => '100 ms')),
    saga.step('fails', 'saga.fail(text,text)'));
EOS

# Amid others, so that they are in one batch.
sub run_amid
{
	my ($definition, $status) = @_;
	my $others = "DO 'BEGIN PERFORM begin_transfers(30); END'";
	my $id     = $node->safe_psql('postgres',
		"SET ROLE bank; BEGIN; $others; "
		  . "SELECT saga.begin('$definition', '{\"reason\": \"wanted\"}'); "
		  . "$others; COMMIT");

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$status, "saga \"$definition\" to be $status");
	poll_sql($node,
		"SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL AND status <> 'stuck'",
		'0', 'all others to finish');
	return $id;
}

sub attempts_of
{
	my ($id) = @_;

	return $node->safe_psql('postgres',
		"SELECT string_agg(concat_ws(' ', step, operation, attempt, outcome, sqlstate), ',' "
		  . "ORDER BY started_at, attempt) FROM saga.attempts "
		  . "WHERE saga_id = $id AND step <> 'fails'");
}

sub audit_others
{
	my ($what) = @_;

	# what the doomed ones did was undone with the failed commit
	is( $node->safe_psql('postgres',
			"SELECT * FROM audit() WHERE problem <> 'money that was made or lost'"),
		'',
		"$what: the others are as they should be");
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM saga.attempts JOIN saga.sagas USING (saga_id) "
			  . "WHERE definition = 'transfer' AND sqlstate <> 'P0001'"),
		'0',
		"$what: nobody else has failed with it");
	return;
}

my $id = run_amid('doomed', 'compensated');
is(attempts_of($id), 'doom action 1 failed 0A000',
	'a failed commit is a failed attempt');
like(
	$node->safe_psql('postgres',
		"SELECT message || ': ' || detail FROM saga.attempts WHERE saga_id = $id"),
	qr/unsupported ON COMMIT and foreign key combination: Table/,
	'... with the whole error');
audit_others('doomed');

$id = run_amid('retried', 'compensated');
is( attempts_of($id),
	join(',', map { "doom action $_ failed 0A000" } 1 .. 3),
	'a failed commit is retried by its policy');
audit_others('retried');

$id = run_amid('stuck', 'stuck');
is( attempts_of($id),
	join(',', map { "first compensation $_ failed 0A000" } 1 .. 2),
	'a compensation whose commit fails gets stuck');
audit_others('stuck');
$node->safe_psql('postgres', 'INSERT INTO mended VALUES (true)');
$node->safe_psql('postgres', "SELECT saga.retry($id)");
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
	'compensated', 'the stuck saga to be compensated');
is( $node->safe_psql(
		'postgres', "SELECT count(*) FROM effect WHERE saga_id = $id"),
	'1',
	'... and once it is mended it has its effect once');

# ---- serializable: each reads what the other writes

$node->safe_psql('postgres', <<'EOS');
SET ROLE bank;
CREATE TABLE seen (id int PRIMARY KEY, n int);
INSERT INTO seen VALUES (1, 0), (2, 0);
CREATE FUNCTION skew() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    result int;
BEGIN
    SELECT n INTO result FROM seen WHERE id = 1;
    UPDATE seen SET n = n + 1 WHERE id = 2;
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN result;
END $$;
SELECT saga.define('skew', saga.step('skew', 'skew', isolation => 'serializable',
    retry => saga.retry_policy(initial_delay => '100 ms')));
EOS
shut_gate($node, 'gate', 'SELECT pg_advisory_xact_lock(1)');
$id = $node->safe_psql('postgres', "SET ROLE bank; SELECT saga.begin('skew')");
poll_sql($node,
	"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'",
	'1', 'the serializable step to wait');
$node->safe_psql('postgres',
	"BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT n FROM seen WHERE id = 2; "
	  . "UPDATE seen SET n = n + 1 WHERE id = 1; COMMIT");
open_gate($node, 'gate');
poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
	'completed', 'the serializable saga to complete');
# the engine's own statement may find it out, and then it is not counted
like(attempts_of($id), qr/^(skew action 1 failed 40001)?$/,
	'a step that cannot be serialized is tried again');
is( $node->safe_psql(
		'postgres', "SELECT saga.result($id), (SELECT n FROM seen WHERE id = 2)"),
	'1|1',
	'... and the next one sees what the other wrote, and writes once');

$node->stop;
done_testing();
