# A participant looks for work on a hot standby, and claims and answers on the
# primary.  A claim or an answer on the standby is an error of PostgreSQL's own.
# When the standby is promoted, tasks that were ready or claimed are there: what
# was claimed on the old primary is answered on the new one, under its lease, and
# by nobody else; a lease that ended in between is over.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $primary = SagaTest->new_node('first', start => 1, allows_streaming => 1);
my $standby = PostgreSQL::Test::Cluster->new('second');

$primary->safe_psql('postgres', <<'EOF');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
CREATE ROLE participant LOGIN;
SELECT saga.grant_usage('app');
GRANT CREATE ON SCHEMA public TO app;
SET ROLE app;
CREATE TABLE effect (saga_id bigint, what text, PRIMARY KEY (saga_id, what));
GRANT INSERT ON effect TO participant;
SELECT saga.define('d',
    saga.external_step('work', 'q', compensation => 'undo', retry => saga.retry_policy(5, '10 ms')));
SELECT saga.grant_participant('participant', 'q');
EOF

# As the participant, which is all that it may.
sub ask
{
	my ($node, $sql) = @_;

	return $node->safe_psql('postgres', "SET ROLE participant; $sql");
}

sub fails
{
	my ($node, $sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres',
		"\\set VERBOSITY verbose\nSET ROLE participant; $sql");

	return $err;
}

sub begin
{
	my ($n) = @_;

	return $primary->safe_psql('postgres', "SET ROLE app; SELECT saga.begin('d') FROM generate_series(1, $n)");
}

$primary->backup('backup');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_standby_names = '*'");
$primary->safe_psql('postgres', "ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
$primary->reload;
poll_sql($primary, 'SELECT sync_state FROM pg_stat_replication', 'sync', 'the standby to be synchronous');

# ---- looking there, working here

begin(5);
poll_sql($standby, "SET ROLE participant; SELECT count(*) FROM saga.tasks WHERE status = 'ready' AND queue = 'q'",
	'5', 'the tasks to be seen on the standby');
pass('tasks are seen on the standby');
is(ask($standby, "SELECT queue, ready, claimed, oldest_ready <= now(), paused FROM saga.queues"),
	'q|5|0|t|f', '... and the queue');
my @claimed = split /\n/, ask($primary, "SELECT id || '|' || lease_token FROM saga.claim_tasks('q', 2, '1 hour', 'here')");
is(scalar(@claimed), 2, 'the primary gives tasks');
is(ask($standby, "SELECT ready, claimed FROM saga.queues WHERE queue = 'q'"),
	'3|2', '... which the standby sees');
is(ask($standby, "SELECT DISTINCT participant FROM saga.tasks WHERE status = 'claimed'"),
	'here', '... and by whom');
my ($id, $token) = split /\|/, shift @claimed;

foreach my $sql (
	"SELECT * FROM saga.claim_tasks('q')",
	"SELECT saga.complete_task($id, '$token')",
	"SELECT saga.complete_tasks(ARRAY[$id], ARRAY['$token']::uuid[], skip_lost => true)",
	"SELECT saga.fail_task($id, '$token', 'no')",
	"SELECT saga.extend_lease($id, '$token')",
	"SELECT saga.release_task($id, '$token')")
{
	my ($name) = $sql =~ /saga\.(\w+)/;

	like(fails($standby, $sql),
		qr/^psql:<stdin>:\d+: ERROR:  25006: cannot execute .* (in a read-only transaction|during recovery)/m,
		"$name() on the standby raises PostgreSQL's own error");
}
is(ask($standby, "SELECT count(*) FROM saga.tasks WHERE status = 'claimed'"),
	'2', '... and changes nothing');
is(ask($primary, "SELECT saga.complete_task($id, '$token', '1')"),
	't', 'the primary takes the answer');
poll_sql($standby, "SET ROLE app; SELECT count(*) FROM saga.sagas WHERE status = 'completed'",
	'1', 'the end of the saga to be seen on the standby');

# ---- promotion

# one is claimed for long, one for a moment that passes while nobody is there
my ($lost, $lost_token, $lost_saga) = split /\|/,
  ask($primary, "SELECT id || '|' || lease_token || '|' || saga_id FROM saga.claim_tasks('q', 1, '2 s', 'here')");
my ($kept, $kept_token) = split /\|/, shift @claimed;
# ... and one answer is on its way when the primary goes: acknowledged, and so there
my ($answered, $answered_token, $answered_saga) = split /\|/,
  ask($primary, "SELECT id || '|' || lease_token || '|' || saga_id FROM saga.claim_tasks('q', 1, '1 hour', 'here')");
ask($primary, "BEGIN; INSERT INTO effect VALUES ($answered_saga, 'answered'); "
	  . "SELECT saga.complete_task($answered, '$answered_token', '\"before\"'); COMMIT");
$primary->stop('immediate');
poll_sql($standby, "SELECT lease_until < clock_timestamp() FROM saga.tasks WHERE id = $lost",
	't', 'the lease to end');
is(ask($standby, "SELECT string_agg(status, ',' ORDER BY id) FROM saga.tasks WHERE id IN ($kept, $lost)"),
	'claimed,claimed', 'nothing happens on the standby while its primary is gone');
$standby->append_conf('postgresql.auto.conf', "synchronous_standby_names = ''");
$standby->append_conf('postgresql.auto.conf', "synchronous_commit = 'on'");
$standby->reload;
$standby->promote;

poll_sql($standby, "SET ROLE participant; SELECT status FROM saga.tasks WHERE id = $lost",
	'expired', 'the lease that has ended to be noticed');
like(fails($standby, "BEGIN; INSERT INTO effect VALUES ($lost_saga, 'late'); SELECT saga.complete_task($lost, '$lost_token'); COMMIT"),
	qr/SG030/, 'an answer under a lease that has ended meanwhile is refused');
is(ask($standby, "SELECT status, participant FROM saga.tasks WHERE id = $kept"),
	'claimed|here', 'what was claimed is claimed still');
is(ask($standby, "SELECT lease_until > now(), cancel_requested FROM saga.extend_lease($kept, '$kept_token', '1 hour', '\"at it\"')"),
	't|f', '... its lease can be extended');
is(ask($standby, "SELECT saga.complete_task($answered, '$answered_token', '\"before\"')"),
	'f', 'an answer that was given before may be given again');
like(fails($standby, "SELECT saga.complete_task($answered, '$answered_token', '\"after\"')"),
	qr/SG031/, '... but not another one');

# what is left: the one that nobody has claimed, and the one that was lost
poll_sql($standby, "SELECT count(*) FROM saga.tasks WHERE status = 'ready'", '2', 'the lost one to be offered again');
is( ask($standby, "SELECT attempt, count(saga.complete_task(id, lease_token, '\"there\"')) "
			. "FROM saga.claim_tasks('q', 10, '1 hour', 'there') GROUP BY 1 ORDER BY 1"),
	"1|1\n2|1", 'ready tasks are claimed and answered on the promoted server');
ask($standby, "SELECT saga.complete_task($kept, '$kept_token', '\"kept\"')");
wait_all_final($standby);
is( $standby->safe_psql('postgres',
		"SELECT result, count(*) FROM saga.sagas GROUP BY 1 ORDER BY result::text COLLATE \"C\""),
	"\"before\"|1\n\"kept\"|1\n\"there\"|2\n1|1",
	'each saga has the answer that counts');
is($standby->safe_psql('postgres', 'SELECT saga_id, what FROM effect'),
	"$answered_saga|answered", '... and the effects are those of answers that count');
is($standby->safe_psql('postgres', "SELECT status, count(*) FROM saga.sagas GROUP BY 1"),
	'completed|5', 'all sagas have completed');
is($standby->safe_psql('postgres', 'SELECT saga_id, sqlstate FROM saga.attempts'),
	"$lost_saga|SG033", 'nothing has failed but the lease that has ended');

$standby->stop;
done_testing();
