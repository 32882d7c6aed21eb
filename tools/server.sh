#!/bin/bash
# Start and stop a throw-away server: everything it has is in one directory,
# and only a unix socket there leads to it.
#
# usage: tools/server.sh start DIR [setting=value ...]
#        tools/server.sh stop DIR [smart | fast | immediate]
#
# The server trusts everyone who can enter DIR (its superuser is "postgres"),
# preloads saga, does without fsync unless told fsync=on, and finds an extension
# that is staged if SAGA_EXTRA_CONF names a file with the settings for that.
set -euo pipefail

command=${1:?start or stop}
dir=${2:?directory}
shift 2
bindir=$("${PG_CONFIG:-$(sh "$(dirname "$0")/pg_config.sh")}" --bindir)

start()
{
	local setting

	mkdir -p -m 0700 "$dir"
	if ! [ -f "$dir/data/PG_VERSION" ]; then
		"$bindir/initdb" -D "$dir/data" -U postgres -A trust -N -E UTF8 --locale=C \
			>"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; return 1; }
		{
			echo "listen_addresses = ''"
			echo "unix_socket_directories = '$dir'"
			echo "fsync = off"
			echo "shared_preload_libraries = 'saga'"
			echo "max_worker_processes = 32"
			echo "max_connections = 60"
			echo "max_prepared_transactions = 10"
			echo "log_line_prefix = '%m [%p] %b %q%a '"
			echo "lc_messages = 'C'"
			echo "timezone = 'UTC'"
			[ -z "${SAGA_EXTRA_CONF:-}" ] || cat "$SAGA_EXTRA_CONF"
			for setting in "$@"; do
				echo "${setting%%=*} = '${setting#*=}'"
			done
		} >>"$dir/data/postgresql.conf"
	fi
	if ! "$bindir/pg_ctl" -D "$dir/data" -l "$dir/server.log" -w -t 60 -s start; then
		tail -n 50 "$dir/server.log" >&2
		return 1
	fi
}

stop()
{
	"$bindir/pg_ctl" -D "$dir/data" -w -t 60 -s -m "${1:-fast}" stop
}

case $command in
	start) start "$@" ;;
	stop) stop "$@" ;;
	*)
		echo "unrecognized command: \"$command\"" >&2
		exit 2
		;;
esac
