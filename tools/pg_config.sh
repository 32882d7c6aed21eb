#!/bin/sh
# Print the pg_config to build with: on Debian that of the newest PostgreSQL
# (15 to 18) that has its server headers, elsewhere the one in PATH.
for v in 18 17 16 15; do
	if [ -x /usr/lib/postgresql/$v/bin/pg_config ] &&
		[ -f /usr/lib/postgresql/$v/lib/pgxs/src/makefiles/pgxs.mk ]; then
		echo /usr/lib/postgresql/$v/bin/pg_config
		exit 0
	fi
done
echo pg_config
