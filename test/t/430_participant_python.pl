# The participant in Python does what its README says, directly and through
# PgBouncer: it is told of tasks, outlives a restart of the server with each
# effect there once, ends on SIGTERM without losing a task, keeps the lease of a
# long one, and stops what nobody needs any more.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use SagaParticipant;
use Test::More;

# Debian's python3 has Debian's packages, but another one may come first.
$ENV{PATH} = "/usr/bin:$ENV{PATH}" if system("python3 -c 'import psycopg2' 2>/dev/null") != 0;
need_program('python3-psycopg2', "python3 -c 'import psycopg2'");
need_program('pgbouncer', 'pgbouncer --version');

my $directory = copy_example('participant-python');

test_participant($directory, [ 'python3', "$directory/participant.py" ],
	'python', [ 'python3', '-m', 'py_compile' ]);
done_testing();
