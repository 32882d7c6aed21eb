/*
 * foreign.c
 *		Owns the way from the name of a foreign server and a role to what libpq
 *		is told, and the rules that protect this server on it.
 *
 * The rules are those of dblink and postgres_fdw, but asked about the role that
 * a call is made for: the process that connects is a superuser, and to ask about
 * the current user would lend every role this server's own identity.
 *
 *	- The role has USAGE on the server, and a user mapping, its own or PUBLIC's.
 *	- Unless it is a superuser its mapping has a password, and the connection
 *	  counts only if that was asked for; or a superuser has set
 *	  "password_required" of the mapping (postgres_fdw) to false.
 *	- Files with credentials are this server's: only what a superuser has set
 *	  names one.
 *	- Options that are not on the list below are refused, not passed on.  They
 *	  travel as arrays of keywords and values, so none can hide in another.
 *
 * Which wrapper is one of PostgreSQL's is told by the extension it belongs to:
 * its name can be changed, and the validator of that extension has seen the
 * options.
 *
 * Any backend, in a transaction; reads the system catalogs through their caches.
 */
#include "postgres.h"

#include <sys/stat.h>

#include "access/genam.h"
#include "catalog/dependency.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "foreign/foreign.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "foreign.h"

#define OF_SERVER	1			/* may be an option of the server, ... */
#define OF_MAPPING	2			/* ... of the mapping */
#define IS_FILE		4			/* names a file with credentials */
#define IS_DROPPED	8			/* we have a value of our own */
#define IS_READ		16			/* names a file that anybody may have read */

/* A certificate, or a list of revoked ones, is no larger. */
#define MAX_FILE_SIZE	(1024 * 1024)

typedef struct OptionRule
{
	const char *keyword;
	int			flags;
} OptionRule;

/* What of libpq's is passed on. */
static const OptionRule libpq_options[] = {
	{"host", OF_SERVER},
	{"hostaddr", OF_SERVER},
	{"port", OF_SERVER},
	{"dbname", OF_SERVER},
	{"user", OF_MAPPING},
	{"password", OF_MAPPING},
	{"application_name", OF_SERVER},
	{"channel_binding", OF_SERVER},
	{"connect_timeout", OF_SERVER},
	{"gssencmode", OF_SERVER | IS_DROPPED},
	{"keepalives", OF_SERVER},
	{"keepalives_count", OF_SERVER},
	{"keepalives_idle", OF_SERVER},
	{"keepalives_interval", OF_SERVER},
	{"load_balance_hosts", OF_SERVER},
	{"options", OF_SERVER},
	{"passfile", OF_SERVER | IS_FILE},
	{"require_auth", OF_SERVER},
	{"requirepeer", OF_SERVER},
	{"ssl_max_protocol_version", OF_SERVER},
	{"ssl_min_protocol_version", OF_SERVER},
	{"sslcert", OF_SERVER | OF_MAPPING | IS_FILE},
	{"sslcertmode", OF_SERVER},
	{"sslcompression", OF_SERVER},
	{"sslcrl", OF_SERVER | IS_READ},
	{"sslcrldir", OF_SERVER | IS_FILE},
	{"sslkey", OF_SERVER | OF_MAPPING | IS_FILE},
	{"sslmode", OF_SERVER},
	{"sslnegotiation", OF_SERVER},
	{"sslpassword", OF_MAPPING},
	{"sslrootcert", OF_SERVER | IS_READ},
	{"sslsni", OF_SERVER},
	{"target_session_attrs", OF_SERVER},
	{"tcp_user_timeout", OF_SERVER}
};

/* What is the wrappers' own, and says nothing about the way there. */
static const char *const wrapper_options[] = {
	"analyze_sampling", "async_capable", "batch_size", "extensions",
	"fdw_startup_cost", "fdw_tuple_cost", "fetch_size", "keep_connections",
	"parallel_abort", "parallel_commit", "password_required", "truncatable",
	"updatable", "use_remote_estimate", "use_scram_passthrough"
};

/* So that a server that is gone without a word is noticed within a minute or
 * so; where the options say otherwise that counts. */
static const char *const defaults[][2] = {
	{"application_name", "saga courier"},
	{"keepalives_idle", "30"},
	{"keepalives_interval", "10"},
	{"keepalives_count", "3"}
};

/* A file that cannot be: there is no directory of that name. */
#define NO_PASSFILE	"/dev/null/saga"

/* No option of a user's, what is added to them: defaults, gssencmode,
 * passfile, client_encoding and the end. */
#define NADDED		(lengthof(defaults) + 4)

/* What is being found out. */
typedef struct Finding
{
	SagaTarget *target;
	const ForeignServer *server;
	bool		by_postgres_fdw;	/* its validator has seen the options */
	bool		superuser;		/* the role */
	bool		has_password;
} Finding;


/* ---- the server ----------------------------------------------------------- */

static char *
extension_of(Oid class, Oid object)
{
	Oid			extension = getExtensionOfObject(class, object);

	return OidIsValid(extension) ? get_extension_name(extension) : NULL;
}

static bool
is_of_extension(Oid class, Oid object, const char *name)
{
	char	   *extension = extension_of(class, object);

	return extension != NULL && strcmp(extension, name) == 0;
}

/* The server of that name that saga can connect to and the role may use. */
static ForeignServer *
find_server(const char *name, Oid role, bool *by_postgres_fdw)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	ForeignDataWrapper *wrapper;
	AclResult	acl;

	if (server == NULL)
		ereport(ERROR,
				errcode(ERRCODE_UNDEFINED_OBJECT),
				errmsg("server \"%s\" does not exist", name));
	wrapper = GetForeignDataWrapper(server->fdwid);
	*by_postgres_fdw = is_of_extension(ForeignDataWrapperRelationId,
									   wrapper->fdwid, "postgres_fdw");
	if (!*by_postgres_fdw &&
		!is_of_extension(ForeignDataWrapperRelationId, wrapper->fdwid,
						 "dblink"))
		ereport(ERROR,
				errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				errmsg("cannot call functions on server \"%s\"", name),
				errdetail("Foreign-data wrapper \"%s\" is neither dblink's nor postgres_fdw's.",
						  wrapper->fdwname),
				errhint("Create the server with FOREIGN DATA WRAPPER dblink_fdw or postgres_fdw."));
	if (*by_postgres_fdw)
		*by_postgres_fdw = OidIsValid(wrapper->fdwvalidator) &&
			is_of_extension(ProcedureRelationId, wrapper->fdwvalidator,
							"postgres_fdw");

	acl = saga_server_aclcheck(server->serverid, role);
	if (acl != ACLCHECK_OK)
		ereport(ERROR,
				errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				errmsg("permission denied for foreign server %s", name),
				errdetail("Role \"%s\" has no USAGE on it.",
						  GetUserNameFromId(role, false)));
	return server;
}

void
saga_foreign_check(const char *server_name)
{
	bool		by_postgres_fdw;

	(void) find_server(server_name, GetUserId(), &by_postgres_fdw);
}


/* ---- the mapping ---------------------------------------------------------- */

static bool
mapping_is_there(Oid role, Oid server)
{
	return SearchSysCacheExists2(USERMAPPINGUSERSERVER,
								 ObjectIdGetDatum(role),
								 ObjectIdGetDatum(server)) ||
		SearchSysCacheExists2(USERMAPPINGUSERSERVER,
							  ObjectIdGetDatum(InvalidOid),
							  ObjectIdGetDatum(server));
}

/* NULL: the role needs none. */
static UserMapping *
find_mapping(const Finding *finding, Oid role)
{
	if (mapping_is_there(role, finding->server->serverid))
		return GetUserMapping(role, finding->server->serverid);
	if (finding->superuser)
		return NULL;
	ereport(ERROR,
			errcode(ERRCODE_UNDEFINED_OBJECT),
			errmsg("user mapping not found for user \"%s\", server \"%s\"",
				   finding->target->role_name,
				   finding->target->server_name));
}

/* As postgres_fdw, whose validator lets only superusers say false. */
static bool
requires_password(const Finding *finding, const UserMapping *mapping)
{
	ListCell   *cell;

	if (finding->superuser)
		return false;
	if (mapping == NULL || !finding->by_postgres_fdw)
		return true;
	foreach(cell, mapping->options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);

		if (strcmp(option->defname, "password_required") == 0)
			return defGetBoolean(option);
	}
	return true;
}

static void
check_password(const Finding *finding)
{
	if (!finding->target->needs_password || finding->has_password)
		return;
	ereport(ERROR,
			errcode(ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED),
			errmsg("password is required"),
			errdetail("Non-superusers must provide a password in the user mapping."));
}


/* ---- options -------------------------------------------------------------- */

static const OptionRule *
find_rule(const char *keyword)
{
	for (int i = 0; i < (int) lengthof(libpq_options); i++)
	{
		if (strcmp(libpq_options[i].keyword, keyword) == 0)
			return &libpq_options[i];
	}
	return NULL;
}

static bool
is_wrapper_option(const char *keyword)
{
	for (int i = 0; i < (int) lengthof(wrapper_options); i++)
	{
		if (strcmp(wrapper_options[i], keyword) == 0)
			return true;
	}
	return false;
}

static void
refuse_option(const Finding *finding, const char *keyword)
{
	ereport(ERROR,
			errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			errmsg("cannot use option \"%s\" of server \"%s\"", keyword,
				   finding->target->server_name),
			errdetail("It is not among the options with which saga connects."));
}

/* libpq reads it without giving us a chance to stop that: so it must be a file
 * that ends, and no pipe. */
static void
check_readable(const char *option, const char *path)
{
	struct stat st;

	/* one that is not there libpq reports; "system" is none */
	if (stat(path, &st) != 0)
		return;
	if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_SIZE)
		ereport(ERROR,
				errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				errmsg("invalid value for option \"%s\"", option),
				errdetail("\"%s\" is no file of at most %d bytes.", path,
						  MAX_FILE_SIZE));
}

/* Only a superuser may have named this file: as the server's owner, or past
 * postgres_fdw's validator. */
static void
check_file(const Finding *finding, const char *keyword, int place)
{
	if (finding->superuser)
		return;
	if (place == OF_SERVER ? superuser_arg(finding->server->owner) :
		finding->by_postgres_fdw)
		return;
	ereport(ERROR,
			errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			errmsg("permission denied for option \"%s\" of server \"%s\"",
				   keyword, finding->target->server_name),
			errdetail("It names a file of this server; only superusers may use one."));
}

static void
put_option(SagaTarget *target, const char *keyword, const char *value)
{
	target->keywords[target->noptions] = pstrdup(keyword);
	target->values[target->noptions] = pstrdup(value);
	target->noptions++;
}

static bool
has_option(const SagaTarget *target, const char *keyword)
{
	for (int i = 0; i < target->noptions; i++)
	{
		if (strcmp(target->keywords[i], keyword) == 0)
			return true;
	}
	return false;
}

static void
take_options(Finding *finding, List *options, int place)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = (DefElem *) lfirst(cell);
		const OptionRule *rule = find_rule(option->defname);
		char	   *value;

		if (rule == NULL && is_wrapper_option(option->defname))
			continue;
		if (rule == NULL || (rule->flags & place) == 0)
			refuse_option(finding, option->defname);
		value = defGetString(option);
		if (rule->flags & IS_FILE)
			check_file(finding, option->defname, place);
		if (rule->flags & IS_READ)
			check_readable(option->defname, value);
		if (strcmp(rule->keyword, "gssencmode") == 0 &&
			strcmp(value, "require") == 0)
			refuse_option(finding, option->defname);
		if (rule->flags & IS_DROPPED || value[0] == '\0')
			continue;
		if (strcmp(rule->keyword, "password") == 0)
			finding->has_password = true;
		put_option(finding->target, rule->keyword, value);
	}
}

static void
add_options(SagaTarget *target)
{
	for (int i = 0; i < (int) lengthof(defaults); i++)
	{
		if (!has_option(target, defaults[i][0]))
			put_option(target, defaults[i][0], defaults[i][1]);
	}

	/* Kerberos needs credentials of the client, and waits in libpq. */
	put_option(target, "gssencmode", "disable");

	/* Whoever must use the password of the mapping uses no other. */
	if (target->needs_password && !has_option(target, "passfile"))
		put_option(target, "passfile", NO_PASSFILE);
	put_option(target, "client_encoding", GetDatabaseEncodingName());
	target->keywords[target->noptions] = NULL;
	target->values[target->noptions] = NULL;
}

static uint64
hash_text(const char *text, uint64 seed)
{
	return hash_bytes_extended((const unsigned char *) text, strlen(text) + 1,
							   seed);
}

static uint64
fingerprint(const SagaTarget *target)
{
	Oid			oids[3] = {target->server, target->mapping, target->role};
	uint64		hash;

	hash = hash_bytes_extended((const unsigned char *) oids, sizeof(oids),
							   target->needs_password);
	hash = hash_text(target->server_name, hash);
	hash = hash_text(target->role_name, hash);
	for (int i = 0; i < target->noptions; i++)
	{
		hash = hash_text(target->keywords[i], hash);
		hash = hash_text(target->values[i], hash);
	}
	return hash;
}


/* ---- all of it ------------------------------------------------------------ */

static void
find_target(const char *server_name, Oid role, SagaTarget *target)
{
	Finding		finding = {0};
	UserMapping *mapping;
	int			noptions;

	memset(target, 0, sizeof(*target));
	finding.target = target;
	finding.superuser = superuser_arg(role);
	target->role = role;
	target->role_name = GetUserNameFromId(role, false);
	target->server_name = pstrdup(server_name);
	finding.server = find_server(server_name, role, &finding.by_postgres_fdw);
	target->server = finding.server->serverid;
	mapping = find_mapping(&finding, role);
	target->mapping = mapping == NULL ? InvalidOid : mapping->umid;
	target->needs_password = requires_password(&finding, mapping);

	noptions = list_length(finding.server->options) + NADDED;
	if (mapping != NULL)
		noptions += list_length(mapping->options);
	target->keywords = palloc(noptions * sizeof(char *));
	target->values = palloc(noptions * sizeof(char *));
	take_options(&finding, finding.server->options, OF_SERVER);
	if (mapping != NULL)
		take_options(&finding, mapping->options, OF_MAPPING);
	check_password(&finding);
	add_options(target);
	target->fingerprint = fingerprint(target);
}

void
saga_foreign_find(const char *server_name, Oid role, MemoryContext context,
				  SagaTarget *target)
{
	MemoryContext caller = MemoryContextSwitchTo(context);

	find_target(server_name, role, target);
	MemoryContextSwitchTo(caller);
}


/* ---- changes -------------------------------------------------------------- */

static uint64 changes = 1;

static void
count_change(Datum arg, int cacheid, uint32 hash)
{
	(void) arg;
	(void) cacheid;
	(void) hash;
	changes++;
}

uint64
saga_foreign_changes(void)
{
	/* Memberships: USAGE, and what makes a superuser of nobody else. */
	static const int caches[] = {
		FOREIGNSERVEROID, USERMAPPINGOID, FOREIGNDATAWRAPPEROID, AUTHOID,
		AUTHMEMROLEMEM
	};
	static bool listening = false;

	if (!listening)
	{
		listening = true;
		for (int i = 0; i < (int) lengthof(caches); i++)
			CacheRegisterSyscacheCallback(caches[i], count_change, (Datum) 0);
	}
	return changes;
}
