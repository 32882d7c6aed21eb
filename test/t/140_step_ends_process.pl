# A step that ends its own process: by pg_terminate_backend(), and by a crash
# that takes the whole server with it.  Each attempt is counted as lost; after
# three of them the saga is stuck, whatever its retry policy says; the sagas of
# its batch, and 1,000 others, finish; and after the first time it runs in a
# transaction of its own.  A person can have it tried again.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

create_bank($node);
$node->safe_psql('postgres', <<'EOS');
-- How many sagas does this transaction have in hand?  It has locked their rows.
CREATE FUNCTION report(what text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    RAISE LOG '% in a transaction with % sagas', what,
        (SELECT count(*) FROM saga.saga WHERE xmax::text = txid_current()::text);
END $$;
CREATE TABLE switch (deadly boolean);
INSERT INTO switch VALUES (true);
GRANT SELECT ON switch TO bank;
CREATE FUNCTION leave() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT deadly FROM switch) THEN
        PERFORM report('leave');
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(60);
    END IF;
END $$;
CREATE FUNCTION crash() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF (SELECT deadly FROM switch) THEN
        PERFORM report('crash');
        EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -KILL ' || pg_backend_pid());
        PERFORM pg_sleep(60);
    END IF;
END $$;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
SET ROLE bank;
SELECT saga.define('leave', saga.step('before', 'nothing', compensation => 'nothing'),
    saga.step('leave', 'leave', retry => saga.retry_policy(max_attempts => 0)));
SELECT saga.define('crash', saga.step('before', 'nothing', compensation => 'nothing'),
    saga.step('crash', 'crash', retry => saga.retry_policy(max_attempts => 1)));
SELECT saga.define('crash_back', saga.step('back', 'nothing', compensation => 'crash'),
    saga.step('fails', 'saga.fail(text,text)', retry => saga.retry_policy(max_attempts => 1)));
EOS

# Begin one amid others, so that it is in their batch; wait until it is stuck
# and all others are final.
sub run_amid
{
	my ($definition, $n) = @_;
	my $half = $n / 2;
	my $others = "DO 'BEGIN PERFORM begin_transfers($half); END'";
	my $id     = $node->safe_psql('postgres',
		"SET ROLE bank; BEGIN; $others; "
		  . "SELECT saga.begin('$definition', '{\"reason\": \"wanted\"}'); "
		  . "$others; COMMIT");

	poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		'stuck', "saga \"$definition\" to be stuck");
	poll_sql($node,
		"SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL AND status <> 'stuck'",
		'0', 'all others to finish');
	return $id;
}

sub check
{
	my ($definition, $id, $n, $offset) = @_;
	my $log = slurp_file($node->logfile, $offset);
	my ($step, $operation) =
	  $definition eq 'crash_back' ? ('back', 'compensation') : ($definition, 'action');
	my @sagas = $log =~ /LOG:  (?:leave|crash) in a transaction with (\d+) sagas/g;

	is( $node->safe_psql(
			'postgres',
			"SELECT string_agg(concat_ws(' ', step, operation, attempt, outcome, "
			  . "passing, sqlstate), ',' ORDER BY attempt) FROM saga.attempts "
			  . "WHERE saga_id = $id AND outcome <> 'failed'"),
		join(',', map { "$step $operation $_ lost t SG012" } 1 .. 3),
		"$definition: three attempts are lost");
	is( $node->safe_psql(
			'postgres',
			"SELECT attempts, crashes FROM saga.steps WHERE saga_id = $id "
			  . "AND step = '$step' AND operation = '$operation'"),
		'3|3',
		"$definition: ... and then no more");
	is(scalar(@sagas), 3, "$definition: it has run three times");
	cmp_ok($sagas[0], '>', 1, "$definition: at first in a batch ($sagas[0])");
	is("@sagas[1, 2]", '1 1', "$definition: then in a transaction of its own");
	is( $node->safe_psql(
			'postgres',
			"SELECT count(*) FROM saga.attempts WHERE outcome = 'lost' AND saga_id <> $id "
			  . "AND NOT EXISTS (SELECT FROM saga.sagas s WHERE s.saga_id = attempts.saga_id "
			  . "AND s.definition <> 'transfer')"),
		'0',
		"$definition: no other saga is blamed");
	is(audit($node), '', "$definition: the others are as they should be");
	return;
}

foreach my $definition ('leave', 'crash', 'crash_back')
{
	my $offset = -s $node->logfile;
	my $n      = $definition eq 'crash' ? 1000 : 100;
	my $id     = run_amid($definition, $n);
	my $restarts = () =
	  slurp_file($node->logfile, $offset) =~ /reinitializing/g;

	is($restarts, $definition eq 'leave' ? 0 : 3,
		"$definition: so often the server restarted");
	check($definition, $id, $n, $offset);
	is( $node->safe_psql(
			'postgres', "SELECT step FROM saga.stuck WHERE saga_id = $id"),
		$definition eq 'crash_back' ? 'back' : $definition,
		"$definition: a view shows it");

	# somebody has mended the step
	$node->safe_psql('postgres', 'UPDATE switch SET deadly = false');
	$node->safe_psql('postgres', "SELECT saga.retry($id, 'it is mended')");
	poll_sql(
		$node,
		"SELECT status FROM saga.sagas WHERE saga_id = $id",
		$definition eq 'crash_back' ? 'compensated' : 'completed',
		"saga \"$definition\" to finish after saga.retry()");
	pass("$definition: saga.retry() has it tried again");
	$node->safe_psql('postgres', 'UPDATE switch SET deadly = true');
}

$node->stop;
done_testing();
