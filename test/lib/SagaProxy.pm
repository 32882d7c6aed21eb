
=pod

=head1 NAME

SagaProxy - the network between two servers, in the hands of a test

=head1 SYNOPSIS

  use SagaProxy;

  my $proxy = SagaProxy->start($node->port);    # to 127.0.0.1
  ... connect to 127.0.0.1, $proxy->port ...

  $proxy->cut;                                  # what is open is reset
  $proxy->swallow('server');                    # nothing comes back
  $proxy->pass;                                 # the network is well again

  # the answer of the next call of "charge" stays on its way
  my $rule = $proxy->rule(from => 'client', match => 'charge',
	  do => 'hold', direction => 'server');
  $proxy->wait_for_hit($rule);

=head1 DESCRIPTION

Connections to a port on 127.0.0.1 are passed on to another one by a process of
its own, which does as it is told through a pipe: each method returns when what
it asks for is so.  It reads PostgreSQL's protocol as far as the limits of
messages, so that a fault can be made to happen with a message, not with
whatever the kernel had at hand; it does not read traffic that is encrypted.
"client" is who has connected to the proxy, "server" the other side.  A
direction is named by who sends: 'client', 'server', or 'both'.

The process ends with the test, however that ends.  What is wrong with it it
says where the test's errors go if SAGA_PROXY_DEBUG is set.

=cut

package SagaProxy;

use strict;
use warnings;

use Carp;
use IO::Handle;
use IO::Socket::INET;
use JSON::PP;
use POSIX ();
use Socket qw(AF_UNIX PF_UNSPEC SOCK_STREAM);
use Time::HiRes qw(time usleep);

my @proxies;

END
{
	my $status = $?;

	$_->stop foreach grep { defined $_->{pid} } @proxies;
	$? = $status;
}

=pod

=head2 SagaProxy->start($port)

Start a proxy to that port of 127.0.0.1.

=head2 $proxy->port

Where it listens.

=cut

sub start
{
	my ($class, $target) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Proto     => 'tcp',
		Listen    => 128,
		Blocking  => 0) or croak "could not listen: $!";
	my $self = bless { port => $listener->sockport }, $class;

	socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or croak "could not make a socket pair: $!";
	my $pid = fork;
	croak "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		# no END block of the test runs in here, and prove does not wait for us
		close $ours;
		close $_->{control} foreach grep { $_->{control} } @proxies;
		open STDIN,  '<', '/dev/null';
		open STDOUT, '>', '/dev/null';
		open STDERR, '>', '/dev/null' unless $ENV{SAGA_PROXY_DEBUG};
		$SIG{$_} = 'DEFAULT' foreach qw(INT TERM HUP ALRM);
		$SIG{PIPE} = 'IGNORE';
		eval { SagaProxy::Process->new($listener, $theirs, $target)->run; };
		print STDERR $@ if $@;
		POSIX::_exit($@ ? 1 : 0);
	}
	close $theirs;
	close $listener;
	$ours->autoflush(1);
	@$self{ 'pid', 'control' } = ($pid, $ours);
	push @proxies, $self;
	return $self;
}

sub port { return $_[0]->{port}; }

# Say it, and wait until it is done.
sub tell
{
	my ($self, $do, %arguments) = @_;
	my $control = $self->{control};

	print $control encode_json({ do => $do, %arguments }), "\n"
	  or croak "the proxy is gone: $!";
	my $answer = <$control>;
	croak 'the proxy is gone' unless defined $answer;
	$answer = decode_json($answer);
	croak $answer->{error} if defined $answer->{error};
	return $answer->{value};
}

=pod

=head2 $proxy->pass

All is well: rules are forgotten, what was held goes on, new connections are
served.  A connection that has lost bytes is reset.

=head2 $proxy->target($port)

New connections lead there.

=head2 $proxy->refuse, $proxy->ignore

New connections are reset, or accepted and then left without any answer.

=head2 $proxy->cut, $proxy->disconnect

All connections are reset, or closed.

=head2 $proxy->swallow($direction), $proxy->hold($direction)

What is sent in that direction is lost, or kept until C<pass> or C<release>, on
all connections, those to come included.  That one side has closed its
connection is lost or kept as well.

=head2 $proxy->release

What was held goes on; all else stays as it is.

=head2 $proxy->delay($seconds)

Everything is that much later on its way, in both directions.

=cut

sub pass    { $_[0]->tell('pass');                                return; }
sub target  { $_[0]->tell('target', port => $_[1]);               return; }
sub refuse  { $_[0]->tell('refuse');                              return; }
sub ignore  { $_[0]->tell('ignore');                              return; }
sub cut     { $_[0]->tell('cut');                                 return; }
sub disconnect { $_[0]->tell('disconnect');                       return; }
sub swallow { $_[0]->tell('swallow', direction => $_[1] || 'both'); return; }
sub hold    { $_[0]->tell('hold', direction => $_[1] || 'both');  return; }
sub release { $_[0]->tell('release');                             return; }
sub delay   { $_[0]->tell('delay', seconds => $_[1]);             return; }

=pod

=head2 $proxy->rule(%rule)

When a message that comes B<from> 'client' or 'server' has B<match> (a regular
expression) in it, B<do> this with its connection:

=over

=item note

nothing: it is counted only

=item cut, disconnect

at once: the message does not arrive

=item hold, swallow

from that message on, in B<direction>, which is where the message comes from
unless given

=item lose

The client's message arrives and is carried out, nothing comes back any more, and
the connection is reset when the server has answered all that it was sent.

=item truncate

Of what the server sends from now on B<bytes> arrive; then the connection is
closed.

=item duplicate

The next messages of B<direction> that are read at a time arrive twice.

=item answer

The message does not arrive.  Instead the server seems to send B<head> (bytes),
then B<chunk> B<count> times, or without end if that is negative, then B<tail>.
With B<complete> what the server has still to say to requests before this one, and
to what came before in this one, comes first, as if all went well.  With B<resume>
all goes on behind the answer, which ends the request; it is given to a Bind
message of a statement that the server knows.

=back

It does so B<times> times (1), and after it was met B<skip> times (0).  Returns
a number for C<hits> and C<wait_for_hit>.

=head2 $proxy->drop_rule($rule)

Forget it.

=head2 $proxy->hits($rule)

How often it was done.

=head2 $proxy->wait_for_hit($rule, $n)

Wait until it was done, so many times (1).

=cut

sub rule
{
	my ($self, %rule) = @_;

	foreach my $key (qw(head chunk tail))
	{
		$rule{$key} = unpack('H*', $rule{$key}) if defined $rule{$key};
	}
	return $self->tell('rule', rule => \%rule);
}

sub drop_rule { $_[0]->tell('drop_rule', rule => $_[1]); return; }
sub hits { return $_[0]->tell('hits', rule => $_[1]); }

sub wait_for_hit
{
	my ($self, $rule, $n) = @_;
	my $deadline = time() + 60;

	$n = 1 unless defined $n;
	while ($self->hits($rule) < $n)
	{
		croak "timed out waiting for hit $n of rule $rule" if time() >= $deadline;
		usleep(10_000);
	}
	return;
}

=pod

=head2 $proxy->stats

A hash: B<open> connections, those B<accepted> until now, the greatest number
that was open at a time since the last call (B<most>), and B<bytes> that the
server has sent.

=head2 $proxy->stop

End it, and with it all its connections.

=cut

sub stats { return $_[0]->tell('stats'); }

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid};

	return unless defined $pid;
	close(delete $self->{control});
	kill 'KILL', $pid;
	local $?;
	waitpid $pid, 0;
	return;
}

# ---- in the process ----------------------------------------------------------

package SagaProxy::Process;

use strict;
use warnings;

use Errno qw(EAGAIN EINTR EINPROGRESS EWOULDBLOCK);
use IO::Socket::INET;
use JSON::PP;
use Socket qw(PF_INET SOCK_STREAM SOL_SOCKET SO_ERROR SO_LINGER
  IPPROTO_TCP TCP_NODELAY pack_sockaddr_in inet_aton);
use Time::HiRes qw(time);

# No more is read from a side than that while the other one does not take it.
use constant BACKLOG => 1024 * 1024;

# Messages that are longer go through as they come.
use constant LONGEST => 256 * 1024;

sub new
{
	my ($class, $listener, $control, $target) = @_;

	$control->blocking(0);
	return bless {
		listener => $listener,
		control  => $control,
		target   => $target,
		said     => '',
		mode     => 'serve',
		delay    => 0,
		always   => { client => 'pass', server => 'pass' },
		rules    => {},
		next     => 1,
		open     => {},
		accepted => 0,
		most     => 0,
		bytes    => 0 }, $class;
}

sub run
{
	my ($self) = @_;

	while (1)
	{
		my ($read, $write, $wait) = ('', '', undef);
		my $now = time();

		vec($read, fileno($self->{control}),  1) = 1;
		vec($read, fileno($self->{listener}), 1) = 1;
		foreach my $connection ($self->connections)
		{
			foreach my $side (@{ $connection->{sides} })
			{
				my $socket = $side->{socket} or next;
				my $due = $side->{out}[0] ? $side->{out}[0][0] - $now : undef;

				vec($read, fileno($socket), 1) = 1 if wants_to_read($side);
				if ($side->{connecting} || (defined $due && $due <= 0))
				{
					vec($write, fileno($socket), 1) = 1;
				}
				elsif (defined $due && (!defined $wait || $due < $wait))
				{
					$wait = $due;
				}
			}
		}

		my $n = select($read, $write, undef, $wait);
		next if $n < 0 && $!{EINTR};
		die "select: $!" if $n < 0;

		return if vec($read, fileno($self->{control}), 1) && !$self->hear;
		$self->accept_connections if vec($read, fileno($self->{listener}), 1);
		foreach my $connection ($self->connections)
		{
			foreach my $side (@{ $connection->{sides} })
			{
				# looked at again each time: the connection may be gone
				if ($side->{socket} && vec($write, fileno($side->{socket}), 1))
				{
					$self->write_to($connection, $side);
				}
				if ($side->{socket} && vec($read, fileno($side->{socket}), 1)
					&& wants_to_read($side))
				{
					$self->read_from($connection, $side);
				}
			}
		}
	}
	return;
}

sub wants_to_read
{
	my ($side) = @_;

	return
		 !$side->{connecting}
	  && !$side->{eof}
	  && $side->{peer}{queued} < BACKLOG
	  && $side->{held_bytes} < BACKLOG;
}

# ---- connections

# A copy of the list: connections may end meanwhile.
sub connections
{
	my ($self) = @_;
	my @open = values %{ $self->{open} };

	return @open;
}

sub accept_connections
{
	my ($self) = @_;

	while (my $client = $self->{listener}->accept)
	{
		my $server;

		$client->blocking(0);
		setsockopt($client, IPPROTO_TCP, TCP_NODELAY, 1);
		$self->{accepted}++;
		if ($self->{mode} eq 'refuse')
		{
			reset_socket($client);
			next;
		}
		if ($self->{mode} eq 'serve')
		{
			socket($server, PF_INET, SOCK_STREAM, 0) or die "socket: $!";
			bless $server, 'IO::Socket::INET';
			$server->blocking(0);
			setsockopt($server, IPPROTO_TCP, TCP_NODELAY, 1);
			if (!connect($server, pack_sockaddr_in($self->{target}, inet_aton('127.0.0.1')))
				&& !$!{EINPROGRESS})
			{
				reset_socket($client);
				next;
			}
		}

		my $connection = {
			id       => $self->{accepted},
			begun    => 0,               # the client has sent its startup message
			request  => '',              # what is said to its messages since the last Sync
			syncs    => 0,               # answers "ready" that the server owes
			lost     => 0,
			truncate => undef
		};
		my ($from_client, $from_server) = map {
			{
				name       => $_,
				out        => [],        # [when, bytes] to be written to it
				queued     => 0,
				in         => '',        # an incomplete message from it
				skip       => 0,         # bytes left of a long one
				mode       => $self->{always}{$_},
				held       => [],
				held_bytes => 0,
				eof        => 0
			}
		} ('client', 'server');
		@$from_client{ 'socket', 'peer' } = ($client, $from_server);
		@$from_server{ 'socket', 'peer' } = ($server, $from_client);
		$from_server->{connecting} = 1 if $server;
		$connection->{sides} = [ $from_client, $from_server ];
		$self->{open}{ $connection->{id} } = $connection;
		my $n = keys %{ $self->{open} };
		$self->{most} = $n if $n > $self->{most};
	}
	return;
}

sub reset_socket
{
	my ($socket) = @_;

	setsockopt($socket, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
	close($socket);
	return;
}

# End a connection, $how is 'reset' or 'close'.
sub end_connection
{
	my ($self, $connection, $how) = @_;

	foreach my $side (@{ $connection->{sides} })
	{
		my $socket = delete $side->{socket} or next;

		$how eq 'reset' ? reset_socket($socket) : close($socket);
		# breaks the circle of the two sides
		delete $side->{peer};
	}
	delete $self->{open}{ $connection->{id} };
	return;
}

sub write_to
{
	my ($self, $connection, $side) = @_;

	if ($side->{connecting})
	{
		my $error = unpack('i', getsockopt($side->{socket}, SOL_SOCKET, SO_ERROR));

		return $self->end_connection($connection, 'reset') if $error;
		$side->{connecting} = 0;
	}
	while ($side->{out}[0] && $side->{out}[0][0] <= time())
	{
		my $item = $side->{out}[0];

		if (ref $item->[1])
		{
			# what is behind this is told by its name
			shift @{ $side->{out} };
			return $self->end_connection($connection, ${ $item->[1] });
		}
		my $n = syswrite($side->{socket}, $item->[1]);
		if (!defined $n)
		{
			return if $!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR};
			return $self->end_connection($connection, 'reset');
		}
		$side->{queued} -= $n;
		substr($item->[1], 0, $n) = '';
		next if length($item->[1]) > 0;
		shift @{ $side->{out} };
		$self->repeat_answer($connection, $side) if !$side->{out}[0];
	}
	return;
}

# Put bytes, or the name of an end, into the queue to a side.
sub put
{
	my ($self, $side, $what) = @_;

	push @{ $side->{out} }, [ time() + $self->{delay}, $what ];
	$side->{queued} += length($what) unless ref $what;
	return;
}

sub read_from
{
	my ($self, $connection, $side) = @_;
	my $n = sysread($side->{socket}, my $bytes, 65536);

	if (!defined $n)
	{
		return if $!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR};
		$n = 0;
	}
	if ($n == 0)
	{
		$side->{eof} = 1;
		# nobody is left who could see it
		return $self->end_connection($connection, 'close')
		  if !$side->{peer}{socket} || $side->{peer}{eof} || $side->{answered};
		return $self->forward($connection, $side, \'close');
	}
	$self->{bytes} += $n if $side->{name} eq 'server';
	$self->take($connection, $side, $bytes);
	return;
}

# ---- messages

# Bytes have come from a side: forward what is whole of them.
sub take
{
	my ($self, $connection, $side, $bytes) = @_;
	my @whole;

	if ($side->{skip} > 0)
	{
		my $n = length($bytes) < $side->{skip} ? length($bytes) : $side->{skip};

		$side->{skip} -= $n;
		push @whole, substr($bytes, 0, $n, '');
	}
	$side->{in} .= $bytes;
	while (length($side->{in}) > 0)
	{
		my $length = $self->message_length($connection, $side);

		last unless defined $length;
		if ($length > LONGEST)
		{
			$side->{skip} = $length - length($side->{in});
			push @whole, $side->{in};
			$side->{in} = '';
			last;
		}
		last if length($side->{in}) < $length;
		push @whole, substr($side->{in}, 0, $length, '');
		$self->look($connection, $side, \@whole);
		return unless $side->{socket};
	}
	$self->forward_all($connection, $side, \@whole);
	return;
}

# The length of the message that begins, or undef if that is not known yet.
sub message_length
{
	my ($self, $connection, $side) = @_;
	my $have = length($side->{in});

	if ($side->{name} eq 'client' && !$connection->{begun})
	{
		return $have < 4 ? undef : unpack('N', $side->{in});
	}
	# what a server says of encryption is one byte
	return 1 if $side->{name} eq 'server' && $connection->{asked};
	return $have < 5 ? undef : 1 + unpack('xN', $side->{in});
}

# What is said to messages of a request that has no rows.
my %quiet = (
	P => pack('A N', '1', 4),
	B => pack('A N', '2', 4),
	D => pack('A N', 'n', 4),
	E => pack('A N Z*', 'C', 8, 'SET'));

# A message is whole, the last one of @$whole: note what it means, and do what
# rules say of it.
sub look
{
	my ($self, $connection, $side, $whole) = @_;
	my $message = $whole->[-1];
	my $type    = substr($message, 0, 1);

	if ($side->{name} eq 'server')
	{
		if ($connection->{asked})
		{
			$connection->{asked} = 0;
			return;
		}
		$connection->{syncs}-- if $type eq 'Z';
	}
	elsif (!$connection->{begun})
	{
		my $code = unpack('x4N', $message);

		if ($code == 80877103 || $code == 80877104)
		{
			$connection->{asked} = 1;
			return;
		}
		$connection->{begun} = 1;
		$connection->{syncs}++;
		$connection->{startup} = 1;
	}
	elsif ($connection->{withheld})
	{
		pop @$whole;
		$connection->{withheld} = 0 if $type eq 'S';
		return;
	}
	elsif ($connection->{answer})
	{
		# nobody asks the server any more
		return;
	}
	elsif ($type eq 'S' || $type eq 'Q')
	{
		$connection->{syncs}++;
		$connection->{lost} = 2 if $connection->{lost} == 1;
		$connection->{request} = '';
	}
	elsif ($quiet{$type})
	{
		$connection->{request} .= $quiet{$type};
	}

	foreach my $id (sort { $a <=> $b } keys %{ $self->{rules} })
	{
		my $rule = $self->{rules}{$id};

		next if $rule->{left} <= 0 || $rule->{from} ne $side->{name};
		next if $message !~ $rule->{pattern};
		# the server is to know nothing of the request yet
		next if $rule->{resume} && $connection->{request} ne $quiet{B};
		next if $rule->{skip}-- > 0;
		$rule->{left}--;
		$rule->{hits}++;
		$self->act($connection, $side, $rule, $whole);
		return unless $side->{socket};
	}

	return if $side->{name} eq 'client' || $connection->{syncs} > 0;
	$self->end_connection($connection, 'reset') if $connection->{lost} == 2;
	if ($connection->{answer})
	{
		$self->forward_all($connection, $side, $whole);
		@$whole = ();
		$self->begin_answer($connection);
	}
	return;
}

sub act
{
	my ($self, $connection, $side, $rule, $whole) = @_;
	my $do        = $rule->{do};
	my $direction = $rule->{direction} || $side->{name};
	my @sides     = grep { $direction eq 'both' || $direction eq $_->{name} }
	  @{ $connection->{sides} };
	my $server = $connection->{sides}[1];

	# what came before it is on its way already
	my $message = pop @$whole;
	$self->forward_all($connection, $side, $whole);
	@$whole = ();
	return unless $side->{socket};

	if ($do eq 'cut' || $do eq 'disconnect')
	{
		return $self->end_connection($connection, $do eq 'cut' ? 'reset' : 'close');
	}
	elsif ($do eq 'note')
	{
		;
	}
	elsif ($do eq 'hold' || $do eq 'swallow')
	{
		$_->{mode} = $do foreach @sides;
	}
	elsif ($do eq 'lose')
	{
		# what asks for the answer may be in another message, to come
		$connection->{lost} = $message =~ /^[SQ]/ ? 2 : 1;
		$server->{mode} = 'swallow';
	}
	elsif ($do eq 'truncate')
	{
		$connection->{truncate} = $rule->{bytes};
	}
	elsif ($do eq 'duplicate')
	{
		$_->{duplicate} = 1 foreach @sides;
	}
	elsif ($do eq 'answer')
	{
		$connection->{answer} = $rule;
		if ($rule->{resume})
		{
			$connection->{withheld} = 1;
		}
		else
		{
			$connection->{sides}[0]{mode} = 'swallow';
		}
		# what the server has to say to others comes first
		$self->begin_answer($connection) if !$rule->{complete} || $connection->{syncs} == 0;
		return;
	}
	else
	{
		die "no such thing to do: $do";
	}
	push @$whole, $message;
	return;
}

# From now on the server says what we make up.
sub begin_answer
{
	my ($self, $connection) = @_;
	my $rule = delete $connection->{answer};
	my ($client, $server) = @{ $connection->{sides} };
	my ($head, $chunk, $tail) = map { pack('H*', defined $rule->{$_} ? $rule->{$_} : '') } qw(head chunk tail);

	if (!$rule->{resume})
	{
		$server->{mode}     = 'swallow';
		$client->{answered} = 1;
	}
	$client->{answer}   = { count => $rule->{count}, chunk => $chunk, tail => $tail };
	$head = $connection->{request} . $head if $rule->{complete};
	$self->put($client, $head) if length($head) > 0;
	$self->repeat_answer($connection, $client);
	return;
}

# More of it.
sub repeat_answer
{
	my ($self, $connection, $client) = @_;
	my $answer = $client->{answer} or return;

	if ($answer->{count} != 0)
	{
		my $n = int(65536 / (length($answer->{chunk}) || 65536)) || 1;

		$n = $answer->{count} if $answer->{count} > 0 && $answer->{count} < $n;
		$answer->{count} -= $n if $answer->{count} > 0;
		return $self->put($client, $answer->{chunk} x $n);
	}
	delete $client->{answer};
	$self->put($client, $answer->{tail}) if length($answer->{tail}) > 0;
	return;
}

sub forward_all
{
	my ($self, $connection, $side, $whole) = @_;
	my $bytes = join('', @$whole);

	return if length($bytes) == 0 || !$side->{socket};
	$bytes .= $bytes if delete $side->{duplicate};
	$self->forward($connection, $side, $bytes);
	return;
}

# Bytes, or the end, of a side to the other one, if nothing is in the way.
sub forward
{
	my ($self, $connection, $side, $what) = @_;
	my $peer = $side->{peer};

	if ($side->{mode} eq 'swallow' || $peer->{answer})
	{
		$connection->{incomplete} = 1;
		return;
	}
	if ($side->{mode} eq 'hold' || !$peer->{socket})
	{
		push @{ $side->{held} }, $what;
		$side->{held_bytes} += length($what) unless ref $what;
		return;
	}
	if ($side->{name} eq 'server' && defined $connection->{truncate} && !ref $what)
	{
		my $left = $connection->{truncate};

		$connection->{truncate} -= length($what);
		if ($connection->{truncate} <= 0)
		{
			$self->put($peer, substr($what, 0, $left)) if $left > 0;
			$self->put($peer, \'close');
			$side->{mode} = 'swallow';
			return;
		}
	}
	$self->put($peer, $what);
	return;
}

# ---- what the test says

# False at the end of the test.
sub hear
{
	my ($self) = @_;
	my $n = sysread($self->{control}, $self->{said}, 65536, length($self->{said}));

	return 1 if !defined $n && ($!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR});
	return 0 unless $n;
	while ($self->{said} =~ s/^(.*)\n//)
	{
		my $said  = decode_json($1);
		my $do    = 'do_' . $said->{do};
		my $value = eval { $self->$do($said) };
		my $answer = encode_json($@ ? { error => "$@" } : { value => $value }) . "\n";

		# an answer is short: there is room for it
		syswrite($self->{control}, $answer) == length($answer) or die "control: $!";
	}
	return 1;
}

sub do_pass
{
	my ($self) = @_;

	$self->{mode}   = 'serve';
	$self->{delay}  = 0;
	$self->{rules}  = {};
	$self->{always} = { client => 'pass', server => 'pass' };
	foreach my $connection ($self->connections)
	{
		my ($client, $server) = @{ $connection->{sides} };

		if (   $connection->{incomplete}
			|| $connection->{lost}
			|| $client->{answer}
			|| defined $connection->{truncate}
			|| !$server->{socket})
		{
			$self->end_connection($connection, 'reset');
			next;
		}
		delete $_->{duplicate} foreach ($client, $server);
	}
	$self->do_release;
	return;
}

sub do_release
{
	my ($self) = @_;

	foreach my $direction ('client', 'server')
	{
		$self->{always}{$direction} = 'pass' if $self->{always}{$direction} eq 'hold';
	}
	foreach my $connection ($self->connections)
	{
		foreach my $side (@{ $connection->{sides} })
		{
			next if $side->{mode} eq 'swallow';
			$side->{mode} = 'pass';
			my @held = splice @{ $side->{held} };
			$side->{held_bytes} = 0;
			$self->forward($connection, $side, $_) foreach @held;
		}
	}
	return;
}

sub do_target
{
	my ($self, $said) = @_;

	$self->{target} = $said->{port};
	return;
}

sub do_refuse { $_[0]->{mode} = 'refuse'; return; }
sub do_ignore { $_[0]->{mode} = 'ignore'; return; }

sub do_cut
{
	my ($self, $said, $how) = @_;

	foreach my $connection ($self->connections)
	{
		$self->end_connection($connection, $how || 'reset');
	}
	return;
}

sub do_disconnect { return $_[0]->do_cut($_[1], 'close'); }

sub do_swallow
{
	my ($self, $said, $mode) = @_;
	my %directions = map { $_ => 1 }
	  $said->{direction} eq 'both' ? ('client', 'server') : ($said->{direction});

	foreach my $direction (keys %directions)
	{
		$self->{always}{$direction} = $mode || 'swallow';
	}
	foreach my $connection ($self->connections)
	{
		foreach my $side (@{ $connection->{sides} })
		{
			$side->{mode} = $mode || 'swallow' if $directions{ $side->{name} };
		}
	}
	return;
}

sub do_hold { return $_[0]->do_swallow($_[1], 'hold'); }

sub do_delay
{
	my ($self, $said) = @_;

	$self->{delay} = $said->{seconds};
	return;
}

sub do_rule
{
	my ($self, $said) = @_;
	my $rule = $said->{rule};
	my $id   = $self->{next}++;

	$rule->{pattern} = qr/$rule->{match}/s;
	$rule->{left}    = defined $rule->{times} ? $rule->{times} : 1;
	$rule->{skip}  ||= 0;
	$rule->{count} ||= 0;
	$rule->{hits}    = 0;
	$self->{rules}{$id} = $rule;
	return $id;
}

sub do_drop_rule
{
	my ($self, $said) = @_;

	delete $self->{rules}{ $said->{rule} };
	return;
}

sub do_hits
{
	my ($self, $said) = @_;

	return $self->{rules}{ $said->{rule} } ? $self->{rules}{ $said->{rule} }{hits} : 0;
}

sub do_stats
{
	my ($self) = @_;
	my $open = keys %{ $self->{open} };
	my %stats = (
		open     => $open,
		accepted => $self->{accepted},
		most     => $self->{most},
		bytes    => $self->{bytes});

	$self->{most} = $open;
	return \%stats;
}

1;
