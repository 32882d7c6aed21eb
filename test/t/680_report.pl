# saga.report() in a real browser: it loads without a complaint and without a
# request, shows the numbers that SQL has, writes hostile names, keys, errors and
# reasons as text, sorts and filters, by mouse and by keyboard, is right in light
# and dark, on a phone and without its script, and passes axe-core.  Its caller
# sees what he may see and nothing else.  What saga.diagram() writes is drawn by
# Mermaid and by Graphviz, with these very labels.
use strict;
use warnings;
use utf8;

use Encode qw(decode_utf8 encode_utf8);
use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaParticipant;
use SagaTest;
use Test::More;

need_program('chromium', 'chromium --version');
need_program('nodejs', 'node --version');
need_program('npm', 'npm --version');

my $directory = PostgreSQL::Test::Utils::tempdir();
my $packages  = "$directory/packages";
my $files     = "$directory/files";

mkdir $_ or die "could not make $_: $!" foreach $packages, $files;

# Whole packages, which need no others, from the registry of npm.
my %package = (
	'axe-core' => [ 'axe-core@4.14.1', 'axe-core-4.14.1.tgz' ],
	'mermaid'  => [ '@mermaid-js/tiny@11.17.2', 'mermaid-js-tiny-11.17.2.tgz' ],
	'viz'      => [ '@viz-js/viz@3.31.0', 'viz-js-viz-3.31.0.tgz' ]);
my ($out, $err);

$ENV{npm_config_cache} = "$directory/.npm";
$ENV{npm_config_update_notifier} = 'false';
IPC::Run::run([ 'npm', 'pack', '--silent', '--pack-destination', $packages, map { $_->[0] } values %package ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180))
  or die "packages could not be had from the registry of npm: $out$err\n";
foreach my $name (sort keys %package)
{
	mkdir "$packages/$name" or die "could not make a directory: $!";
	system('tar', '-xzf', "$packages/$package{$name}[1]", '-C', "$packages/$name") == 0
	  or die "could not unpack $package{$name}[1]";
}

my $node = SagaTest->new_node('main', extra => [ '--encoding=UTF8', '--no-locale' ], start => 1);

# Names of all kinds, and what becomes of sagas.
my %hostile = (
	definition => qq(</script><script>alert(1)</script>"]:::x --> end %%{init),
	step       => qq(a"]; click s1 "javascript:alert(1)" <img src=x>),
	other      => qq(1. \\N \\" ]]> \x{2028} #quot; &amp; ünï 日本 \x{202e}),
	key        => qq('"><svg/onload=alert(1)>\n</title></style>),
	error      => qq(</td></table><script>window.pwned = 1</script> ]]>\n" onmouseover="alert(1)\x{2028}),
	reason     => qq(<b>why</b>' OR ''=''; --));
my %literal = map { (my $s = $hostile{$_}) =~ s/'/''/g; $_ => "'$s'" } keys %hostile;
my $error   = $literal{error} =~ s/''/''''/gr;

$node->safe_psql('postgres', encode_utf8(<<"EOF"));
CREATE EXTENSION saga;
CREATE ROLE shop LOGIN;
CREATE ROLE clerk LOGIN;
CREATE ROLE watcher LOGIN;
CREATE ROLE prober LOGIN IN ROLE pg_monitor;
CREATE ROLE stranger LOGIN;
SELECT saga.grant_usage('shop'), saga.grant_usage('clerk'), saga.grant_monitor('watcher');
CREATE SCHEMA shop AUTHORIZATION shop;
SET ROLE shop;
CREATE FUNCTION shop.good(context jsonb) RETURNS text LANGUAGE sql AS \$\$ SELECT 'SECRET' \$\$;
CREATE FUNCTION shop.third(context jsonb) RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
    IF (context ->> 'attempt')::int < 3 THEN
        RAISE EXCEPTION 'bank is away' USING ERRCODE = '08006';
    END IF;
    RETURN 'paid';
END \$\$;
CREATE FUNCTION shop.bad(context jsonb) RETURNS text LANGUAGE plpgsql AS \$\$
BEGIN
    PERFORM saga.fail($literal{error});
END \$\$;
SELECT saga.create_queue('q <b>"1"</b>');
SELECT saga.configure_queue('q <b>"1"</b>', breaker_failures => 1, breaker_pause => '1 h', breaker_max_pause => '1 h');
SELECT saga.define('parcel', saga.step('pack', 'shop.good', 'shop.good'));
SELECT saga.define('order',
    saga.step('reserve', 'shop.good', 'shop.good'),
    saga.step('charge', 'shop.third', 'shop.good', after => '{}', retry => saga.retry_policy(5, '10 ms')),
    saga.timer_step('cool_off', '20 ms', after => '{reserve}'),
    saga.child_step('parcels', definition => 'parcel', foreach => 'items', after => '{reserve,charge}'),
    saga.step('confirm', 'shop.good', pivot => true, after => '{parcels,cool_off}'),
    saga.signal_step('approved', after => '{confirm}'));
SELECT saga.define('travel',
    saga.step('pay', 'shop.good', 'shop.good', savepoint => true, and_then => 'train'),
    saga.step('fly', 'shop.bad'),
    saga.step('train', 'shop.good', after => '{pay}'));
SELECT saga.define('picky', saga.step('book', 'shop.good', 'shop.bad'), saga.step('fly', 'shop.bad'));
SELECT saga.define('mails', saga.external_step('mail', 'q <b>"1"</b>', retry => saga.retry_policy(5, '1 h', '1 h')));
SELECT saga.define($literal{definition},
    saga.step($literal{step}, 'shop.good', 'shop.good'), saga.step($literal{other}, 'shop.bad'));
SELECT saga.begin('order', '{"items": [{"i": "SECRET"}, {}]}', key => 'order-1');
SELECT saga.begin('travel');
SELECT saga.begin('picky', key => 'key-' || n) FROM generate_series(1, 8) n;
SELECT saga.begin('picky', key => $literal{key});
SELECT saga.begin($literal{definition}, key => $literal{key});
SELECT count(saga.begin('parcel')) FROM generate_series(1, 50);
SELECT saga.begin('mails');
EOF

# Each of them has come to where nothing changes by itself.
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE status = 'stuck'", '9', 'sagas to get stuck');
poll_sql($node, "SELECT waiting_for FROM saga.sagas WHERE key = 'order-1'", 'signal', 'an order to wait for its signal');
poll_sql($node, "SELECT count(*) FROM saga.tasks WHERE status = 'ready'", '1', 'a task');
$node->safe_psql('postgres', encode_utf8(<<"EOF"));
SET ROLE shop;
SELECT saga.fail_task(t.id, t.lease_token, $literal{error}) FROM saga.claim_tasks('q <b>"1"</b>') t;
SELECT saga.retry(saga_id, $literal{reason}) FROM saga.sagas WHERE key = 'key-1';
EOF
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE waiting_for = 'next attempt'", '1', 'the answer to be taken');
poll_sql($node, "SELECT outcome FROM saga.requests WHERE verb = 'retry'", 'done', 'the retry to be done');
poll_sql($node, "SELECT count(*) FROM saga.stuck", '9', 'the saga to be stuck again');
poll_sql($node, "SELECT count(*) FROM saga.sagas WHERE status IN ('running', 'compensating') AND waiting_for IS NULL",
	'0', 'everything to come to rest');
poll_sql($node, "SELECT string_agg(DISTINCT alert, ', ' ORDER BY alert) FROM saga.alerts", 'breaker, stuck', 'the alerts');

sub sql
{
	my ($sql, $role) = @_;

	return decode_utf8($node->safe_psql('postgres', encode_utf8(($role ? "SET ROLE $role; " : '') . $sql)));
}

# Rows of that query, as lists.
sub rows
{
	my ($sql) = @_;

	return decode_json(encode_utf8(sql("SELECT COALESCE(json_agg(to_json(array(SELECT value FROM json_each_text(to_json(x))))), '[]') FROM ($sql) x")));
}

sub save
{
	my ($name, $text) = @_;

	append_to_file("$files/$name", encode_utf8($text));
}

my $order  = sql("SELECT saga_id FROM saga.sagas WHERE key = 'order-1'");
my $travel = sql("SELECT saga_id FROM saga.sagas WHERE definition = 'travel'");
my $retried = sql("SELECT saga_id FROM saga.sagas WHERE key = 'key-1'");
my $evil   = sql("SELECT saga_id FROM saga.sagas WHERE definition LIKE '<%'");

save('report.html', sql("SELECT saga.report(ARRAY[$order, $travel, $retried, $evil])", 'watcher'));
save('plain.html', sql('SELECT saga.report()', 'clerk'));
foreach my $id ($order, $travel, $evil)
{
	save("$id.mmd", sql("SELECT saga.diagram($id)", 'shop'));
	save("$id.dot", sql("SELECT saga.diagram($id, 'dot')", 'shop'));
}
save('definition.mmd', sql('SELECT saga.diagram(definition) FROM saga.sagas WHERE saga_id = ' . $evil, 'shop'));
save('definition.dot', sql('SELECT saga.diagram(definition, format => $$dot$$) FROM saga.sagas WHERE saga_id = ' . $evil, 'shop'));

# What SQL says at the same time.
my $stuck = rows("SELECT saga_id FROM saga.stuck ORDER BY saga_id");
my $health = rows(<<'EOF');
SELECT definition, scheduled + running + compensating + held + stuck + paused, running, compensating, stuck,
       saga.time_text(extract(epoch FROM p50_1h)::float8), saga.time_text(extract(epoch FROM p95_1h)::float8),
       saga.time_text(extract(epoch FROM p99_1h)::float8)
FROM saga.health ORDER BY definition COLLATE "C"
EOF
my $steps = rows(<<'EOF');
SELECT step, definition, operation, succeeded, failed, saga.time_text(extract(epoch FROM p50_1h)::float8)
FROM saga.step_health ORDER BY definition COLLATE "C", step COLLATE "C", operation
EOF
my $queues = rows('SELECT queue, ready, claimed, failed, breaker FROM saga.queues');

IPC::Run::run([ 'node', "$FindBin::RealBin/../lib/report.js", $packages, $files ],
	'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout(180))
  or die "report.js has failed: $err\n";
my $facts  = decode_json($out);
my $report = $facts->{report};
my %table  = %{ $report->{tables} };

sub seen { (my $s = $_[0]) =~ s/\x{2028}/<U+2028>/g; $s =~ s/\x{202e}/<U+202E>/g; return $s; }

# Text as a table shows it: white space is what it is.
sub flat { (my $s = seen($_[0])) =~ s/\s+/ /g; return $s; }

# It loads.
is($report->{title}, 'Sagas of postgres', 'the page has loaded');
is($report->{mode}, 'CSS1Compat', '... by the standard');
is_deeply($report->{complaints}, [], '... without a complaint');
is_deeply($report->{requests}, [], '... and asks nobody for anything');
ok($report->{ascii}, '... and is the same in every encoding');
is($report->{scripts}, 1, '... and has one script');
is_deeply($report->{handlers}, [], '... and no handlers and styles of elements');
is_deeply([ grep { !/^#/ } @{ $report->{links} } ], [], '... and links to itself only');
is_deeply($report->{dead_links}, [], '... to what is there');
is_deeply($report->{twice}, [], '... once');
is_deeply([ grep { /^(?:img|iframe|object|embed|link|form|base)$/ } @{ $report->{elements} } ], [],
	'names did not become elements');
is($report->{pwned}, JSON::PP::false, 'what would get in would not run');

# The numbers.
is($report->{tiles}{Stuck}, scalar @$stuck, 'stuck sagas are counted');
is($report->{tiles}{Unfinished}, sql("SELECT count(*) FROM saga.sagas WHERE finished_at IS NULL"), 'unfinished ones too');
is_deeply([ map { $_->[0] } @{ $table{'t-stuck'} } ], [ map { $_->[0] } @$stuck ], 'the stuck sagas are those of the view');
my ($worst) = grep { $_->[0] eq $retried } @{ $table{'t-stuck'} };
is($worst->[3], sql("SELECT attempts FROM saga.stuck WHERE saga_id = $retried"), '... with their attempts');
like(flat($worst->[6]), qr/^\Q${\ flat($hostile{error}) }\E \(SG001\)/, '... and the last error, as text');
like(flat($worst->[5]), qr/in action of fly$/, '... and the first cause');
is_deeply(
	[ map { my @r = @$_; [ (split /\n/, $r[0])[0], @r[ 1 .. 4, 10 .. 12 ] ] }
		  sort { $a->[0] cmp $b->[0] } @{ $table{'t-health'} } ],
	[ map { [ seen($_->[0]), map { $_ // '' } @{$_}[ 1 .. 7 ] ] } @$health ],
	'health is what the view says');
is_deeply(
	[ map { [ @{$_}[ 0 .. 4, 7 ] ] } sort { $a->[1] cmp $b->[1] || $a->[0] cmp $b->[0] || $a->[2] cmp $b->[2] } @{ $table{'t-steps'} } ],
	[ map { [ seen($_->[0]), seen($_->[1]), map { $_ // '' } @{$_}[ 2 .. 5 ] ] }
		  sort { seen($a->[1]) cmp seen($b->[1]) || seen($a->[0]) cmp seen($b->[0]) || $a->[2] cmp $b->[2] } @$steps ],
	'steps are what the view says');
is_deeply([ map { [ @{$_}[ 0, 2, 4, 7, 9 ] ] } @{ $table{'t-queues'} } ], $queues, 'queues too');
is_deeply([ map { [ @{$_}[ 0, 1, 2 ] ] } @{ $table{'t-alerts'} } ], [ [ 'breaker', 'warning', 'queue q <b>"1"</b>' ] ],
	'an alert that is not about what is stuck');

# The sagas that were asked for, in that order.
my %saga = %{ $report->{sagas} };
is_deeply([ sort keys %saga ], [ sort map { "saga-$_" } $order, $travel, $retried, $evil ], 'the sagas are there');
is($saga{"saga-$evil"}{heading}, "Saga $evil of $hostile{definition}", 'a name is text');
like(flat($saga{"saga-$evil"}{text}), qr/Key \Q${\ flat($hostile{key}) }\E Version/, '... and a key');
is_deeply([ map { $_->[0] } @{ $saga{"saga-$evil"}{boxes} } ], [ map { seen($hostile{$_}) } qw(step other) ], '... and those of steps');
like(flat($saga{"saga-$retried"}{text}), qr/by shop: \Q$hostile{reason}\E/, '... and the reason of a request');
is_deeply(
	[ map { my ($name, $class) = @$_; "$name: $class" } @{ $saga{"saga-$order"}{boxes} } ],
	[ 'reserve: step succeeded', 'charge: step succeeded', 'cool_off: step succeeded', 'parcels: step succeeded',
		'confirm: step succeeded pivot', 'approved: step running' ],
	'the graph has the states of all steps');
is($saga{"saga-$order"}{edges}, 6, '... and an edge for each of what they come after');
is_deeply({ map { $_->[0] => "$_->[1] $_->[2]" } @{ $saga{"saga-$order"}{gantt} } },
	{ reserve => 'succeeded work', charge => 'succeeded pause,wrong,work', cool_off => 'succeeded others',
		parcels => 'succeeded others', confirm => 'succeeded work', approved => 'running others' },
	'the timeline has what each did');
is_deeply([ map { "$_->[0]: $_->[1]" } sort { $a->[0] cmp $b->[0] } @{ $saga{"saga-$travel"}{gantt} } ],
	[ map { "$_->[0]: $_->[1]" } @{ rows(<<"EOF") } ], '... in each round');
SELECT step || CASE WHEN round > 0 THEN ', round ' || round ELSE '' END, status
FROM saga.steps WHERE saga_id = $travel AND operation = 'action' ORDER BY 1
EOF
is($saga{$_}{outside} + $saga{$_}{unseen}, 0, "no bar of $_ is out of sight") foreach sort keys %saga;
unlike($_->{text}, qr/SECRET/, 'neither inputs nor results are shown') foreach values %saga;

# Sorting and filtering.
my %sort = %{ $report->{sort} };
is($sort{state}, 'descending', 'a click on a heading of numbers: the largest first');
is_deeply($sort{down}, [ sort { $b <=> $a } @{ $sort{down} } ], '... and so they are');
is_deeply($sort{up}, [ sort { $a <=> $b } @{ $sort{down} } ], 'Enter on it: the smallest first');
is_deeply($sort{text}, [ sort { lc $a cmp lc $b } @{ $sort{text} } ], 'another one: by the text');
is($sort{states}, 1, '... and by that alone');
is_deeply([ map { $_->[0] } @{ $report->{filter}{rows} } ], [ sql("SELECT saga_id FROM saga.sagas WHERE key = 'key-7'") ],
	'a filter leaves the rows that have all the words');
is($report->{filter}{said}, '1 of 9', '... and says how many');
is($report->{filter}{none}, 0, '... or none');
is($report->{filter}{all}, 9, '... and gives them back');
foreach my $window (qw(w1m w1h w1d))
{
	my @classes = grep { /w1/ } @{ $report->{heads}{$window} };

	is_deeply(\@classes, [ ("n $window") x 6 ], "the rates of $window are shown, and of no other window");
}
is($report->{columns}, 0, 'every row has a cell for every heading');
is($report->{first}, '#main', 'the first link leads past the navigation');
is($report->{skipped_to}, 'main', '... to the content');

# What it looks like.
my %colours = %{ $report->{colours} };
isnt($colours{dark}, $colours{light}, 'dark, if the system is dark');
is($colours{chosen}, $colours{light}, 'light, if that is chosen');
is($report->{theme}, 'Theme: light', '... which the button says');
is($colours{chosen_dark}, $colours{dark}, 'dark, if that is chosen');
cmp_ok($report->{phone}[0], '<=', $report->{phone}[1], 'it fits on a phone');
foreach my $how (sort keys %{ $report->{axe} })
{
	is_deeply($report->{axe}{$how}{violations}, [], "axe-core finds nothing: $how");
	cmp_ok($report->{axe}{$how}{passes}, '>', 20, '... having looked');
}
is_deeply($report->{without}, $report->{tables}, 'without its script it shows the same');
is($report->{hidden}, 0, '... and nothing that needs the script');

# One who has nothing to see.
is($facts->{plain}{sagas}, 0, 'another role sees no sagas');
is_deeply([ sort grep { $_ ne 't-workers' } keys %{ $facts->{plain}{tables} } ], [], '... and no tables of others');
unlike($facts->{plain}{text}, qr/picky|key-|order|bank/, '... nor names');
is_deeply($facts->{plain}{axe}{violations}, [], 'axe-core finds nothing in that page either');
is_deeply($facts->{plain}{complaints}, [], '... nor does the browser');
foreach my $role (qw(stranger prober))
{
	my ($rc, undef, $said) = $node->psql('postgres', "SET ROLE $role; SELECT saga.report()");

	like($said, qr/permission denied/, "role $role gets none");
}
my (undef, undef, $said) = $node->psql('postgres', "SET ROLE clerk; SELECT saga.report(ARRAY[$order])");
like($said, qr/saga $order does not exist/, 'nobody gets a saga that is not his');

# Mermaid and Graphviz.
is_deeply($facts->{mermaid}{complaints}, [], 'Mermaid has nothing to complain about');
my %label = (
	"$evil" => [
		flat("saga $evil of $hostile{definition} version 1, key $hostile{key}"),
		flat("$hostile{step} shop.good succeeded"), flat("$hostile{other} shop.bad failed"),
		'compensation shop.good succeeded', 'compensated' ],
	definition => [
		flat("$hostile{definition} version 1"), flat("$hostile{step} shop.good"), flat("$hostile{other} shop.bad"),
		'compensation shop.good', 'end' ]);
foreach my $name ($order, $travel, $evil, 'definition')
{
	my $mermaid = $facts->{mermaid}{drawn}{"$name.mmd"};
	my $dot     = $facts->{dot}{"$name.dot"};

	is($mermaid->{error}, undef, "Mermaid draws $name");
	is($dot->{error}, undef, "Graphviz draws $name");
	is($mermaid->{foreign}, 0, '... with nothing in it that is no drawing');
	is_deeply([ sort map { flat($_) } @{ $mermaid->{labels} } ], [ sort map { flat($_) } @{ $dot->{labels} } ], '... both the same boxes');
	is($mermaid->{edges}, $dot->{edges}, '... and edges');
	is_deeply([ map { flat($_) } @{ $mermaid->{labels} } ], $label{$name}, '... whose labels are what was written')
	  if $label{$name};
}
is((grep { /\bfailed\b/ } @{ $facts->{mermaid}{drawn}{"$evil.mmd"}{classes} }), 1, 'what has failed has that colour');

# Every operation of every saga can be drawn, whatever has become of it.
is(sql("SELECT count(*) FROM saga.sagas s WHERE saga.diagram(s.saga_id) IS NULL OR NOT EXISTS (SELECT FROM saga.timeline(s.saga_id))"),
	'0', 'all sagas have diagrams and timelines');

$node->stop;
done_testing();
