/*
 * inflight.c
 *		The crash record: pg_stat_tmp/saga_inflight.map.
 *
 * A step that crashes its process makes the postmaster throw away shared
 * memory, and with it the knowledge of what crashed.  So each executor writes
 * the operation it is in also to its record of this file, which the postmaster
 * maps before it forks anybody: a store to memory per operation, no system
 * call.  At the next (re)start the postmaster takes the records that are not
 * empty; their operations are counted as attempts that ended the process.
 *
 * Not to blame, and so excused, are:
 * - processes that the postmaster ends with SIGQUIT, because another one
 *	 crashed or the server is shut down at once: their handler says so here;
 * - all of them when the postmaster itself ends orderly, or the control file
 *	 says that the server was shut down cleanly.
 *
 * The file is never flushed on purpose.  After a loss of power it may hold an
 * older operation, or none: a record carries the "turn" of its saga, and one
 * of another turn is ignored by the engine.
 *
 * Records are written by their executor only, the saga's id last and cleared
 * first, so that a record is whole whenever its id is not 0.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "storage/ipc.h"

#include "inflight.h"

#define INFLIGHT_FILE		"pg_stat_tmp/saga_inflight.map"
#define INFLIGHT_MAGIC		0x53414741
#define INFLIGHT_VERSION	2

typedef struct InflightRecord
{
	Oid			database;
	Oid			role;
	uint32		excused;		/* its process was ended because of another */
	uint32		padding;
	SagaOperationRef what;		/* saga_id = 0: in no operation */
} InflightRecord;

typedef struct InflightFile
{
	uint32		magic;
	uint32		version;
	uint32		record_size;
	uint32		nrecords;
	InflightRecord records[FLEXIBLE_ARRAY_MEMBER];
} InflightFile;

/* Mapped by the postmaster, inherited by everyone. */
static InflightFile *inflight = NULL;

/* Is it what this version writes? */
static bool
file_is_ours(const InflightFile *file, int nrecords)
{
	return file->magic == INFLIGHT_MAGIC &&
		file->version == INFLIGHT_VERSION &&
		file->record_size == sizeof(InflightRecord) &&
		file->nrecords == (uint32) nrecords;
}

/*
 * Open the file at exactly that size, its blocks allocated: a store to a hole
 * of a mapped file is a SIGBUS when the disk is full.  *fresh is set when
 * there was none of that size.  Returns -1, with a warning, if that fails.
 */
static int
open_file(size_t size, bool *fresh)
{
	int			fd;
	struct stat st;

	fd = open(INFLIGHT_FILE, O_RDWR | O_CREAT | PG_BINARY, pg_file_create_mode);
	if (fd < 0)
	{
		ereport(WARNING,
				errcode_for_file_access(),
				errmsg("could not open file \"%s\": %m", INFLIGHT_FILE));
		return -1;
	}

	*fresh = false;
	if (fstat(fd, &st) == 0 && st.st_size == (off_t) size)
		return fd;

	*fresh = true;
	if (ftruncate(fd, 0) == 0)
	{
		char		zeros[1024] = {0};
		size_t		done = 0;

		while (done < size)
		{
			size_t		part = Min(sizeof(zeros), size - done);

			errno = 0;
			if (write(fd, zeros, part) != (ssize_t) part)
			{
				/* if write didn't set errno, assume no disk space */
				if (errno == 0)
					errno = ENOSPC;
				break;
			}
			done += part;
		}
		if (done == size)
			return fd;
	}

	ereport(WARNING,
			errcode_for_file_access(),
			errmsg("could not write file \"%s\": %m", INFLIGHT_FILE));
	close(fd);
	unlink(INFLIGHT_FILE);
	return -1;
}

/* Was the server shut down cleanly before this start? */
static bool
shutdown_was_clean(void)
{
	ControlFileData *control;
	bool		crc_ok;
	bool		clean;

	control = get_controlfile(DataDir, &crc_ok);
	clean = crc_ok &&
		(control->state == DB_SHUTDOWNED ||
		 control->state == DB_SHUTDOWNED_IN_RECOVERY);
	pfree(control);
	return clean;
}

static void
forget_all(void)
{
	for (uint32 i = 0; i < inflight->nrecords; i++)
		saga_inflight_clear(i);
}

/* The postmaster ends by itself: no operation is to blame. */
static void
postmaster_exits(int code, Datum arg)
{
	(void) arg;
	if (code == 0 && inflight != NULL)
		forget_all();
}

bool
saga_inflight_open(int nrecords)
{
	size_t		size = offsetof(InflightFile, records) +
		nrecords * sizeof(InflightRecord);
	bool		fresh;
	int			fd;
	void	   *map;

	/* After a crash of another process: still mapped. */
	if (inflight != NULL)
		return true;
	if (!IsPostmasterEnvironment || IsUnderPostmaster)
		return false;

	fd = open_file(size, &fresh);
	if (fd < 0)
		return false;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
	{
		ereport(WARNING,
				errmsg("could not map file \"%s\": %m", INFLIGHT_FILE));
		return false;
	}
	inflight = map;

	if (!fresh && !file_is_ours(inflight, nrecords))
	{
		ereport(WARNING,
				errcode(ERRCODE_DATA_CORRUPTED),
				errmsg("ignoring invalid data in file \"%s\"", INFLIGHT_FILE));
		fresh = true;
	}
	if (fresh)
	{
		memset(inflight, 0, size);
		inflight->magic = INFLIGHT_MAGIC;
		inflight->version = INFLIGHT_VERSION;
		inflight->record_size = sizeof(InflightRecord);
		inflight->nrecords = nrecords;
	}
	else if (shutdown_was_clean())
		forget_all();

	on_proc_exit(postmaster_exits, (Datum) 0);
	return true;
}

bool
saga_inflight_take(int index, SagaLost *lost)
{
	InflightRecord *record = &inflight->records[index];
	const SagaOperationRef *what = &record->what;
	bool		blamed;

	/* a damaged file is no reason for more than an unfounded look */
	blamed = what->saga_id > 0 && !record->excused &&
		OidIsValid(record->database) && OidIsValid(record->role) &&
		what->step >= 0 && what->attempt >= 0 &&
		what->operation >= 0 && what->operation < SAGA_NOPERATION;
	if (blamed)
	{
		lost->database = record->database;
		lost->role = record->role;
		lost->what = *what;
	}
	saga_inflight_clear(index);
	return blamed;
}

void
saga_inflight_set(int index, Oid database, Oid role,
				  const SagaOperationRef *what)
{
	InflightRecord *record;

	if (inflight == NULL)
		return;
	record = &inflight->records[index];

	record->what.saga_id = 0;
	pg_write_barrier();
	record->database = database;
	record->role = role;
	record->excused = 0;
	record->what.branch = what->branch;
	record->what.slot = what->slot;
	record->what.step = what->step;
	record->what.element = what->element;
	record->what.operation = what->operation;
	record->what.attempt = what->attempt;
	record->what.turn = what->turn;
	pg_write_barrier();
	record->what.saga_id = what->saga_id;
}

void
saga_inflight_clear(int index)
{
	if (inflight == NULL)
		return;
	inflight->records[index].what.saga_id = 0;
	inflight->records[index].excused = 0;
}

void
saga_inflight_excuse(int index)
{
	if (inflight != NULL)
		inflight->records[index].excused = 1;
}
