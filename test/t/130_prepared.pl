# A saga that was begun in a transaction that is prepared exists exactly if
# that transaction is committed: after a clean restart, after a crash between
# PREPARE and COMMIT PREPARED, and after a crash right after it.  It then begins
# at once, not at the next look at everything.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', start => 1);

create_bank($node);

# Prepare a transaction that begins so many sagas.
sub prepare
{
	my ($name, $n) = @_;

	$node->safe_psql('postgres',
		"SET ROLE bank; BEGIN; SELECT begin_transfers($n); PREPARE TRANSACTION '$name'");
	return;
}

sub count_final
{
	return "SELECT count(*) FILTER (WHERE due_at IS NULL) || ' of ' || count(*) FROM saga.saga";
}

sub commit_prepared
{
	my ($name) = @_;

	$node->safe_psql('postgres', "SET ROLE bank; COMMIT PREPARED '$name'");
	return;
}

prepare('now', 3);
is($node->safe_psql('postgres', count_final()), '0 of 0', 'prepared: not there yet');
commit_prepared('now');
poll_sql($node, count_final(), '3 of 3',
	'the sagas to run after COMMIT PREPARED', timeout => 20);
pass('COMMIT PREPARED: they run at once');

prepare('gone', 3);
$node->safe_psql('postgres', "SET ROLE bank; ROLLBACK PREPARED 'gone'");
is($node->safe_psql('postgres', count_final()), '3 of 3', 'ROLLBACK PREPARED: nothing');

# more than a transaction's notes have room for
foreach my $mode ('fast', 'immediate')
{
	my $n = $mode eq 'fast' ? 3 : 303;

	prepare('commit',   300);
	prepare('rollback', 300);
	$node->stop($mode);
	$node->start;
	poll_sql($node,
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'saga coordinator'",
		'0', 'the first coordinator to have left', timeout => 30);
	is($node->safe_psql('postgres', count_final()), "$n of $n",
		"$mode shutdown while prepared: not there yet");
	commit_prepared('commit');
	$n += 300;
	poll_sql($node, count_final(), "$n of $n",
		"the sagas to run after $mode shutdown and COMMIT PREPARED", timeout => 20);
	pass("$mode shutdown, COMMIT PREPARED: they run at once");
	$node->safe_psql('postgres',
		"SET ROLE bank; ROLLBACK PREPARED 'rollback'");
	is($node->safe_psql('postgres', count_final()), "$n of $n",
		"$mode shutdown, ROLLBACK PREPARED: nothing");
}

# crash right after the commit
prepare('commit', 300);
commit_prepared('commit');
$node->stop('immediate');
$node->start;
poll_sql($node, count_final(), '903 of 903', 'the sagas to run after the crash',
	timeout => 20);
pass('crash right after COMMIT PREPARED: they run');

# A second session of the key's owner waits for the prepared transaction.
$node->safe_psql('postgres', <<'EOS');
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
SET ROLE bank;
SELECT saga.define('keyed', saga.step('nothing', 'nothing'));
BEGIN;
SELECT saga.begin('keyed', key => 'one');
PREPARE TRANSACTION 'keyed';
EOS
$node->restart;
my ($rc, $out, $err) = $node->psql('postgres',
	"SET ROLE bank; SET statement_timeout = '200ms'; SELECT saga.begin('keyed', key => 'one')");
like($err, qr/statement timeout/, 'a key of a prepared saga is taken');
commit_prepared('keyed');
is( $node->safe_psql(
		'postgres',
		"SET ROLE bank; SELECT saga.begin('keyed', key => 'one') = "
		  . "(SELECT saga_id FROM saga.sagas WHERE key = 'one')"),
	't',
	'... and after COMMIT PREPARED the saga is that one');

wait_all_final($node);
is(audit($node), '', 'nothing lost, nothing twice');
$node->stop;
done_testing();
