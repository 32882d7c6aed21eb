#!/bin/bash
# Begin transfers with pgbench until there are as many as asked for.  When the
# server restarts, pgbench loses its connections: we ask the database how many
# have committed and go on with the rest.
#
# usage: begin_transfers.sh TOTAL BINDIR SCRIPT   (libpq's environment is set)
set -uo pipefail

total=$1
bindir=$2
script=$3
deadline=$((SECONDS + 90))

run_pgbench()
{
	"$bindir/pgbench" -n -s 10 -c "$1" -j 2 -t "$2" -f "$script" >/dev/null 2>&1
}

while [ $SECONDS -lt $deadline ]; do
	begun=$("$bindir/psql" -XAtqc "SELECT count(*) FROM saga.sagas WHERE definition = 'transfer'" 2>/dev/null)
	if ! [[ $begun =~ ^[0-9]+$ ]]; then
		sleep 0.2				# it is restarting
		continue
	fi
	left=$((total - begun))
	[ $left -gt 0 ] || exit 0
	if [ $left -ge 8 ]; then
		run_pgbench 8 $((left / 8))
	else
		run_pgbench 1 $left
	fi
done
echo "could not begin $total transfers in time" >&2
exit 1
