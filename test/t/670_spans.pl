# One trace through two databases, and the exporter of examples/otlp-exporter, as its
# README says, against a receiver of this test's own: what arrives is what the view
# says, in the form that OTLP has; once while all goes well, and at least once
# whatever the receiver, the way to it or the exporter itself does.
use strict;
use warnings;

use Encode qw(encode);
use FindBin;
use lib "$FindBin::RealBin/../lib";
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use SagaParticipant;
use SagaRemote;
use SagaTest;
use Test::More;
use Time::HiRes qw(time usleep);

# Debian's python3 has Debian's packages, but another one may come first.
$ENV{PATH} = "/usr/bin:$ENV{PATH}" if system("python3 -c 'import psycopg2' 2>/dev/null") != 0;
need_program('python3-psycopg2', "python3 -c 'import psycopg2'");

# A proxy may be set here for other hosts.
delete @ENV{qw(http_proxy HTTP_PROXY all_proxy ALL_PROXY)};

my $directory = copy_example('otlp-exporter');
my $orders    = new_coordinator('orders');
my ($warehouse, $proxy) = new_remote('warehouse', preload => 1);

connect_remote($orders, 'warehouse', $proxy->port);
$orders->stop;
$orders->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1'");
$orders->start;


# ---- the receiver ---------------------------------------------------------------

# It appends what it is sent, with its headers, to one file, and takes its answers
# from another: a line for each, "status", "status seconds" with Retry-After, "drop"
# (it takes it and breaks the connection), "partial"; 200 when there is none.
my $received = "$directory/received";
my $answers  = "$directory/answers";
my $port     = PostgreSQL::Test::Cluster::get_free_port();
my @receiver = ('python3', "$directory/receiver.py", $port, $received, $answers);
my $receiver;

append_to_file($_, '') foreach $received, $answers;
append_to_file($receiver[1], <<'EOF_PYTHON');
import http.server, json, sys
port, received, answers = sys.argv[1:]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(answers) as file:
            lines = file.read().splitlines()
        answer = lines.pop(0).split() if lines else ["200"]
        with open(answers, "w") as file:
            file.writelines(line + "\n" for line in lines)
        with open(received, "a") as file:
            file.write(json.dumps({"path": self.path, "headers": dict(self.headers), "answer": answer[0], "body": json.loads(body)}) + "\n")
        if answer[0] == "drop":
            self.close_connection = True
            return
        partial = answer[0] == "partial"
        self.send_response(200 if partial else int(answer[0]))
        if len(answer) > 1:
            self.send_header("Retry-After", answer[1])
        self.end_headers()
        self.wfile.write(b'{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "one too many"}}' if partial else b"{}")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
EOF_PYTHON

sub start_receiver
{
	$receiver = IPC::Run::start(\@receiver, '<', \undef, '>>', "$directory/receiver.log", '2>&1', IPC::Run::timeout(180));
	for (1 .. 600)
	{
		return if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
		usleep(50_000);
	}
	die "the receiver did not start: " . slurp_file("$directory/receiver.log");
}

sub stop_receiver
{
	$receiver->kill_kill(grace => 1) if $receiver;
	undef $receiver;
}

# What a test that dies leaves running goes with it.
my @running;
END
{
	my $status = $?;

	eval { $_->kill_kill(grace => 1) } foreach grep { defined } $receiver, @running;
	$? = $status;
}

sub requests { return map { decode_json($_) } split /\n/, slurp_file($received); }

sub spans_of
{
	return map { @{ $_->{spans} } } map { @{ $_->{scopeSpans} } } map { @{ $_->{body}{resourceSpans} } } @_;
}

# All that was sent and, as far as the receiver has said, taken; forgotten then.
sub take
{
	my @taken = spans_of(grep { $_->{answer} =~ /^(200|partial|drop)$/ } requests());

	unlink $received;
	append_to_file($received, '');
	return @taken;
}

# ---- the exporter ----------------------------------------------------------------

my %environment = (
	PGHOST => $orders->host, PGPORT => $orders->port, PGDATABASE => 'postgres', PGUSER => 'tracing',
	OTEL_EXPORTER_OTLP_ENDPOINT => "http://127.0.0.1:$port", SAGA_STATE => "$directory/state", SAGA_INTERVAL => 0.2);
my $log = $orders->logfile =~ s/\.log$/_exporter.log/r;

sub start_exporter
{
	my (%more) = @_;
	local @ENV{ keys %environment, keys %more } = (values %environment, values %more);

	push @running, my $exporter = IPC::Run::start([ 'python3', "$directory/otlp_exporter.py", @{ delete $more{arguments} || [] } ],
		'<', \undef, '>>', $log, '2>&1', IPC::Run::timeout(180));
	return $exporter;
}

sub stop_exporter
{
	my ($exporter, $signal) = @_;

	$exporter->signal($signal || 'TERM');
	$exporter->finish;
	return $exporter->full_result(0);
}

sub export_once
{
	my $exporter = start_exporter(@_, arguments => ['--once']);

	$exporter->finish;
	return $exporter->full_result(0);
}

sub wait_for_requests
{
	my ($n, $what) = @_;

	for (1 .. 1200)
	{
		return if (my @all = requests()) >= $n;
		usleep(50_000);
	}
	die "timed out waiting for $what: " . slurp_file($log);
}

# The spans of a view as the receiver should have them: one line each, in order.
sub expected
{
	my ($node, $where, $dbname) = @_;

	return $node->safe_psql($dbname || 'postgres', <<"EOS");
SET jit = off;
SELECT concat_ws('|', trace_id, span_id, coalesce(parent_span_id, '-'), name, kind, start_time_unix_nano, end_time_unix_nano,
    status_code, coalesce(status_message, '-'), (SELECT string_agg(key || '=' || value, ',' ORDER BY key COLLATE "C") FROM jsonb_each_text(attributes)),
    (SELECT string_agg(e ->> 'name' || ' ' || (e ->> 'time_unix_nano') || ' ' || (e -> 'attributes' ->> 'exception.message'), ',' ORDER BY n)
     FROM jsonb_array_elements(events) WITH ORDINALITY x(e, n)))
FROM saga.spans WHERE $where ORDER BY span_id
EOS
}

my %kind   = (1 => 'internal', 3 => 'client', 4 => 'producer');
my %status = (0 => 'unset', 1 => 'ok', 2 => 'error');

sub value_of
{
	my ($value) = values %{ $_[0]{value} };

	return $value;
}

sub attributes_of
{
	my %attributes = map { $_->{key} => value_of($_) } @{ $_[0]{attributes} };

	return %attributes;
}

sub shown
{
	my @lines;

	foreach my $span (sort { $a->{spanId} cmp $b->{spanId} } @_)
	{
		my %attributes = attributes_of($span);
		my $events     = join(',', map {
			my %of = attributes_of($_);
			"$_->{name} $_->{timeUnixNano} $of{'exception.message'}" } @{ $span->{events} });

		push @lines, join('|', $span->{traceId}, $span->{spanId}, $span->{parentSpanId} // '-', $span->{name},
			$kind{ $span->{kind} }, $span->{startTimeUnixNano}, $span->{endTimeUnixNano},
			$status{ $span->{status}{code} }, $span->{status}{message} // '-',
			join(',', map { "$_=$attributes{$_}" } sort keys %attributes), $events ne '' ? $events : ());
	}
	return encode('UTF-8', join("\n", @lines));
}


# ---- the README --------------------------------------------------------------------

start_receiver();
{
	my ($setup) = code_blocks("$directory/README.md", 'sql');
	my ($start) = code_blocks("$directory/README.md", 'sh');
	my ($out, $err);

	$orders->psql('postgres', $setup, stdout => \$out, stderr => \$err, on_error_stop => 1);
	is($err, '', 'README: the server is set up');
	like($out, qr/completed\ncompensated$/, '... and the two sagas end');

	# trust is for who comes by the socket
	$start =~ s/localhost:4318/127.0.0.1:$port/;
	$start =~ s/PGHOST=localhost/PGHOST='${\ $orders->host}' PGPORT=${\ $orders->port}/;
	$start =~ s/^(python3 .*)\n\z/exec $1/m;
	push @running, my $exporter = IPC::Run::start([ 'sh', '-c', "cd '$directory'\n$start" ],
		'<', \undef, '>>', $log, '2>&1', IPC::Run::timeout(180));
	wait_for_requests(1, 'the spans of the README');
	is(stop_exporter($exporter), 0, 'README: SIGTERM ends the exporter');

	my ($request) = requests();
	is($request->{path}, '/v1/traces', 'it was sent to the usual path');
	is($request->{headers}{'Content-Type'}, 'application/json', '... as JSON');
	my %resource = attributes_of($request->{body}{resourceSpans}[0]{resource});
	is($resource{'service.name'}, 'saga', '... of service saga');
	is($resource{'db.namespace'}, 'shop', '... in that database');
	is($request->{body}{resourceSpans}[0]{scopeSpans}[0]{scope}{name}, 'saga', '... and scope');
	my @spans = take();
	is(shown(@spans), expected($orders, 'ended', 'shop'), 'what arrives is what the view says');
	is((grep { $_->{name} eq 'traced_order' && $_->{traceId} eq '0af7651916cd43dd8448eb211c80319c'
				  && $_->{parentSpanId} eq 'b7ad6b7169203331' } @spans) + 0, 1, '... the first saga in the trace of who began it');
	is((grep { ref $_->{startTimeUnixNano} || $_->{startTimeUnixNano} !~ /^\d{19}$/ || $_->{traceId} !~ /^[0-9a-f]{32}$/ } @spans) + 0,
		0, '... times in nanoseconds, ids in hexadecimal');
	is(slurp_file($received), '', 'nothing more came');
}


# ---- one trace through two databases ------------------------------------------------

$orders->safe_psql('postgres', "SELECT saga.grant_monitor('tracing')");
$warehouse->safe_psql('postgres', "CREATE ROLE tracing LOGIN; SELECT saga.grant_monitor('tracing'), saga.grant_usage('shop')");
$warehouse->safe_psql('postgres', <<'EOS', extra_params => [ '-U', 'shop' ]);
CREATE TABLE shop.told (n bigint GENERATED ALWAYS AS IDENTITY, what text, traceparent text);
CREATE FUNCTION shop.note(context jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.told (what, traceparent) VALUES (concat_ws(' ', context ->> 'operation', context ->> 'step'), context ->> 'traceparent');
    IF context #>> '{input,fail}' = context ->> 'step' THEN
        PERFORM saga.fail('told to');
    END IF;
    RETURN 'true';
END $$;
SELECT saga.define('parcel', saga.step('pack', 'shop.note', 'shop.note'));
EOS
as_app($orders, <<'EOS');
SELECT saga.define('through', saga.remote_step('stock', 'warehouse', 'shop.note', 'shop.note'),
    saga.child_step('send', 'parcel', server => 'warehouse'),
    saga.remote_step('bill', 'warehouse', 'shop.note'));
EOS
my $good = as_app($orders, "SELECT saga.begin('through', '{}')");
my $bad  = as_app($orders, "SELECT saga.begin('through', '{\"fail\": \"bill\"}')");
wait_all_final($orders);
wait_all_final($warehouse);
is($orders->safe_psql('postgres', "SELECT string_agg(status::text, ',' ORDER BY saga_id) FROM saga.sagas"), 'completed,compensated',
	'a saga with steps and children in another database');

is(export_once(), 0, 'its spans are sent, ...');
is(export_once(PGHOST => $warehouse->host, PGPORT => $warehouse->port, SAGA_STATE => "$directory/state2"), 0, '... from both databases');
my @spans = take();
my %by_id = map { $_->{spanId} => $_ } @spans;

# the way from a span to the top of its trace
sub path
{
	my ($span) = @_;
	my @path;

	for (; $span; $span = $by_id{ $span->{parentSpanId} // '' })
	{
		unshift @path, $span->{name};
	}
	return join(' > ', @path);
}

my %traces;
push @{ $traces{ $_->{traceId} } }, path($_) foreach @spans;
my ($good_trace, $bad_trace) = map {
	$orders->safe_psql('postgres', "SELECT DISTINCT trace_id FROM saga.spans WHERE saga_id = $_") } $good, $bad;
is(keys(%traces), 2, 'each saga is one trace in both');
is(join("\n", sort @{ $traces{$good_trace} }), <<'EOS' =~ s/\n\z//r, '... in which all hangs together');
through
through > action bill
through > action send
through > action send > parcel
through > action send > parcel > action pack
through > action stock
through > confirmation send
EOS
is(join("\n", sort @{ $traces{$bad_trace} }), <<'EOS' =~ s/\n\z//r, '... also on the way back');
through
through > action bill
through > action send
through > action send > parcel
through > action send > parcel > action pack
through > action send > parcel > compensation pack
through > action stock
through > compensation send
through > compensation stock
EOS
is($warehouse->safe_psql('postgres', 'SELECT count(*) FROM shop.told WHERE traceparent IS NULL'), '0', 'each function there was told a traceparent');
my @unknown = grep {
	my ($what, $trace, $span) = $_ =~ /^(.*)\|00-(\w{32})-(\w{16})-01$/;
	!$by_id{$span} || $by_id{$span}{traceId} ne $trace || $by_id{$span}{name} ne $what
} split /\n/, $warehouse->safe_psql('postgres', 'SELECT what, traceparent FROM shop.told');
is("@unknown", '', '... that of its operation');
is($_->{kind}, 3, "$_->{name}: kind client") foreach grep { $_->{name} eq 'action stock' } @spans;
my %stock = attributes_of((grep { $_->{name} eq 'action stock' } @spans)[0]);
is("$stock{'rpc.service'} $stock{'rpc.method'}", 'warehouse shop.note', '... that says what was called');


# ---- at least once --------------------------------------------------------------------

as_app($orders, <<'EOS');
CREATE FUNCTION fails_twice(context jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF (context ->> 'attempt')::int < 3 THEN
        RAISE EXCEPTION E'not "yet"\n\u00e4\\%', context ->> 'attempt' USING ERRCODE = '40001', DETAIL = repeat('d', 10000);
    END IF;
    RETURN 'done';
END $$;
SELECT saga.define('local', saga.step('try', 'fails_twice', retry => saga.retry_policy(5, '1 ms')));
EOS

sub begin_locals
{
	my ($n) = @_;

	my $ids = as_app($orders, "SELECT string_agg(saga.begin('local', '{}', traceparent => CASE WHEN n % 2 = 0 THEN"
		  . " '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' END)::text, ',') FROM generate_series(1, $n) n");
	wait_all_final($orders);
	return "saga_id IN ($ids)";
}

my $locals = begin_locals(7);
is(export_once(SAGA_SPANS => 4), 0, 'what has ended since is sent');
is((my @sent = requests()) + 0, 4, '... in requests of the size that was asked for');
is(shown(take()), expected($orders, $locals), '... and nothing else');
is(export_once(), 0, 'when there is nothing new');
is(slurp_file($received), '', '... nothing is sent');
append_to_file("$directory/big", JSON::PP->new->encode([ map { length value_of($_) } map { @{ $_->{attributes} } } map { @{ $_->{events} } } spans_of(@sent) ]));
like(slurp_file("$directory/big"), qr/\b4096\b/, 'a long text is cut');

# refused for a while
$locals = begin_locals(3);
append_to_file($answers, "503\n429 1\n500\ndrop\n");
my $begun = time();
is(export_once(), 0, 'the receiver refuses four times');
cmp_ok(time() - $begun, '>=', 1, '... is given the time that it asks for');
my @requests = requests();
is(join(' ', map { $_->{answer} } @requests), '503 429 500 drop 200', '... and is sent the same again');
is(shown(spans_of($requests[-1])), expected($orders, $locals), '... until it takes it');
is(shown(spans_of($_)), shown(spans_of($requests[-1])), "... whole: $_->{answer}") foreach @requests[0 .. 3];
take();

# refused for good: others are not kept waiting
$locals = begin_locals(1);
append_to_file($answers, "400\n");
is(export_once(), 0, 'the receiver refuses for good');
like(slurp_file($log), qr/spans were refused: HTTP Error 400/, '... which is logged');
take();
$locals = begin_locals(1);
append_to_file($answers, "partial\n");
is(export_once(), 0, 'the receiver takes a part');
like(slurp_file($log), qr/1 spans were rejected: one too many/, '... which is logged');
is(shown(take()), expected($orders, $locals), '... and what follows is sent');

# the receiver is away, and the exporter waits; so does it for the database
stop_receiver();
my $exporter = start_exporter();
$locals = begin_locals(2);
for (1 .. 1200)
{
	last if slurp_file($log) =~ /Connection refused/;
	usleep(50_000);
}
is(slurp_file($received), '', 'the receiver is away');
is($orders->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE usename = 'tracing' AND (state <> 'idle' OR backend_xmin IS NOT NULL)"),
	'0', '... and no snapshot is held meanwhile');
start_receiver();
wait_for_requests(1, 'the spans after the receiver has come back');
is(shown(take()), expected($orders, $locals), '... what has ended meanwhile arrives when it is back');
$orders->restart('immediate');
poll_sql($orders, 'SELECT 1', '1', 'the server');
$locals = begin_locals(2);
wait_for_requests(1, 'the spans after the restart');
is(shown(take()), expected($orders, $locals), '... as after a restart of the server');
is(stop_exporter($exporter), 0, '... and it ends when told to');

# killed after the receiver has taken it, before it has said so
$locals = begin_locals(2);
append_to_file($answers, "503 60\n");
$exporter = start_exporter();
wait_for_requests(1, 'spans before the kill');
stop_exporter($exporter, 'KILL');
take();
is(export_once(), 0, 'after a kill of the exporter');
is(shown(take()), expected($orders, $locals), '... what was not taken is sent again');

# a commit that comes late is found behind what was sent already
my $late = as_app($orders, "SELECT saga.begin('local', '{}')");
wait_all_final($orders);
$orders->safe_psql('postgres', "UPDATE saga.saga SET finished_at = finished_at - interval '20 s', created_at = created_at - interval '20 s' WHERE id = $late");
begin_locals(1);
is(export_once(), 0, 'what came late');
is((grep { my %of = attributes_of($_); $of{'saga.id'} == $late } take()) + 0, 2, '... is sent');
is(export_once(), 0, '... once');
is(slurp_file($received), '', '... and not again');

# who begins a trace decides whether it is recorded
my $unsampled = as_app($orders, "SELECT saga.begin('local', '{}', traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00')");
wait_all_final($orders);
is(export_once(), 0, 'what is not sampled');
is(slurp_file($received), '', '... is not sent');
unlink "$directory/state";
is(export_once(SAGA_UNSAMPLED => 'yes', OTEL_EXPORTER_OTLP_HEADERS => 'authorization=Bearer 4711,x-more=a=b', OTEL_SERVICE_NAME => 'shop'),
	0, 'but if that is wanted');
@requests = requests();
is((grep { my %of = attributes_of($_); $of{'saga.id'} == $unsampled } spans_of(@requests)) + 0, 2, '... it is');
is($requests[0]{headers}{Authorization} // $requests[0]{headers}{authorization}, 'Bearer 4711', '... with the headers that were asked for');
my %resource = attributes_of($requests[0]{body}{resourceSpans}[0]{resource});
is($resource{'service.name'}, 'shop', '... and the name of the service');

stop_receiver();
unlike(slurp_file($log), qr/Traceback/, 'nothing surprised the exporter');
$orders->stop;
$warehouse->stop;
done_testing();
