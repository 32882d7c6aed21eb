
=pod

=head1 NAME

SagaPrometheus - the real exporter and the real Prometheus, for the TAP tests

=head1 SYNOPSIS

  use SagaPrometheus;

  my $exporter = start_exporter($node, 'prometheus', "$monitoring/queries.yaml");
  my $scrape = scrape($exporter);
  print $scrape->{value}{'saga_begun_total{"definition":"order"}'};

  my $prometheus = start_prometheus($config);
  my $result = query($prometheus, 'sum(saga_sagas)');

=head1 DESCRIPTION

Each runs on a port of its own, and ends with the test.

=cut

package SagaPrometheus;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use HTTP::Tiny;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

our @EXPORT = qw(start_exporter start_prometheus scrape sql_metrics series_name
  query active_alerts get_json);

my $http = HTTP::Tiny->new(timeout => 30);
my $json = JSON::PP->new->utf8->canonical;
my @started;

END
{
	my $status = $?;

	eval { $_->kill_kill(grace => 2) } foreach @started;
	$? = $status;
}

# Start a program and wait until it answers at that path.
sub start_program
{
	my ($name, $port, $path, $command, %environment) = @_;
	my $log = PostgreSQL::Test::Utils::tempdir() . "/$name.log";
	local @ENV{ keys %environment } = values %environment;
	my $handle = IPC::Run::start($command, '<', \undef, '>>', $log, '2>&1');
	my $self = { url => "http://127.0.0.1:$port", log => $log };
	my $deadline = time + 60;

	push @started, $handle;
	while (!$http->get("$self->{url}$path")->{success})
	{
		croak "$name does not answer:\n" . slurp_file($log) if time >= $deadline;
		usleep(50_000);
	}
	return $self;
}

=pod

=head2 start_exporter($node, $role, $queries, @options)

prometheus-postgres-exporter for database postgres of the node, as that role.

=cut

sub start_exporter
{
	my ($node, $role, $queries, @options) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();

	return start_program('exporter', $port, '/',
		[ 'prometheus-postgres-exporter', "--extend.query-path=$queries",
			"--web.listen-address=127.0.0.1:$port", @options ],
		DATA_SOURCE_NAME => "user=$role host=" . $node->host . ' port=' . $node->port
		  . ' dbname=postgres sslmode=disable');
}

=pod

=head2 start_prometheus($config)

Prometheus, with that configuration.

=cut

sub start_prometheus
{
	my ($config) = @_;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $directory = PostgreSQL::Test::Utils::tempdir();

	append_to_file("$directory/prometheus.yml", $config);
	return start_program('prometheus', $port, '/-/ready',
		[ 'prometheus', "--config.file=$directory/prometheus.yml",
			"--storage.tsdb.path=$directory/data", "--web.listen-address=127.0.0.1:$port" ]);
}

=pod

=head2 series_name($name, $labels)

One string for a metric and its labels, a hash.

=cut

sub series_name
{
	my ($name, $labels) = @_;

	return $name . $json->encode($labels);
}

# Labels as the exposition format has them.
sub parse_labels
{
	my ($text) = @_;
	my %labels;

	while ($text =~ /\G,?(\w+)="((?:[^"\\]|\\.)*)"/gc)
	{
		my ($label, $value) = ($1, $2);

		croak "label $label twice in $text" if exists $labels{$label};
		$value =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ge;
		$labels{$label} = $value;
	}
	croak "cannot read the labels $text" if (pos($text) || 0) < length $text;
	return \%labels;
}

=pod

=head2 scrape($exporter)

What the exporter has of saga now: B<text>, all of it; and by name of the
metric B<type> and B<help>, by series B<value>.  The labels B<server> and
B<datname> are left out of the series; B<label> has the names of all labels,
B<datname> the values of that one.

=cut

sub scrape
{
	my ($exporter) = @_;
	my $response = $http->get("$exporter->{url}/metrics");
	my %scrape = (text => '');

	croak "the exporter says $response->{status}: $response->{content}"
	  unless $response->{success};
	foreach my $line (grep { /^(?:# \w+ )?saga_/ } split /\n/, $response->{content})
	{
		utf8::decode($line);
		$scrape{text} .= "$line\n";
		if ($line =~ /^# (HELP|TYPE) (\w+) (.*)$/)
		{
			$scrape{ lc $1 }{$2} = $3;
		}
		elsif ($line =~ /^(\w+)\{(.*)\} (\S+)$/)
		{
			my ($name, $labels, $value) = ($1, parse_labels($2), $3);

			$scrape{label}{$_} = 1 foreach keys %$labels;
			delete $labels->{server};
			$scrape{datname}{ delete $labels->{datname} } = 1;
			$scrape{value}{ series_name($name, $labels) } = $value;
		}
		else
		{
			croak "cannot read $line";
		}
	}
	return \%scrape;
}

=pod

=head2 sql_metrics($node)

The same by view saga.metrics.

=cut

sub sql_metrics
{
	my ($node) = @_;
	my $rows = $node->safe_psql('postgres',
		'SELECT jsonb_build_object(\'name\', name, \'labels\', labels, \'value\', value, '
		  . '\'type\', type, \'help\', help) FROM saga.metrics');
	my %metrics;

	foreach my $row (map { $json->decode($_) } split /\n/, $rows)
	{
		my $series = series_name($row->{name}, $row->{labels});

		croak "$series is there twice" if exists $metrics{value}{$series};
		$metrics{value}{$series} = $row->{value};
		$metrics{type}{ $row->{name} } = $row->{type};
		$metrics{help}{ $row->{name} } = $row->{help};
	}
	return \%metrics;
}

=pod

=head2 get_json($program, $path, %parameters)

What it answers.

=head2 query($prometheus, $expression)

The samples of an instant query: a list of hashes with B<metric>, the labels,
and B<value>.

=head2 active_alerts($prometheus)

The state, pending or firing, of each alert that is active, by its name.

=cut

sub get_json
{
	my ($program, $path, %parameters) = @_;
	my $response = $http->get("$program->{url}$path?" . $http->www_form_urlencode(\%parameters));
	my $answer = eval { $json->decode($response->{content}) };

	croak "$path: $response->{status} $response->{content}"
	  unless $answer && $answer->{status} eq 'success';
	return $answer->{data};
}

sub query
{
	my ($prometheus, $expression) = @_;

	return map { { metric => $_->{metric}, value => $_->{value}[1] } }
	  @{ get_json($prometheus, '/api/v1/query', query => $expression)->{result} };
}

sub active_alerts
{
	my ($prometheus) = @_;
	my %state;

	$state{ $_->{labels}{alertname} } = $_->{state}
	  foreach @{ get_json($prometheus, '/api/v1/alerts')->{alerts} };
	return \%state;
}

1;
