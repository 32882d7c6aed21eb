/*
 * trace.c
 *		Owns the ids of traces and spans.
 *
 * Nothing of them is stored but what saga.begin() was given: they are derived
 * from the saga's token whenever somebody asks.  The token is what participants
 * authenticate by, so that it must not be found from what everybody may see: the
 * ids are parts of a SHA-256 over it, each kind of id under a label of its own.
 *
 *		trace id	the one that was given, else bytes 0 to 15 of the hash of "s" and
 *					the token
 *		span id		of a saga bytes 16 to 23 of the same; of an operation bytes 0 to 7
 *					of the hash of "o", the token, its number (0 action, 1
 *					compensation, 2 confirmation) in a byte, element and round in
 *					four bytes each, and the name of its step
 *
 * The parent of an operation's span is the saga's, and that of the saga's is the
 * one it was begun with.  A child saga is begun with its parent's operation.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/sha2.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/resowner.h"

#include "trace.h"

/* Where the parts of a traceparent stand: version, trace, span, flags. */
#define TRACE_AT		3
#define SPAN_AT			(TRACE_AT + SAGA_TRACE_ID_LENGTH + 1)
#define FLAGS_AT		(SPAN_AT + SAGA_SPAN_ID_LENGTH + 1)
#define LENGTH			(FLAGS_AT + 2)

/* What a later version has to say is not kept beyond this. */
#define MAX_LENGTH		512

/* The ids of so many sagas are remembered: of more than are in a batch. */
#define NREMEMBERED		128


/* ---- what is given ------------------------------------------------------- */

static bool
are_zeros(const char *digits, int n)
{
	for (int i = 0; i < n; i++)
		if (digits[i] != '0')
			return false;
	return true;
}

/* A later version may have more to say, behind another dash. */
bool
saga_trace_is_valid(const char *traceparent)
{
	static const char form[] = "hh-hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh-hhhhhhhhhhhhhhhh-hh";

	StaticAssertStmt(sizeof(form) - 1 == LENGTH, "traceparent has another length");
	for (int i = 0; i < LENGTH; i++)
	{
		char		c = traceparent[i];

		if (form[i] == '-' ? c != '-' :
			!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
	}
	if (strncmp(traceparent, "ff", 2) == 0)
		return false;
	if (traceparent[LENGTH] != '\0' &&
		(traceparent[LENGTH] != '-' || strncmp(traceparent, "00", 2) == 0))
		return false;
	return strlen(traceparent) <= MAX_LENGTH &&
		!are_zeros(traceparent + TRACE_AT, SAGA_TRACE_ID_LENGTH) &&
		!are_zeros(traceparent + SPAN_AT, SAGA_SPAN_ID_LENGTH);
}

static int
digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* Of flags that are not known yet nothing is passed on. */
static int
read_flags(const char *traceparent)
{
	return digit(traceparent[FLAGS_AT + 1]) & SAGA_TRACE_SAMPLED;
}


/* ---- what is derived ------------------------------------------------------ */

/* What kind of id is derived, so that none is a part of another. */
typedef enum Label
{
	LABEL_SAGA = 's',
	LABEL_OPERATION = 'o'
} Label;

/* What an id is derived from: these bytes, and of an operation its step's name. */
typedef struct Origin
{
	uint8		label;
	uint8		token[UUID_LEN];
	uint8		operation;		/* from here on of an operation only */
	uint8		element[4];		/* the most significant byte first */
	uint8		round[4];
} Origin;

#define ORIGIN_OF_SAGA	offsetof(Origin, operation)

/* The ids of a saga, with the token that they are derived from. */
typedef struct SagaIds
{
	pg_uuid_t	token;
	char		trace_id[SAGA_TRACE_ID_LENGTH + 1]; /* "" = nothing is here */
	char		span_id[SAGA_SPAN_ID_LENGTH + 1];
} SagaIds;

/*
 * Made once, since that takes longer than a hash.  It belongs to a resource
 * owner that lasts as long as the process: a line may be logged after a commit,
 * when there is no other.
 */
static pg_cryptohash_ctx *hasher = NULL;

/* Of the sagas that this process has worked for lately, by a byte of their token. */
static SagaIds remembered[NREMEMBERED];

static void
make_hasher(void)
{
	static ResourceOwner owner = NULL;
	ResourceOwner caller = CurrentResourceOwner;

	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "saga trace");
	CurrentResourceOwner = owner;
	hasher = pg_cryptohash_create(PG_SHA256);
	CurrentResourceOwner = caller;
}

static void
hash(const void *message, size_t length, uint8 digest[PG_SHA256_DIGEST_LENGTH])
{
	if (hasher == NULL)
		make_hasher();
	if (pg_cryptohash_init(hasher) < 0 ||
		pg_cryptohash_update(hasher, message, length) < 0 ||
		pg_cryptohash_final(hasher, digest, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute a SHA-256 hash: %s",
			 pg_cryptohash_error(hasher));
}

/* "n" hexadecimal digits, and a zero. */
static void
put_digits(char *digits, const uint8 *bytes, int n)
{
	hex_encode((const char *) bytes, n / 2, digits);
	digits[n] = '\0';
}

static void
start_origin(Origin *origin, Label label, const pg_uuid_t *token)
{
	origin->label = (uint8) label;
	memcpy(origin->token, token->data, UUID_LEN);
}

static void
put_number(uint8 bytes[4], int number)
{
	uint32		value = pg_hton32((uint32) number);

	memcpy(bytes, &value, sizeof(value));
}

static const SagaIds *
derive_of_saga(const pg_uuid_t *token)
{
	SagaIds    *ids = &remembered[token->data[0] % NREMEMBERED];
	uint8		digest[PG_SHA256_DIGEST_LENGTH];
	Origin		origin;

	if (ids->trace_id[0] != '\0' &&
		memcmp(ids->token.data, token->data, UUID_LEN) == 0)
		return ids;
	start_origin(&origin, LABEL_SAGA, token);
	hash(&origin, ORIGIN_OF_SAGA, digest);
	ids->token = *token;
	put_digits(ids->trace_id, digest, SAGA_TRACE_ID_LENGTH);
	put_digits(ids->span_id, digest + SAGA_TRACE_ID_LENGTH / 2,
			   SAGA_SPAN_ID_LENGTH);
	return ids;
}

static bool
is_given(const char *traceparent)
{
	return traceparent != NULL && saga_trace_is_valid(traceparent);
}

void
saga_trace_of_saga(const pg_uuid_t *token, const char *traceparent,
				   SagaTrace *trace)
{
	const SagaIds *ids = derive_of_saga(token);

	memset(trace, 0, sizeof(*trace));
	if (is_given(traceparent))
	{
		strlcpy(trace->trace_id, traceparent + TRACE_AT,
				sizeof(trace->trace_id));
		strlcpy(trace->parent_id, traceparent + SPAN_AT,
				sizeof(trace->parent_id));
		trace->flags = read_flags(traceparent);
	}
	else
	{
		memcpy(trace->trace_id, ids->trace_id, sizeof(trace->trace_id));
		trace->flags = SAGA_TRACE_SAMPLED;
	}
	memcpy(trace->span_id, ids->span_id, sizeof(trace->span_id));
}

/* "digits" has room for SAGA_SPAN_ID_LENGTH and a zero. */
static void
derive_of_operation(const pg_uuid_t *token, const char *step, int element,
					int round, SagaOperation operation, char *digits)
{
	size_t		step_length = strlen(step);
	size_t		length = sizeof(Origin) + step_length;
	uint8		buffer[sizeof(Origin) + 64];
	uint8	   *message = length <= sizeof(buffer) ? buffer : palloc(length);
	Origin	   *origin = (Origin *) message;
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	start_origin(origin, LABEL_OPERATION, token);
	origin->operation = (uint8) operation;
	put_number(origin->element, element);
	put_number(origin->round, round);
	memcpy(message + sizeof(Origin), step, step_length);
	hash(message, length, digest);
	put_digits(digits, digest, SAGA_SPAN_ID_LENGTH);
	if (message != buffer)
		pfree(message);
}

char *
saga_trace_span_id(const pg_uuid_t *token, const char *step, int element,
				   int round, SagaOperation operation)
{
	char	   *digits = palloc(SAGA_SPAN_ID_LENGTH + 1);

	derive_of_operation(token, step, element, round, operation, digits);
	return digits;
}

/* Written piece by piece: each operation that is given its context has one. */
char *
saga_trace_of_operation(const SagaCallRequest *request)
{
	const char *given = request->traceparent;
	char	   *text = palloc(LENGTH + 1);
	int			flags = SAGA_TRACE_SAMPLED;

	memcpy(text, "00-", TRACE_AT);
	if (is_given(given))
	{
		memcpy(text + TRACE_AT, given + TRACE_AT, SAGA_TRACE_ID_LENGTH);
		flags = read_flags(given);
	}
	else
		memcpy(text + TRACE_AT, derive_of_saga(request->token)->trace_id,
			   SAGA_TRACE_ID_LENGTH);
	text[SPAN_AT - 1] = '-';
	derive_of_operation(request->token,
						request->definition->steps[request->step].name,
						request->element, request->round, request->operation,
						text + SPAN_AT);
	memcpy(text + FLAGS_AT - 1, flags == 0 ? "-00" : "-01", 4);
	return text;
}
