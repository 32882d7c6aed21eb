# monitoring/ as its README says, with the real prometheus-postgres-exporter and
# the real Prometheus, while sagas run: the role sees numbers and nothing else;
# every metric is scraped, with the value, type and help that view saga.metrics
# has, whatever names people have given to things; nothing is there twice; there
# is no label by saga or key.  Counters only grow, but for a crash and a reset,
# and after these all of it goes on.  The rules are valid, tested, and fire; what
# rules and dashboard ask for is there.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaParticipant;
use SagaPrometheus;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

need_program('prometheus-postgres-exporter', 'prometheus-postgres-exporter --version');
need_program('prometheus', 'prometheus --version && promtool --version');

my $monitoring = "$FindBin::RealBin/../../monitoring";
my $readme = "$monitoring/README.md";

sub poll
{
	my ($what, $code) = @_;
	my $deadline = time + 60;
	my $result;

	until ($result = $code->())
	{
		die "timed out waiting for $what\n" if time >= $deadline;
		usleep(200_000);
	}
	return $result;
}

# ---- the files by themselves

command_ok([ 'promtool', 'check', 'rules', "$monitoring/alerts.yml" ], 'the rules are valid');
command_ok([ 'promtool', 'test', 'rules', "$monitoring/alerts_test.yml" ], 'the rules pass their tests');

my $rules = slurp_file("$monitoring/alerts.yml");
my $rule_tests = slurp_file("$monitoring/alerts_test.yml");
my @alerts = $rules =~ /- alert: (\w+)/g;

cmp_ok(scalar @alerts, '>', 10, 'there are rules');
is(join(' ', grep { $rule_tests !~ /alertname: $_\n\s+exp_alerts/ } @alerts), '', 'a test has each of them fire');
is(join(' ', grep { $rules !~ /runbook: doc\/runbook\.md#\L$_\E\n/ } @alerts), '', 'each names its section of the runbook');
my $runbook = slurp_file("$FindBin::RealBin/../../doc/runbook.md");
is(join(' ', grep { $runbook !~ /^#+ $_$/m } @alerts), '', '... which is there');

# ---- a server with names that nobody should use

my $node = SagaTest->new_node('main', extra => [ '--encoding', 'UTF8', '--locale=C' ],
	conf => { 'saga.workers_per_role' => 2, 'saga.worker_idle_timeout' => '1h' });

listen_with_passwords($node);
$node->start;
create_bank($node);

# with a newline where one is allowed
my $bad_name  = "he said \"x\" \\ {a=\"b\", } \$1 <b> %s \${y} {{.}} \xC3\xA9\xF0\x9F\x92\xA9 'q' ";
my $bad_label = "$bad_name.";
(my $sql_name = $bad_label) =~ s/'/''/g;
(my $identifier = $bad_label) =~ s/"/""/g;
my $port = $node->port;

$node->safe_psql('postgres', <<"EOS");
CREATE EXTENSION dblink;
CREATE ROLE shop LOGIN PASSWORD 'not this';
CREATE ROLE "no\n""body" LOGIN;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO bank;
SELECT saga.grant_usage('no\n"body'), saga.grant_usage('shop');
CREATE DATABASE elsewhere;
CREATE SERVER "there" FOREIGN DATA WRAPPER dblink_fdw
    OPTIONS (host '127.0.0.1', port '$port', dbname 'elsewhere');
CREATE SERVER "$identifier" FOREIGN DATA WRAPPER dblink_fdw
    OPTIONS (host '127.0.0.1', port '$port', dbname 'nowhere');
GRANT USAGE ON FOREIGN SERVER "there", "$identifier" TO bank;
CREATE USER MAPPING FOR bank SERVER "there" OPTIONS (user 'shop', password 'not this');
CREATE USER MAPPING FOR bank SERVER "$identifier" OPTIONS (user 'shop', password 'not this');
SET ROLE bank;
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION no() RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN RAISE EXCEPTION 'message-that-nobody-sees'; END \$\$;
SELECT saga.define('$sql_name', saga.step('$sql_name', 'nothing'));
SELECT saga.define('sticks', saga.step('a', 'nothing', compensation => 'no',
    compensation_retry => saga.retry_policy(max_attempts => 2, initial_delay => '1 ms')), saga.step('b', 'no'));
SELECT saga.define('off', saga.step('a', 'nothing'));
SELECT saga.configure('off', enabled => false);
SELECT saga.create_queue('$sql_name'), saga.create_queue('breaks');
SELECT saga.configure_queue('breaks', breaker_failures => 1, breaker_pause => '1 day', breaker_max_pause => '1 day');
SELECT saga.define('send', saga.external_step('send', queue => '$sql_name'));
SELECT saga.define('break', saga.external_step('send', queue => 'breaks',
    retry => saga.retry_policy(max_attempts => 1)));
SELECT saga.define('far', saga.remote_step('act', 'there', 'shop.act'));
SELECT saga.define('farther', saga.remote_step('act', '$sql_name', 'shop.act'));
SELECT saga.add_invariant('$sql_name', 'SELECT 1 AS wrong', definition => 'transfer');
SELECT saga.add_invariant('fails', 'SELECT 1 / (random() - random() - 10)::int / 0');
SET ROLE "no\n""body";
SELECT saga.define('nobodys', saga.step('a', 'pg_catalog.now'));
EOS
$node->safe_psql('elsewhere', <<'EOS');
CREATE SCHEMA shop AUTHORIZATION shop;
SET ROLE shop;
CREATE FUNCTION shop.act(context jsonb) RETURNS void LANGUAGE sql AS '';
EOS

# ---- the role, as README.md says

my ($role_sql) = code_blocks($readme, 'sql');

$node->safe_psql('postgres', $role_sql);
$node->safe_psql('postgres', 'GRANT CONNECT ON DATABASE postgres TO prometheus');

my @as_prometheus = (extra_params => [ '-U', 'prometheus' ]);

is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_auth_members WHERE member = \'prometheus\'::regrole'),
	'1', 'the role is a member of one role');
is($node->safe_psql('postgres', 'SELECT count(*) > 40 FROM saga.metrics', @as_prometheus), 't', '... and has the metrics');

foreach my $object (qw(sagas steps attempts requests stuck tasks saga task message violation server_role spans messages))
{
	my ($rc, undef, $err) = $node->psql('postgres', "SELECT * FROM saga.$object", @as_prometheus);

	like($err, qr/permission denied/, "... but not $object");
}
{
	my (undef, undef, $err) = $node->psql('postgres', 'SELECT count(*) FROM saga.metrics', extra_params => [ '-U', 'bank' ]);

	like($err, qr/permission denied/, 'who is not has no metrics');
	(undef, undef, $err) = $node->psql('postgres', 'SELECT FROM saga.metrics_raw(\'moods\')', @as_prometheus);
	like($err, qr/unrecognized part of the metrics: "moods"/, 'a part that is none');
}

# ---- under load

my $exporter = start_exporter($node, 'prometheus', "$monitoring/queries.yaml",
	'--disable-default-metrics', '--disable-settings-metrics');
my ($config) = code_blocks($readme, 'yaml');

(my $target = $exporter->{url}) =~ s/^http:\/\///;
$config =~ s/localhost:9187/$target/ or die 'no target in the README';
$config =~ s/^  - alerts\.yml/  - $monitoring\/alerts.yml/m or die 'no rules in the README';
my $prometheus = start_prometheus("global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\n$config");

# A rate needs a sample from before: of attempts that failed, too.
$node->safe_psql('postgres', 'SET ROLE bank; SELECT begin_transfers(60)');
poll('a first sample', sub { query($prometheus, 'count(saga_step_attempts_total{outcome="failed"} > 0)') });

my $load = start_clients($node, 2, 370);

$node->safe_psql('postgres', <<"EOS");
SET ROLE bank;
SELECT saga.begin('$sql_name', '{"payload": "payload-that-nobody-sees"}', key => 'key-that-nobody-sees');
SELECT saga.begin('sticks');
SELECT saga.begin('send', key => 'send-' || i) FROM generate_series(1, 6) i;
SELECT saga.begin('break') FROM generate_series(1, 2);
SELECT saga.begin('far') FROM generate_series(1, 3);
SELECT saga.begin('farther');
CALL saga.check_invariants();
SET ROLE "no\n""body";
SELECT saga.begin('nobodys');
EOS
poll_sql($node, 'SELECT sum(ready) FROM saga.queues', 8, 'the tasks');
$node->safe_psql('postgres', <<"EOS");
SET ROLE bank;
SELECT CASE c.n WHEN 1 THEN saga.complete_task(c.id, c.lease_token) WHEN 2 THEN saga.fail_task(c.id, c.lease_token, 'no', retryable => false) END
FROM (SELECT t.*, row_number() OVER () AS n FROM saga.claim_tasks('$sql_name', 3, '1 h', 'participant-that-nobody-sees') t) c;
SELECT saga.fail_task(t.id, t.lease_token, 'no', retryable => false) FROM saga.claim_tasks('breaks', 1) t;
EOS

# counters grow, and what was scraped twice is there twice
my $before;

for my $n (1 .. 5)
{
	my $scrape = scrape($exporter);

	if ($before)
	{
		my @smaller = grep {
			/^(\w+_total)\{/ && (!exists $scrape->{value}{$_} || $scrape->{value}{$_} < $before->{value}{$_})
		} keys %{ $before->{value} };

		is(join("\n", @smaller), '', "under load: counters do not shrink ($n)");
	}
	$before = $scrape;
	usleep(300_000);
}
is(scalar(end_clients($load)), 740, 'the clients were not disturbed');

my $idle = <<"EOS";
SELECT count(*) FROM saga.saga WHERE due_at IS NOT NULL
    AND status = 'running' AND (waiting_for IS NULL OR waiting_for NOT IN ('participant', 'remote database'))
    AND role_name = 'bank'
EOS
poll_sql($node, $idle, 0, 'the sagas to end or wait');
poll_sql($node, 'SELECT count(*) FROM saga.stuck', 1, 'the one that sticks');

# ---- what is scraped is what SQL says

# Values between two readings of the view are right.  Those that go up and down
# are, sooner or later.
sub compare
{
	my ($when) = @_;
	my ($sql, $scrape, @wrong);

	eval {
		poll(
			"the scraped values to be those of saga.metrics, $when",
			sub {
				my $first = sql_metrics($node);

				$scrape = scrape($exporter);
				$sql    = sql_metrics($node);
				@wrong  = ();
				my %series = map { %{ $_->{value} } } $first, $sql, $scrape;

				foreach my $series (sort keys %series)
				{
					my ($low, $high) = sort { $a <=> $b } map { defined $_ ? $_ : -1 }
					  $first->{value}{$series}, $sql->{value}{$series};
					my $value = $scrape->{value}{$series};

					push @wrong, "$series: $low " . (defined $value ? $value : 'not scraped') . " $high"
					  unless defined $value
					  && $value >= $low - 1e-6 * abs $low
					  && $value <= $high + 1e-6 * abs $high;
				}
				return !@wrong;
			});
	};
	is(join("\n", @wrong), '', "$when every value that is scraped is that of saga.metrics");
	is_deeply([ sort keys %{ $scrape->{datname} } ], ['postgres'], '... and has the database');
	return ($scrape, $sql);
}

my ($scrape, $sql) = compare('after the load');
my $value = $scrape->{value};

my %kinds = map { $_ => "$sql->{type}{$_} $sql->{help}{$_}" } keys %{ $sql->{type} };
is_deeply({ map { $_ => "$scrape->{type}{$_} $scrape->{help}{$_}" } keys %{ $scrape->{type} } },
	\%kinds, 'with the type and help that saga.metrics has');
is_deeply(
	[ sort keys %kinds ],
	[ sort $node->safe_psql('postgres',
		q{SELECT m[1] FROM regexp_matches(pg_get_viewdef('saga.metrics'), '''(saga_\w+)''', 'g') m}) =~ /(\w+)/g ],
	'each metric that there can be was there');

my ($stdout, $stderr) = ('', '');
IPC::Run::run([ 'promtool', 'check', 'metrics' ], '<', \$scrape->{text}, '>', \$stdout, '2>', \$stderr);
is($? . $stdout . $stderr, '0', 'promtool has nothing to say about them');

# ---- ... and what SQL says is so

sub series { return $value->{ series_name(@_) }; }

is(series('saga_sagas', { definition => 'sticks', status => 'stuck' }), 1, 'one is stuck');
is(series('saga_active_alerts', { alert => 'stuck' }), 1, '... which is an alert');
is(series('saga_begun_total', { definition => 'transfer' }), 800, 'all transfers were begun');
foreach my $outcome (qw(completed compensated))
{
	is(series('saga_ended_total', { definition => 'transfer', outcome => $outcome }),
		$node->safe_psql('postgres', "SELECT count(*) FROM saga.sagas WHERE definition = 'transfer' AND status = '$outcome'"),
		"... and as many $outcome as there are");
}
is(series('saga_step_attempts_total', { definition => 'transfer', step => 'debit', operation => 'action', outcome => 'succeeded' }),
	800, 'attempts are counted');
is(series('saga_step_attempts_total', { definition => 'sticks', step => 'a', operation => 'compensation', outcome => 'failed' }),
	$node->safe_psql('postgres', q{SELECT sum(attempts) FROM saga.stuck WHERE definition = 'sticks'}), '... that failed too');
my $mean = series('saga_ended_seconds_total', { definition => 'transfer' }) / 800;
my $mean_of_rows = $node->safe_psql('postgres',
	q{SELECT avg(extract(epoch FROM finished_at - created_at)) FROM saga.sagas WHERE definition = 'transfer'});
cmp_ok(abs($mean - $mean_of_rows), '<', 0.000001,
	'the time they took is that of the rows');

utf8::decode($bad_label);
is(series('saga_waiting_sagas', { definition => 'send', reason => 'participant' }), 4, 'four wait for participants');
is(series('saga_queue_ready_tasks', { queue => $bad_label }), 3, 'three tasks are ready, in a queue with a bad name');
is(series('saga_queue_claimed_tasks', { queue => $bad_label }), 1, '... one is claimed');
is(series('saga_queue_tasks_total', { queue => $bad_label, outcome => 'completed' }), 1, '... one was done');
is(series('saga_queue_breaker_open', { queue => 'breaks' }), 1, 'a breaker is open');
is(series('saga_begun_total', { definition => $bad_label }), 1, 'a definition with a bad name');
is(series('saga_server_calls_total', { foreign_server => 'there', role => 'bank', outcome => 'succeeded' }), 3, 'three calls were made elsewhere');
cmp_ok(series('saga_server_unreachable_total', { foreign_server => $bad_label, role => 'bank' }), '>', 0, 'a server with a bad name was not reached');
is(series('saga_invariant_violations', { invariant => $bad_label }), 1, 'an invariant with a bad name is violated');
is(series('saga_invariant_failed', { invariant => 'fails' }), 1, '... and one cannot be checked');
is(series('saga_definition_enabled', { definition => 'off' }), 0, 'a definition is off');
ok(defined series('saga_process_absent_seconds',
		{ process => 'worker', role => "no\n\"body", reason => 'role has no CONNECT privilege on the database' }),
	'a role with a newline in its name can have no worker');

unlike($scrape->{text}, qr/that-nobody-sees|send-\d/, 'no key, payload, message or participant is there');

my %labels = %{ $scrape->{label} };
is(join(' ', sort keys %labels),
	'alert datname definition foreign_server invariant operation outcome percentile process queue reason role server state status step version window',
	'the labels are these and no others');

# ---- what would be there twice is not

$node->safe_psql('postgres', <<'EOS');
INSERT INTO saga.server_role (server, role, role_name) VALUES ('there', 999999, 'bank');
EOS
eval { scrape($exporter) };
is($@, '', 'a role that was dropped and made again is there once');
$node->safe_psql('postgres', 'DELETE FROM saga.server_role WHERE role = 999999');

# ---- the real Prometheus

sub expressions
{
	my ($value) = @_;

	return map { expressions($_) } @$value if ref $value eq 'ARRAY';
	return () if ref $value ne 'HASH';
	return (exists $value->{expr} ? $value : (), map { expressions($value->{$_}) } sort keys %$value);
}

my $dashboard = decode_json(slurp_file("$monitoring/grafana.json"));
my @targets = expressions($dashboard);
my %known = map { $_ => 1 } keys %kinds;
my %seen;

# Metrics that an expression asks for and that were not scraped; labels likewise.
sub unknown
{
	my ($expression, $legend) = @_;

	$seen{$_} = 1 foreach $expression =~ /\b(saga_\w+)/g;
	return (grep({ !$known{$_} } $expression =~ /\b(saga_\w+)/g),
		grep({ !$labels{$_} } $expression =~ /(\w+)=~?"/g, $legend =~ /\{\{(\w+)\}\}/g,
			map { split /, / } $expression =~ /\bby \((.*?)\)/g));
}

poll('Prometheus to have the load', sub { query($prometheus, 'saga_begun_total{definition="transfer"} == 800') });
cmp_ok(scalar @targets, '>', 30, 'the dashboard has panels');
my (@unknown, @silent);

foreach my $target (@targets)
{
	my $expression = $target->{expr};

	push @unknown, unknown($expression, $target->{legendFormat});
	$expression =~ s/\$__rate_interval|\$__range/5m/g;
	$expression =~ s/\$(?:datname|definition)\b/.*/g;
	push @silent, $expression if $expression =~ /\$/ || !query($prometheus, $expression);
}
is("@unknown", '', 'the dashboard asks for what is scraped');
is(join("\n", @silent), '', '... and gets it');
is(join(' ', map { unknown($_->{query}, '') } map { @{ $_->{rules} } } @{ get_json($prometheus, '/api/v1/rules')->{groups} }),
	'', 'the rules ask for what is scraped');
is(join(' ', grep { !$seen{$_} } sort keys %known), '', 'dashboard and rules show every metric');

is(join(' ', map { "$_->{health} $_->{lastError}" } @{ get_json($prometheus, '/api/v1/targets')->{activeTargets} }),
	'up ', 'Prometheus scrapes without an error');

my $active = poll('the alerts', sub {
	my $state = active_alerts($prometheus);

	return (grep { !$state->{$_} } qw(SagaStuck SagaQueueBreakerOpen SagaInvariantViolated SagaInvariantFailed)) ? undef : $state;
});
is($active->{SagaInvariantViolated}, 'firing', 'what needs no time fires');
is(join(' ', map { "$_->{name}: $_->{lastError}" } grep { $_->{health} ne 'ok' }
		map { @{ $_->{rules} } } @{ get_json($prometheus, '/api/v1/rules')->{groups} }),
	'', 'every rule can be evaluated');
is(join(' ', grep { $active->{$_} } qw(SagaMetricsAbsent SagaLauncherAbsent SagaDisabled SagaDeadlock SagaOverdue)),
	'', 'and what is well is no alert');

# ---- counters begin anew

my $selector = '{definition="transfer"}';
my $highest = (query($prometheus, "saga_begun_total$selector"))[0]{value};

is($highest, 800, 'Prometheus has the counter');
$node->safe_psql('postgres', 'SELECT saga.reset_statistics()');
poll('the reset', sub { (query($prometheus, "resets(saga_begun_total$selector\[10m]) == 1")) });
$node->stop('immediate');
$node->start;
poll_sql($node, q{SELECT sum(stuck) FROM saga.health}, 1, 'the gauges after the crash');
$node->safe_psql('postgres', 'SET ROLE bank; SELECT begin_transfers(20)');
poll_sql($node, q{SELECT sum(completed + compensated) FROM saga.health WHERE definition = 'transfer'}, 20, 'transfers after the crash');
poll('Prometheus to have the counter again', sub { (query($prometheus, "saga_begun_total$selector == 20")) });
is((query($prometheus, "resets(saga_begun_total$selector\[10m])"))[0]{value}, 1, '... which it takes for the same, begun anew');
($scrape) = compare('after a crash');
is($scrape->{value}{ series_name('saga_sagas', { definition => 'sticks', status => 'stuck' }) }, 1, 'one is still stuck');

# ---- where there is little to say

$node->safe_psql('postgres', 'CREATE DATABASE old ENCODING \'SQL_ASCII\' TEMPLATE template0');
$node->safe_psql('old', 'CREATE EXTENSION saga');
$node->safe_psql('old', q{SET client_encoding = 'SQL_ASCII'; SELECT saga.define(E'not\xff\\\\utf8', saga.step('a', 'pg_catalog.now'))});
is($node->safe_psql('old', q{SET client_encoding = 'UTF8'; SELECT labels FROM saga.metrics WHERE name = 'saga_begun_total'}),
	'{"definition": "not\\\\377\\\\\\\\utf8"}', 'a name that is not UTF-8 keeps nothing from being read');

my $plain = SagaTest->new_node('plain', preload => 0, start => 1);

$plain->safe_psql('postgres', 'CREATE EXTENSION saga; SELECT saga.define(\'d\', saga.step(\'a\', \'pg_catalog.now\'))');
is($plain->safe_psql('postgres', q{SELECT string_agg(name || ' ' || value, ', ' ORDER BY name) FROM saga.metrics WHERE name ~ 'launcher|^saga_(sagas|begun)'}),
	'saga_launcher_enabled 0, saga_launcher_in_recovery 0, saga_launcher_running 0',
	'without shared_preload_libraries that is said, and nothing is counted');

done_testing();
