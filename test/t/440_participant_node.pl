# The participant in Node.js does what its README says, directly and through
# PgBouncer: it is told of tasks, outlives a restart of the server with each
# effect there once, ends on SIGTERM without losing a task, keeps the lease of a
# long one, and stops what nobody needs any more.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../lib";
use SagaParticipant;
use Test::More;

need_program('nodejs', 'node --version');
need_program('npm', 'npm --version');
need_program('pgbouncer', 'pgbouncer --version');

# The README has npm fetch what it needs.
my $directory = copy_example('participant-node');

test_participant($directory, [ 'node', "$directory/participant.js" ],
	'js', [ 'node', '--check' ]);
done_testing();
