
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
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(poll_sql backend_pids);

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

1;
