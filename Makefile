# saga: build with PGXS.  "make help" lists what there is.

EXTENSION = saga
MODULE_big = saga

# The version is written once, in the control file.
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" saga.control)

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
DATA = saga--$(EXTVERSION).sql $(sort $(wildcard saga--*--*.sql))
PG_CPPFLAGS = -Isrc -I$(libpq_srcdir) -DSAGA_VERSION='"$(EXTVERSION)"'

# The courier talks to other databases; it looks hosts up in a thread.
SHLIB_LINK = $(libpq) -lpthread

# pg_regress: setup first, cleanup last, the others in the order of their names.
REGRESS_ALL = $(basename $(notdir $(sort $(wildcard sql/*.sql))))
REGRESS = $(filter setup,$(REGRESS_ALL)) $(filter-out setup cleanup,$(REGRESS_ALL)) \
	$(filter cleanup,$(REGRESS_ALL))
ISOLATION = $(basename $(notdir $(sort $(wildcard test/specs/*.spec))))
ISOLATION_OPTS = --inputdir=test
TAP_TESTS = 1
PROVE_TESTS = $(sort $(wildcard test/t/*.pl))

EXTRA_CLEAN = results regression.diffs regression.out

# No bitcode: "make" needs neither clang nor llvm.
override with_llvm = no

PG_CONFIG ?= $(shell sh tools/pg_config.sh)

# What needs no PGXS, and so works before PostgreSQL is installed.
OWN_GOALS = help unit check demo bench strict format prerequisites

ifneq ($(filter-out $(OWN_GOALS),$(or $(MAKECMDGOALS),all)),)
OWN_CHECK = $(filter check,$(MAKECMDGOALS))
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(wildcard $(PGXS)),)
$(error no PostgreSQL server headers found: install postgresql-server-dev-NN \
	(15 to 18) or set PG_CONFIG, or let "make prerequisites" do it)
endif
include $(PGXS)

# PGXS has cleared this one.
PROVE_FLAGS = -I $(CURDIR)/test/lib

# PostgreSQL is usually built without dependency tracking.
$(OBJS): $(wildcard src/*.h)
else
OWN_CHECK = check
endif

export PG_CONFIG

help:
	@echo "make                 build the extension (PG_CONFIG=... chooses the server)"
	@echo "make install         install it there"
	@echo "make installcheck    run the tests on the server that is running"
	@echo "make unit            run the unit tests (needs a compiler only)"
	@echo "make check           run every test on throw-away servers, install nothing"
	@echo "                     but missing packages; SUITES=\"unit regress isolation"
	@echo "                     tap pgtap\", REGRESS=..., ISOLATION=..., PROVE_TESTS=...,"
	@echo "                     PGTAP_TESTS=... select; SAGA_KEEP=1 keeps the files"
	@echo "make demo            show it at work on a throw-away server"
	@echo "make bench           measure it on a throw-away server"
	@echo "make strict          compile with gcc and clang, every warning an error"
	@echo "make format          reformat the C sources"
	@echo "make prerequisites   install the packages that the above need (Debian)"

unit:
	@sh tools/unit.sh

# PGXS has a target of that name, which only says that it is not supported.
ifneq ($(OWN_CHECK),)
check:
	@bash tools/check.sh
endif

demo:
	@bash demo/demo.sh

bench:
	@bash bench/run.sh

strict:
	@bash tools/strict.sh

prerequisites:
	@bash tools/prerequisites.sh check

format:
	clang-format -i $(wildcard src/*.[ch] test/unit/*.[ch])

.PHONY: $(OWN_GOALS)
