# A hot standby shows queues to those who may see them on the primary, just now:
# a grant that is taken back there counts no more here.  What only the shared
# memory of the primary knows is not known, and nothing of a queue is changed.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Cluster;
use SagaTest;
use Test::More;

my $primary = SagaTest->new_node('primary', start => 1, allows_streaming => 1);
my $standby = PostgreSQL::Test::Cluster->new('standby');

$primary->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE app LOGIN;
CREATE ROLE hand LOGIN;
CREATE ROLE stranger LOGIN;
SELECT saga.grant_usage('app'), saga.grant_usage('stranger');
SET ROLE app;
SELECT saga.define('job', saga.external_step('do', 'work'));
SELECT saga.create_queue('other');
SELECT saga.grant_participant('hand', 'work');
SELECT saga.begin('job') FROM generate_series(1, 3);
EOS
poll_sql($primary, "SELECT ready FROM saga.queues WHERE queue = 'work'", '3', 'the tasks');
$primary->backup('backup');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->safe_psql('postgres', "SET ROLE hand; SELECT id FROM saga.claim_tasks('work', 1, '1 hour', 'hand')");
$primary->wait_for_catchup($standby, 'replay');

# ---- what is seen

my $queues = 'SELECT queue, owner, paused, ready, oldest_ready, claimed, oldest_claimed, next_lease_end, breaker FROM saga.queues ORDER BY 1';
my $tasks = 'SELECT * FROM saga.tasks ORDER BY id';
foreach my $role ('app', 'hand')
{
	is($standby->safe_psql('postgres', "SET ROLE $role; $queues; $tasks"),
		$primary->safe_psql('postgres', "SET ROLE $role; $queues; $tasks"), "$role sees on the standby what it sees on the primary");
}
is($standby->safe_psql('postgres', 'SET ROLE hand; SELECT queue, ready, claimed FROM saga.queues'), 'work|2|1',
	'a participant sees its queue');
is($standby->safe_psql('postgres', 'SELECT DISTINCT offered, completed, failed, expired, rate, participants FROM saga.queues'), '0|0|0|0|0|0',
	'what is counted is not known there');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM saga.participants'), '0', '... nor who took part');
is($standby->safe_psql('postgres', 'SET ROLE stranger; SELECT (SELECT count(*) FROM saga.queues), (SELECT count(*) FROM saga.tasks)'), '0|0',
	'others see nothing');

# ---- what is not done there

foreach my $command ("saga.create_queue('new')", "saga.drop_queue('other')",
	"saga.configure_queue('work', paused => true)", "saga.reset_breaker('work')",
	"saga.grant_participant('stranger', 'work')", "saga.revoke_offer('work', 'stranger')")
{
	my ($function) = $command =~ /^([\w.]+)/;
	my ($rc, $out, $err) = $standby->psql('postgres', "SET ROLE app; SELECT $command");

	like($err, qr/cannot execute \Q$function\E\(\) (in a read-only transaction|during recovery)/, "$function() says why it does nothing");
}

# ---- rights

$primary->safe_psql('postgres', q(SET ROLE app; SELECT saga.revoke_participant('hand', 'work'); SELECT saga.grant_participant('hand', 'other')));
$primary->wait_for_catchup($standby, 'replay');
is($standby->safe_psql('postgres', 'SET ROLE hand; SELECT queue FROM saga.queues'), 'other', 'a grant that was taken back counts no more');
is($standby->safe_psql('postgres', 'SET ROLE hand; SELECT (SELECT count(*) FROM saga.tasks), (SELECT count(*) FROM saga.participants)'), '0|0',
	'... nor are the tasks of that queue seen');

$primary->stop;
$standby->stop;
done_testing();
