
=pod

=head1 NAME

SagaTest - nodes with saga preloaded, for the TAP tests

=head1 SYNOPSIS

  use FindBin;
  use lib "$FindBin::RealBin/../lib";
  use SagaTest;

  # init'ed and configured; started because we say so
  my $node = SagaTest->new_node('main', start => 1,
	  conf => { 'saga.batch_size' => 1 });
  $node->safe_psql('postgres', 'CREATE EXTENSION saga');

  poll_sql($node, 'SELECT count(*) FROM saga.workers', '0',
	  'every worker to leave');

  my @pids = backend_pids($node, 'saga worker');

=head1 DESCRIPTION

"make check" stages the extension in a scratch directory and names a file
with the settings that let a server find it there in SAGA_EXTRA_CONF.
Without that variable ("make installcheck") the installed one is used.

=cut

package SagaTest;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(poll_sql backend_pids wait_all_final restart_after
  wait_for_server_log shut_gate open_gate start_coordinator create_bank audit
  start_clients end_clients);

=pod

=head2 SagaTest->new_node($name, %options)

Return a PostgreSQL::Test::Cluster node that is init'ed and configured.
Options: B<conf>, a hash of settings, which go last; B<preload> (default 1),
0 to leave saga out of shared_preload_libraries; B<start>, 1 to start it;
B<allows_streaming>, B<has_archiving> and B<extra>, as for init().

Unlike a plain node it restarts after a crash, and has 32 worker processes
and 50 connections also where allows_streaming is set.

=cut

sub new_node
{
	my ($class, $name, %opt) = @_;
	my $conf    = delete $opt{conf} || {};
	my $start   = delete $opt{start};
	my $preload = delete $opt{preload};
	my $node    = PostgreSQL::Test::Cluster->new($name);

	$node->init(%opt);

	if ($ENV{SAGA_EXTRA_CONF})
	{
		$node->append_conf('postgresql.conf',
			slurp_file($ENV{SAGA_EXTRA_CONF}));
	}
	$node->append_conf('postgresql.conf', <<'EOF');
max_worker_processes = 32
max_connections = 50
max_prepared_transactions = 10
shared_buffers = 16MB
restart_after_crash = on
autovacuum_naptime = 1h
EOF
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'saga'")
	  unless defined $preload && !$preload;
	foreach my $key (sort keys %$conf)
	{
		(my $value = $conf->{$key}) =~ s/'/''/g;
		$node->append_conf('postgresql.conf', "$key = '$value'");
	}

	$node->start if $start;
	return $node;
}

=pod

=head2 poll_sql($node, $sql, $expected, $what, %options)

Run $sql until its output is $expected (a string, or a qr//), and return
that output.  A server that is restarting is no error, only not yet the
answer.  After B<timeout> seconds (default: timeout_default of
PostgreSQL::Test::Utils, but 60 at most) die and say what was waited for.
B<dbname> is 'postgres' unless given.

=cut

sub poll_sql
{
	my ($node, $sql, $expected, $what, %opt) = @_;
	my $dbname  = $opt{dbname} || 'postgres';
	my $default = $PostgreSQL::Test::Utils::timeout_default;
	my $timeout = $opt{timeout}
	  || ((defined $default && $default < 60) ? $default : 60);
	my $deadline = time() + $timeout;
	my ($rc, $stdout, $stderr);

	$what = $sql unless defined $what;
	while (1)
	{
		($stdout, $stderr) = ('', '');
		$rc = eval {
			$node->psql(
				$dbname, $sql,
				stdout        => \$stdout,
				stderr        => \$stderr,
				on_error_die  => 0,
				on_error_stop => 1,
				timeout       => $timeout);
		};
		if (defined $rc && $rc == 0)
		{
			return $stdout
			  if ref($expected) ? $stdout =~ $expected : $stdout eq $expected;
		}
		last if time() >= $deadline;
		usleep(50_000);
	}

	croak "timed out after $timeout s waiting for $what\n"
	  . "  query:    $sql\n"
	  . "  expected: $expected\n"
	  . "  got:      $stdout\n"
	  . ($stderr ne '' ? "  stderr:   $stderr\n" : '');
}

=pod

=head2 backend_pids($node, $backend_type, $dbname)

The pids of the processes of that type ('saga launcher', 'saga coordinator',
'saga worker'), the oldest first; those of one database if $dbname is given.

=cut

sub backend_pids
{
	my ($node, $type, $dbname) = @_;
	my $where = defined $dbname ? "AND datname = '$dbname'" : '';

	return split /\n/,
	  $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = '$type' $where "
		  . "ORDER BY backend_start, pid");
}

=pod

=head2 wait_all_final($node, %options)

Wait until every saga is final.  Options as for poll_sql().

=cut

sub wait_all_final
{
	my ($node, %opt) = @_;

	# the sagas that are not final are those that have a time to be looked at
	poll_sql($node,
		"SELECT COALESCE(string_agg(n || ' ' || status, ', '), 'none') FROM "
		  . "(SELECT status, count(*) AS n FROM saga.saga "
		  . " WHERE due_at IS NOT NULL GROUP BY status ORDER BY status) s",
		'none', 'every saga to become final', %opt);
	return;
}

=pod

=head2 restart_after($node, $code, $what)

Run $code, which is to crash the server, and wait until the server has
restarted by itself and takes connections again.

=cut

sub restart_after
{
	my ($node, $code, $what) = @_;
	my $offset = -s $node->logfile;

	$code->();
	wait_for_server_log($node, qr/all server processes terminated; reinitializing/,
		$offset, "the server to restart after $what");
	poll_sql($node, 'SELECT 1', '1', "connections after $what");
	return;
}

=pod

=head2 wait_for_server_log($node, $pattern, $offset, $what)

Wait until the server's log has $pattern after $offset.

=cut

sub wait_for_server_log
{
	my ($node, $pattern, $offset, $what) = @_;
	my $deadline = time() + 60;

	while (slurp_file($node->logfile, $offset) !~ $pattern)
	{
		croak "timed out waiting for $what" if time() >= $deadline;
		usleep(50_000);
	}
	return;
}

=pod

=head2 shut_gate($node, $name, $sql), open_gate($node, $name)

Hold the locks that $sql takes, in a prepared transaction: so they outlive
a crash of the server.

=cut

sub shut_gate
{
	my ($node, $name, $sql) = @_;

	$node->safe_psql('postgres', "BEGIN; $sql; PREPARE TRANSACTION '$name'");
	return;
}

sub open_gate
{
	my ($node, $name) = @_;

	$node->safe_psql('postgres', "ROLLBACK PREPARED '$name'");
	return;
}

=pod

=head2 start_coordinator($node)

Have a coordinator started, and return its pid.

=cut

sub start_coordinator
{
	my ($node) = @_;

	# it asks for a look at the whole database
	$node->safe_psql('postgres', 'CALL saga.adopt()');
	return poll_sql($node,
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'saga coordinator'",
		qr/^\d+$/, 'a coordinator to start');
}

=pod

=head2 create_bank($node), audit($node)

Accounts, and a saga C<transfer> of three steps between two of them, of a role
C<bank>.  Each operation leaves a marker that is unique, so that a second
effect of it is an error, and changes a balance.  Its SQL function
begin_transfers(n) begins so many of them in one transaction; one of ten fails
at its second step, one of ten at its third.  A row of C<request> is written
beside each.

audit() returns what is wrong once all of them are final: nothing, if every
promise was kept.

=cut

sub create_bank
{
	my ($node) = @_;

	$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION IF NOT EXISTS saga;
CREATE ROLE bank LOGIN;
GRANT CREATE ON SCHEMA public TO bank;
SELECT saga.grant_usage('bank');
SET ROLE bank;
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT i, 1000 FROM generate_series(1, 500) i;
CREATE TABLE effect (saga_id bigint, step text, operation text,
    PRIMARY KEY (saga_id, step, operation));
CREATE TABLE request (saga_id bigint PRIMARY KEY, source int, target int,
    amount int, fail_at int);

CREATE FUNCTION move(context jsonb, who int, delta int) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO effect VALUES ((context ->> 'saga_id')::bigint,
        context ->> 'step', context ->> 'operation');
    UPDATE account SET balance = balance + delta WHERE id = who;
$$;
CREATE FUNCTION debit(context jsonb) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    i constant jsonb := context -> 'input';
BEGIN
    PERFORM move(context, (i ->> 'source')::int, - (i ->> 'amount')::int);
    RETURN i ->> 'amount';
END $$;
CREATE FUNCTION undo_debit(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i constant jsonb := context -> 'input';
BEGIN
    PERFORM move(context, (i ->> 'source')::int, (i ->> 'amount')::int);
END $$;
CREATE FUNCTION credit(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i constant jsonb := context -> 'input';
BEGIN
    PERFORM move(context, (i ->> 'target')::int, (i ->> 'amount')::int);
    IF i ->> 'fail_at' = '2' THEN
        RAISE EXCEPTION 'account % is closed', i ->> 'target';
    END IF;
END $$;
CREATE FUNCTION undo_credit(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i constant jsonb := context -> 'input';
BEGIN
    PERFORM move(context, (i ->> 'target')::int, - (i ->> 'amount')::int);
END $$;
CREATE FUNCTION enter(context jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i constant jsonb := context -> 'input';
BEGIN
    PERFORM move(context, NULL, NULL);
    IF i ->> 'fail_at' = '3' THEN
        RAISE EXCEPTION 'the books are closed';
    END IF;
END $$;
SELECT saga.define('transfer',
    saga.step('debit', 'debit', compensation => 'undo_debit'),
    saga.step('credit', 'credit', compensation => 'undo_credit'),
    saga.step('enter', 'enter'));

CREATE FUNCTION begin_transfers(n int) RETURNS SETOF bigint LANGUAGE sql AS $$
    WITH r AS MATERIALIZED (
        SELECT 1 + (random() * 498)::int AS source, 1 + (random() * 99)::int AS amount,
            CASE (random() * 10)::int WHEN 2 THEN 2 WHEN 3 THEN 3 ELSE 0 END AS fail_at
        FROM generate_series(1, n))
    INSERT INTO request
    SELECT saga.begin('transfer', jsonb_build_object('source', source,
            'target', source + 1, 'amount', amount, 'fail_at', fail_at)),
        source, source + 1, amount, fail_at
    FROM r RETURNING saga_id
$$;

RESET ROLE;
CREATE FUNCTION audit() RETURNS TABLE (problem text, n bigint)
LANGUAGE sql AS $$
    WITH s AS (
        SELECT saga_id, g.definition, g.status, r.source, r.fail_at
        FROM saga.sagas g FULL JOIN request r USING (saga_id)
        WHERE g.definition = 'transfer' OR g.definition IS NULL
    ), t AS (
        SELECT p.saga_id, p.step, p.operation::text
        FROM saga.steps p JOIN s USING (saga_id)
        WHERE p.status = 'succeeded'
    ), expected AS (
        SELECT a.id, 1000 + COALESCE(sum(CASE a.id WHEN r.source THEN - r.amount
                                         ELSE r.amount END), 0) AS balance
        FROM account a LEFT JOIN
            (SELECT r.* FROM request r JOIN saga.sagas g USING (saga_id)
             WHERE g.status = 'completed') r ON a.id IN (r.source, r.target)
        GROUP BY a.id
    ), problems (problem, n) AS (
        SELECT 'sagas without a request', count(*) FROM s WHERE source IS NULL
        UNION ALL
        SELECT 'requests without a saga', count(*) FROM s WHERE status IS NULL
        UNION ALL
        SELECT 'sagas that are not final', count(*) FROM s
        WHERE status NOT IN ('completed', 'compensated')
        UNION ALL
        SELECT 'sagas with the wrong end', count(*) FROM s
        WHERE (status = 'completed') <> (fail_at = 0)
        UNION ALL
        SELECT 'effects without a record', count(*)
        FROM (TABLE effect EXCEPT SELECT * FROM t) x
        UNION ALL
        SELECT 'records without an effect', count(*)
        FROM (SELECT * FROM t EXCEPT TABLE effect) x
        UNION ALL
        SELECT 'effects of the wrong number', count(*)
        FROM (SELECT s.saga_id FROM s LEFT JOIN effect e USING (saga_id)
              GROUP BY s.saga_id, s.fail_at
              HAVING count(e.*) <> CASE s.fail_at WHEN 0 THEN 3 WHEN 2 THEN 2 ELSE 4 END) x
        UNION ALL
        SELECT 'second effects', count(*) FROM saga.attempts WHERE sqlstate = '23505'
        UNION ALL
        SELECT 'accounts with a wrong balance', count(*)
        FROM account a JOIN expected e USING (id) WHERE a.balance <> e.balance
        UNION ALL
        SELECT 'money that was made or lost', (sum(balance) - 1000 * count(*))::bigint FROM account
    )
    SELECT * FROM problems p WHERE p.n <> 0
$$;
EOS
	return;
}

sub audit
{
	my ($node) = @_;

	return $node->safe_psql('postgres', 'SELECT * FROM audit()');
}

=pod

=head2 start_clients($node, $clients, $n), end_clients($load)

Start clients that begin transfers, one per transaction, at most $n each, and
wait for their end: that they have begun them all, or that the server has
gone.  end_clients() returns the ids of the sagas whose commit was
acknowledged.

=cut

sub start_clients
{
	my ($node, $clients, $n) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/transfers.sql";
	my @load;

	append_to_file($file, "SELECT begin_transfers(1);\n" x $n);
	for (1 .. $clients)
	{
		my %client = (out => '', err => '');

		$client{handle} = IPC::Run::start(
			[
				$node->installed_command('psql'), '-XAtq', '-U', 'bank',
				'-d', $node->connstr('postgres'), '-f', $file
			],
			'<', \undef, '>', \$client{out}, '2>', \$client{err});
		push @load, \%client;
	}
	return \@load;
}

sub end_clients
{
	my ($load) = @_;
	my @ids;

	foreach my $client (@$load)
	{
		eval { $client->{handle}->finish; };
		push @ids, grep { /^\d+$/ } split /\n/, $client->{out};
	}
	return @ids;
}

1;
