#!/bin/bash
# Find the packages that are missing and install them with apt (as root, or
# by a sudo that asks for no password); where that cannot be done, name them
# and fail.
#
# usage: tools/prerequisites.sh [check | ci | demo | bench | format]
set -euo pipefail

set_name=${1:-check}
here=$(cd "$(dirname "$0")" && pwd)
pg_config=${PG_CONFIG:-$(sh "$here/pg_config.sh")}

# Which major version: that of the pg_config that is there, else the one
# that this distribution has.
major()
{
	local v=

	v=$("$pg_config" --version 2>/dev/null | sed -n 's/^PostgreSQL \([0-9]*\).*/\1/p') || true
	if [ -z "$v" ] || [ ! -f "$("$pg_config" --pgxs 2>/dev/null)" ]; then
		v=$(apt-cache depends postgresql 2>/dev/null |
			sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1) || true
	fi
	echo "${v:-15}"
}

have_perl_module() { perl -e "require $1" 2>/dev/null; }

# Debian's python3 has Debian's packages; another one may come first in PATH.
have_psycopg2()
{
	python3 -c 'import psycopg2' 2>/dev/null || /usr/bin/python3 -c 'import psycopg2' 2>/dev/null
}

# One line per missing package.
missing()
{
	local bindir sharedir

	command -v gcc >/dev/null || echo gcc
	[ -e /usr/include/stdio.h ] || echo libc6-dev
	[ -f "$("$pg_config" --includedir 2>/dev/null)/libpq-fe.h" ] ||
		[ -f /usr/include/postgresql/libpq-fe.h ] || echo libpq-dev
	command -v make >/dev/null || echo make
	if [ -f "$("$pg_config" --pgxs 2>/dev/null)" ]; then
		bindir=$("$pg_config" --bindir)
		sharedir=$("$pg_config" --sharedir)
		[ -f "$("$pg_config" --includedir-server)/postgres.h" ] ||
			echo "postgresql-server-dev-$version"
		[ -x "$bindir/postgres" ] || echo "postgresql-$version"
	else
		sharedir=/usr/share/postgresql/$version
		echo "postgresql-server-dev-$version"
		[ -x "/usr/lib/postgresql/$version/bin/postgres" ] || echo "postgresql-$version"
	fi

	case $set_name in
		check | ci)
			command -v prove >/dev/null && have_perl_module Test::More || echo perl
			have_perl_module IPC::Run || echo libipc-run-perl
			command -v pg_prove >/dev/null || echo libtap-parser-sourcehandler-pgtap-perl
			[ -f "$sharedir/extension/pgtap.control" ] || echo "postgresql-$version-pgtap"
			# what the participants of examples/ run on, wherever it comes from
			have_psycopg2 || echo python3-psycopg2
			command -v node >/dev/null || echo nodejs
			command -v npm >/dev/null || echo npm
			PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || echo pgbouncer
			# what watches it: see monitoring/ and saga.report()
			[ -f "$sharedir/extension/pg_cron.control" ] || echo "postgresql-$version-cron"
			command -v prometheus >/dev/null || echo prometheus
			command -v prometheus-postgres-exporter >/dev/null || echo prometheus-postgres-exporter
			command -v chromium >/dev/null || echo chromium
			;;
	esac
	case $set_name in
		ci) command -v clang >/dev/null || echo clang ;;
		format) command -v clang-format >/dev/null || echo clang-format ;;
	esac
}

# "not root" is no reason to give up where sudo needs no password.
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	as_root=(sudo -n)
fi
can_install()
{
	command -v apt-get >/dev/null || return 1
	[ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

version=$(major)
packages=$(missing)

if [ -n "$packages" ] && can_install; then
	# The package lists of a fresh machine may be absent or old.
	"${as_root[@]}" apt-get update -qq </dev/null >&2
	version=$(major)
	packages=$(missing)
fi

case $version in
	15 | 16 | 17 | 18) ;;
	*)
		echo "saga needs PostgreSQL 15 to 18; this is PostgreSQL $version ($pg_config)" >&2
		exit 1
		;;
esac

[ -n "$packages" ] || exit 0

if ! can_install; then
	echo "These packages are missing, and only root can install them:" >&2
	echo "    apt-get install" $packages >&2
	exit 1
fi

echo "Installing:" $packages >&2
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
	apt-get install -y -qq --no-install-recommends)

# postgresql-NN makes a cluster and starts it when it is first installed.
# Nobody asked for one: the tests have servers of their own.
no_cluster=
trap '"${as_root[@]}" rm -f $no_cluster $no_start' EXIT
if ! [ -d /etc/postgresql ] && [[ $packages == *postgresql-* ]]; then
	"${install[@]}" postgresql-common </dev/null >&2
	no_cluster=/etc/postgresql-common/createcluster.d/saga-tests.conf
	"${as_root[@]}" mkdir -p "${no_cluster%/*}"
	echo "create_main_cluster = false" | "${as_root[@]}" tee "$no_cluster" >/dev/null
fi

# Nor for the daemons of monitoring packages: the tests start their own.
no_start=
if [[ $packages == *prometheus* ]] && ! [ -e /usr/sbin/policy-rc.d ]; then
	no_start=/usr/sbin/policy-rc.d
	printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$no_start" >/dev/null
	"${as_root[@]}" chmod +x "$no_start"
fi

"${install[@]}" $packages </dev/null >&2

hash -r
pg_config=${PG_CONFIG:-$(sh "$here/pg_config.sh")}
[ -x "$pg_config" ] || pg_config=$(sh "$here/pg_config.sh")
left=$(missing)
if [ -n "$left" ]; then
	echo "Still missing after the installation:" $left >&2
	exit 1
fi
