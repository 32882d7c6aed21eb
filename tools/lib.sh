# Functions for check.sh, demo.sh and run.sh of bench: a scratch directory, the
# extension built and staged in it, throw-away servers.  To be sourced by bash.
#
# The user's tree is only read.  Everything happens in $scratch, which goes
# away on exit, signals included, unless SAGA_KEEP is set.
#
# PostgreSQL does not run as root.  When we are root, all that builds, serves
# or tests runs as the user "postgres" (SAGA_USER chooses another one), to whom
# the scratch directory then belongs: put "as_user" in front of the command.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=
current_job=
user_prefix=()

# The make that called us passes its options and overrides on; they are not
# meant for the one that builds the copy.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL

# libpq's settings of the caller are not for our servers.
unset "${!PG@}" 2>/dev/null || true

die()
{
	echo "$*" >&2
	exit 1
}

as_user()
{
	"${user_prefix[@]}" "$@"
}

# Run a command in a process group of its own and wait for it in a way that
# lets a signal in; stop_job ends the group.
run_job()
{
	local rc=0

	setsid "$@" </dev/null &
	current_job=$!
	wait "$current_job" || rc=$?
	current_job=
	return $rc
}

stop_job()
{
	[ -n "$current_job" ] || return 0
	kill -TERM -- "-$current_job" 2>/dev/null || true
	current_job=
}

# The servers beneath the scratch directory, by their pid files: those of the
# TAP tests are among them.
stop_servers()
{
	local file pid i

	while IFS= read -r file; do
		pid=$(head -n 1 "$file" 2>/dev/null) || continue
		[[ $pid =~ ^[0-9]+$ ]] || continue
		kill -QUIT "$pid" 2>/dev/null || continue
		for i in $(seq 50); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL "$pid" 2>/dev/null || true
	done < <(find "$scratch" -name postmaster.pid 2>/dev/null)
}

clean_up()
{
	trap '' INT TERM HUP
	stop_job
	if [ -n "$scratch" ] && [ -d "$scratch" ]; then
		stop_servers
		if [ -n "${SAGA_KEEP:-}" ]; then
			echo "Kept: $scratch" >&2
		else
			cd /
			rm -rf "$scratch" || { sleep 1; rm -rf "$scratch"; } || true
		fi
	fi
}

# Set pg_config, version and bindir; tools/prerequisites.sh has been here before.
find_postgres()
{
	pg_config=${PG_CONFIG:-pg_config}
	if ! [ -f "$("$pg_config" --pgxs 2>/dev/null)" ]; then
		pg_config=$(sh "$top/tools/pg_config.sh")
	fi
	[ -f "$("$pg_config" --pgxs 2>/dev/null)" ] ||
		die "no PostgreSQL server headers found; set PG_CONFIG"
	pg_config=$(command -v "$pg_config")
	bindir=$("$pg_config" --bindir)
	version=$("$pg_config" --version | sed 's/^PostgreSQL \([0-9]*\).*/\1/')
	export PG_CONFIG=$pg_config
}

# make_scratch NAME: set scratch (short: socket paths have to fit in 107 bytes).
make_scratch()
{
	local parent=${TMPDIR:-/tmp}

	[ ${#parent} -le 40 ] || parent=/tmp
	if [ "$(id -u)" -eq 0 ]; then
		local user=${SAGA_USER:-postgres}

		id "$user" >/dev/null 2>&1 || user=nobody
		user_prefix=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --init-groups --)
	fi
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 129' HUP
	scratch=$(mktemp -d "$parent/saga-$1.XXXXXX")
	mkdir "$scratch/src" "$scratch/tmp"
	if [ ${#user_prefix[@]} -gt 0 ]; then
		chown -R "${user_prefix[1]#--reuid=}" "$scratch"
	fi
	export TMPDIR=$scratch/tmp HOME=$scratch LC_ALL=C.UTF-8 PGTZ=UTC
	grep -qi '^C\.utf' <<<"$(locale -a 2>/dev/null)" || LC_ALL=C
	cd "$scratch"
}

# Copy what is tracked or could be (not ignored) to $scratch/src; without git,
# all but what a build leaves.
copy_sources()
{
	(
		cd "$top"
		if git -c safe.directory='*' ls-files -z --cached --others --exclude-standard \
			>"$scratch/files" 2>/dev/null; then
			# names of files that are deleted but still in the index
			while IFS= read -r -d '' file; do
				[ ! -e "$file" ] || printf '%s\0' "$file"
			done <"$scratch/files" | tar -c --null -T - -f -
		else
			tar -c --exclude=.git --exclude='*.o' --exclude='*.so' -f - .
		fi
	) | tar -x -C "$scratch/src" -f - --no-same-owner
	rm -f "$scratch/files"
	if [ ${#user_prefix[@]} -gt 0 ]; then
		chown -R "${user_prefix[1]#--reuid=}" "$scratch/src"
	fi
}

# Build the copy and stage it in $scratch/stage; $scratch/extra.conf gets the
# settings that let a server find it there.
stage_extension()
{
	local log=$scratch/build.log stage=$scratch/stage libdir settings

	copy_sources
	echo "Building with $("$pg_config" --version)"
	if ! run_job "${user_prefix[@]}" make -s -C "$scratch/src" -j"$(nproc)" \
		PG_CONFIG="$pg_config" all >"$log" 2>&1 ||
		! run_job "${user_prefix[@]}" make -s -C "$scratch/src" \
			PG_CONFIG="$pg_config" DESTDIR="$stage" install >>"$log" 2>&1; then
		cat "$log" >&2
		die "could not build the extension"
	fi
	grep -E 'warning|error' -A 5 "$log" >&2 || true

	libdir=$("$pg_config" --pkglibdir)
	settings=$("$bindir/postgres" --describe-config)
	{
		# Debian's own setting in every version, PostgreSQL's from 18 on.
		if grep -q '^extension_control_path' <<<"$settings"; then
			echo "extension_control_path = '$stage$("$pg_config" --sharedir):\$system'"
		elif grep -q '^extension_destdir' <<<"$settings"; then
			echo "extension_destdir = '$stage'"
		else
			die "this PostgreSQL cannot load an extension that is not installed" \
				"(neither extension_destdir nor extension_control_path):" \
				"use \"make install\" and \"make installcheck\""
		fi
		echo "dynamic_library_path = '$stage$libdir:\$libdir'"
	} >"$scratch/extra.conf"
	chmod 644 "$scratch/extra.conf"
	export SAGA_EXTRA_CONF=$scratch/extra.conf
}

# start_server NAME [setting=value ...]: a server in $scratch/NAME with saga
# preloaded; PGHOST, PGPORT, PGUSER and PGDATA then point to it.
start_server()
{
	local name=$1

	shift
	export PGPORT=$((20000 + RANDOM % 30000)) PGHOST=$scratch/$name PGUSER=postgres
	export PGDATA=$scratch/$name/data PGDATABASE=postgres
	as_user env SAGA_EXTRA_CONF="$SAGA_EXTRA_CONF" PG_CONFIG="$pg_config" \
		bash "$scratch/src/tools/server.sh" start "$scratch/$name" "port=$PGPORT" "$@"
}

# stop_server NAME
stop_server()
{
	as_user env PG_CONFIG="$pg_config" \
		bash "$scratch/src/tools/server.sh" stop "$scratch/$1"
}
