# saga.participate() in a server that does not preload the library, which is all
# that the other side of a remote step needs: what was done is known after a
# crash, and what was not finished is not; a transaction that is prepared is
# waited for.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use PostgreSQL::Test::Utils;
use SagaTest;
use Test::More;

my $node = SagaTest->new_node('main', preload => 0, start => 1);
my $coordinator = 'c0c0c0c0-0000-0000-0000-000000000000';

# One call, as SQL.
sub call
{
	my ($n, $operation, $function, %opt) = @_;
	my $saga = sprintf('aaaaaaaa-0000-0000-0000-%012d', $n);
	my $begun_at = defined $opt{begun_at} ? "'$opt{begun_at}'" : 'NULL';

	return "SELECT outcome, result FROM saga.participate('$coordinator', '$saga', 'ship', "
	  . "'$operation', '$function', '{}', begun_at => $begun_at)";
}

# As the role that another database would connect as, in a session of its own.
sub as_remote
{
	my ($sql) = @_;

	my ($rc, $stdout, $stderr) = $node->psql('postgres', "SET ROLE wh; $sql");
	return $rc == 0 ? $stdout : $stderr;
}

# Begin a call in the background; its output will be in $$out.
sub start_call
{
	my ($call, $out) = @_;

	return IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'SET ROLE wh', '-c', $call ],
		'<', \undef, '>', $out, '2>&1');
}

sub wait_for_sleep
{
	poll_sql($node, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
		'1', 'the function to hang');
	return;
}

is($node->safe_psql('postgres', 'SHOW shared_preload_libraries'), '', 'nothing is preloaded');
$node->psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE ROLE wh;
SELECT saga.grant_remote('wh');
CREATE SCHEMA AUTHORIZATION wh;
SET ROLE wh;
CREATE TABLE wh.effect (n serial, what text);
CREATE FUNCTION wh.ship(context jsonb) RETURNS text LANGUAGE sql AS
	$$ INSERT INTO wh.effect (what) VALUES ('ship') RETURNING 'parcel ' || n $$;
CREATE FUNCTION wh.unship(context jsonb) RETURNS void LANGUAGE sql AS
	$$ INSERT INTO wh.effect (what) VALUES ('unship') $$;
CREATE FUNCTION wh.later(context jsonb) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN PERFORM saga.retry_later('5 s', 'not yet'); EXCEPTION WHEN OTHERS THEN END $$;
CREATE FUNCTION wh.hang(context jsonb) RETURNS text LANGUAGE plpgsql AS
	$$ BEGIN INSERT INTO wh.effect (what) VALUES ('hang'); PERFORM pg_sleep(600); RETURN 'hung'; END $$;
EOS

# ---- it works

is(as_remote(call(1, 'action', 'wh.ship')), 'done|"parcel 1"', 'done');
is(as_remote(call(1, 'action', 'wh.ship')), 'repeated|"parcel 1"', 'repeated, in another session');
is(as_remote(call(2, 'compensation', 'wh.unship')), 'skipped|', 'a compensation that comes first is skipped');
like(as_remote(call(2, 'action', 'wh.ship')), qr/came after its compensation/, '... and its action refused');
like(as_remote(call(3, 'action', 'wh.later')), qr/ERROR:  not yet/, 'saga.retry_later(), swallowed');
is(as_remote("SELECT saga.forget_barriers('$coordinator', '2026-01-01', '{}')"), '0', 'nothing to forget');
like(as_remote(call(4, 'action', 'wh.ship', begun_at => '2025-12-31')), qr/cannot tell whether/, '... but refused');

# ---- a crash

# The function is running when its server crashes: nothing of it is left.
my $said    = '';
my $hanging = start_call(call(5, 'action', 'wh.hang'), \$said);
wait_for_sleep();
$node->stop('immediate');
$hanging->finish;
$node->start;
is(as_remote(call(1, 'action', 'wh.ship')), 'repeated|"parcel 1"', 'what was done before a crash is known after it');
like(as_remote(call(5, 'action', 'wh.ship')), qr/^done\|"parcel \d+"$/, 'what was not finished is done');
like(as_remote(call(2, 'action', 'wh.ship')), qr/came after its compensation/, 'what is void stays so');
like(as_remote(call(4, 'action', 'wh.ship', begun_at => '2025-12-31')), qr/cannot tell whether/, 'what is forgotten stays so');

# ---- prepared

# Run a call that waits for a transaction, end that, and return what the call
# said.
sub call_that_waits
{
	my ($call, $end) = @_;
	my $out     = '';
	my $waiting = start_call($call, \$out);

	poll_sql($node, "SELECT count(*) FROM pg_locks WHERE NOT granted", '1', 'the call to wait');
	$node->safe_psql('postgres', $end);
	$waiting->finish;
	chomp $out;
	return $out;
}

foreach my $crash (0, 1)
{
	my $what = $crash ? ', after a crash' : '';
	my $n = 10 + 10 * $crash;

	$node->safe_psql('postgres', "SET ROLE wh; BEGIN; " . call($n + $_, 'action', 'wh.ship')
		  . "; PREPARE TRANSACTION 'p$_'")
	  foreach (1, 2);
	if ($crash)
	{
		$node->stop('immediate');
		$node->start;
	}
	like(call_that_waits(call($n + 1, 'action', 'wh.ship'), "COMMIT PREPARED 'p1'"),
		qr/^repeated\|"parcel \d+"$/, "prepared$what: a copy waits, and repeats what was committed");
	is(call_that_waits(call($n + 2, 'compensation', 'wh.unship'), "ROLLBACK PREPARED 'p2'"),
		'skipped|', "prepared$what: a compensation waits, and skips what was rolled back");
}

# ---- a session that is killed

$hanging = start_call(call(40, 'action', 'wh.hang'), \$said);
wait_for_sleep();
is(call_that_waits(call(40, 'compensation', 'wh.unship'),
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"),
	'skipped|', 'a compensation waits for a running action, and skips it when that ends without a commit');
$hanging->finish;
like(as_remote(call(40, 'action', 'wh.ship')), qr/came after its compensation/, '... which is refused from then on');
is($node->safe_psql('postgres', "SELECT count(*) FROM wh.effect WHERE what = 'hang'"), '0', '... and has left nothing');

# ---- a copy by pg_dump knows what it has

$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$PostgreSQL::Test::Utils::tmp_check/copy.dump", $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('copy'), '-1', "$PostgreSQL::Test::Utils::tmp_check/copy.dump" ], 'pg_restore');
is($node->safe_psql('copy', "SET ROLE wh; " . call(1, 'action', 'wh.ship')),
	'repeated|"parcel 1"', 'restored: what was done is known');
my ($rc, $out, $err) = $node->psql('copy', "SET ROLE wh; " . call(4, 'action', 'wh.ship', begun_at => '2025-12-31'));
like($err, qr/cannot tell whether/, '... and what is forgotten, too');

$node->stop;
done_testing();
