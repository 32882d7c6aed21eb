
=pod

=head1 NAME

SagaRemote - several servers, for the tests of remote steps

=head1 SYNOPSIS

  use SagaRemote;

  my $orders = new_coordinator('orders');
  my ($payments, $proxy) = new_remote('payments');

  connect_remote($orders, 'payments', $proxy->port);
  define_steps($orders);
  my $id = begin_saga($orders, 'remote', '{"gate": 7}');

=head1 DESCRIPTION

A coordinator preloads saga; its sagas are those of role C<app>.  A remote has
the extension, unless it is told to do without, and does not preload it; it
listens on 127.0.0.1, where it asks for passwords.  Its functions are those of
role C<shop>, in a schema of that name.  All that goes there goes through a
proxy.

=cut

package SagaRemote;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaProxy;
use SagaTest;

our @EXPORT = qw(new_coordinator new_remote listen_with_passwords
  connect_remote password_of as_app begin_saga poll_saga attempts_of courier_pid
  effects_of);

=pod

=head2 new_coordinator($name, %options)

A node with saga, dblink and the role C<app>, started.  Options as for
SagaTest->new_node(), and B<encoding> (UTF8).

=cut

sub new_coordinator
{
	my ($name, %opt) = @_;
	my $encoding = delete $opt{encoding} || 'UTF8';
	my $node     = SagaTest->new_node($name, start => 1,
		extra => [ '--encoding', $encoding, '--locale=C' ], %opt);

	$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION saga;
CREATE EXTENSION dblink;
CREATE ROLE app LOGIN;
SELECT saga.grant_usage('app');
GRANT CREATE ON SCHEMA public TO app;
EOS
	return $node;
}

=pod

=head2 password_of($name)

The password of role C<shop> on the server of that name.  It is seen nowhere
else, so it can be looked for.

=cut

sub password_of
{
	my ($name) = @_;

	return "secret-of-$name-'\\ 4711";
}

=pod

=head2 listen_with_passwords($node)

Have a node that is not running listen on 127.0.0.1 and ask for passwords
there.

=cut

sub listen_with_passwords
{
	my ($node) = @_;

	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
	unlink $node->data_dir . '/pg_hba.conf';
	$node->append_conf('pg_hba.conf', <<'EOS');
local all         all                trust
local replication all                trust
host  all         all   127.0.0.1/32 scram-sha-256
EOS
	return;
}

=pod

=head2 new_remote($name, %options)

A node and a proxy to it.  Options as for SagaTest->new_node(); B<saga>, 0 to
leave the extension out; B<preload>, 1 to preload it; B<encoding> (UTF8).

Its functions take the context.  C<shop.act> is for every operation: it writes a
row into C<shop.effect>, waits for an advisory lock if the input names one as
C<gate> (and an operation, C<gate_of>, unless that is the action), fails if the
input's C<fail> is the name of its step, and returns the number of its row.

=cut

sub new_remote
{
	my ($name, %opt) = @_;
	my $saga = exists $opt{saga} ? delete $opt{saga}    : 1;
	my $preload = exists $opt{preload} ? delete $opt{preload} : 0;
	my $encoding = delete $opt{encoding} || 'UTF8';
	my $node = SagaTest->new_node($name, preload => $preload,
		extra => [ '--encoding', $encoding, '--locale=C' ], %opt);
	(my $password = password_of($name)) =~ s/'/''/g;

	listen_with_passwords($node);
	$node->start;
	$node->safe_psql('postgres', "CREATE ROLE shop LOGIN PASSWORD '$password'; CREATE SCHEMA shop AUTHORIZATION shop");
	$node->safe_psql('postgres', "CREATE EXTENSION saga; SELECT saga.grant_remote('shop')") if $saga;
	$node->safe_psql('postgres', <<'EOS');
SET ROLE shop;
-- What was done; nothing here keeps it from being done twice.
CREATE TABLE shop.effect (
    n bigint GENERATED ALWAYS AS IDENTITY,
    saga_id bigint NOT NULL,
    step text NOT NULL,
    element int,
    operation text NOT NULL,
    attempt int NOT NULL,
    key text NOT NULL,
    unknown boolean NOT NULL);
CREATE FUNCTION shop.write_effect(context jsonb) RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO shop.effect (saga_id, step, element, operation, attempt, key, unknown)
    VALUES ((context ->> 'saga_id')::bigint, context ->> 'step', (context ->> 'element')::int,
        context ->> 'operation', (context ->> 'attempt')::int, context ->> 'idempotency_key',
        coalesce((context ->> 'outcome_unknown')::boolean, false))
    RETURNING n
$$;
CREATE FUNCTION shop.act(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    input constant jsonb := context -> 'input';
    n constant bigint := shop.write_effect(context);
BEGIN
    IF input ? 'gate' AND context ->> 'operation' = coalesce(input ->> 'gate_of', 'action') THEN
        PERFORM pg_advisory_xact_lock_shared((input ->> 'gate')::bigint);
    END IF;
    IF context ->> 'operation' = 'action' AND input ->> 'fail' = context ->> 'step' THEN
        RAISE EXCEPTION 'sold out' USING ERRCODE = 'P0001';
    END IF;
    RETURN jsonb_build_object('n', n);
END $$;
EOS
	return ($node, SagaProxy->start($node->port));
}

=pod

=head2 connect_remote($coordinator, $name, $port, %options)

Make a foreign server of that name and a user mapping for C<app>.  Options:
B<of>, the name of the node if it is another one; B<wrapper>, for another one
than dblink_fdw; B<options>, more of the server's; B<password>, B<user>,
B<dbname>.

=cut

sub quote
{
	my ($value) = @_;

	$value =~ s/'/''/g;
	return "'$value'";
}

sub connect_remote
{
	my ($node, $name, $port, %opt) = @_;
	my $wrapper = $opt{wrapper} || 'dblink_fdw';
	my $dbname  = quote($opt{dbname} || 'postgres');
	my $more    = $opt{options} ? ", $opt{options}" : '';
	my $user    = quote($opt{user} || 'shop');
	my $password =
	  quote(defined $opt{password} ? $opt{password} : password_of($opt{of} || $name));

	# backslashes in a value are libpq's business nowhere: it is no string of options
	$node->safe_psql('postgres', <<"EOS");
CREATE SERVER $name FOREIGN DATA WRAPPER $wrapper
    OPTIONS (host '127.0.0.1', port '$port', dbname $dbname$more);
GRANT USAGE ON FOREIGN SERVER $name TO app;
CREATE USER MAPPING FOR app SERVER $name OPTIONS (user $user, password $password);
EOS
	return;
}

=pod

=head2 as_app($node, $sql)

What it returns to C<app>.

=head2 begin_saga($node, $definition, $input)

Begin one, of C<app>; its id.

=head2 poll_saga($node, $id, $status, $what)

Wait until a saga has that status.

=head2 attempts_of($node, $id)

Attempts that did not succeed, one a line: step, operation, number, outcome,
SQLSTATE.

=head2 courier_pid($node)

The process that talks to other servers; waits until there is one.

=head2 effects_of($remote, $id, $operation)

How many effects of that operation of that saga are there.

=cut

sub as_app
{
	my ($node, $sql, %opt) = @_;

	return $node->safe_psql('postgres', $sql, extra_params => [ '-U', 'app' ], %opt);
}

sub begin_saga
{
	my ($node, $definition, $input) = @_;

	return as_app($node, "SELECT saga.begin('$definition', " . quote(defined $input ? $input : '{}') . ')');
}

sub poll_saga
{
	my ($node, $id, $status, $what) = @_;

	return poll_sql($node, "SELECT status FROM saga.sagas WHERE saga_id = $id",
		$status, defined $what ? $what : "saga $id to be $status");
}

sub attempts_of
{
	my ($node, $id) = @_;

	return $node->safe_psql('postgres',
		"SELECT concat_ws(' ', step, operation, attempt, outcome, sqlstate) FROM saga.attempts "
		  . "WHERE saga_id = $id ORDER BY started_at, attempt");
}

sub courier_pid
{
	my ($node) = @_;

	return poll_sql($node,
		"SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'saga courier'",
		qr/^\d+$/, 'a courier');
}

sub effects_of
{
	my ($node, $id, $operation) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*) FROM shop.effect WHERE saga_id = $id AND operation = '$operation'");
}

1;
