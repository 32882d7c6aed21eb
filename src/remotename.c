/*
 * remotename.c
 *		Owns how functions of other databases are named: read as users write
 *		them, and written so that nothing but a name can come of them.
 *
 * PostgreSQL's own functions for that look into lists of keywords and at
 * settings, which may be others tomorrow, or on the other side; or they take
 * anything up to the next dot for a name.
 *
 * Runs in any backend, on memory only.
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "remotename.h"

static bool
is_first_of_name(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
		c >= 0x80;
}

static bool
is_in_name(unsigned char c)
{
	return is_first_of_name(c) || (c >= '0' && c <= '9') || c == '$';
}

/* One name in quotes, or without them in small letters; NULL if there is none.
 * *p goes behind it. */
static char *
read_identifier(const char **p)
{
	StringInfoData name;
	const char *c = *p;

	initStringInfo(&name);
	if (*c == '"')
	{
		for (c++; *c != '"' || *++c == '"'; c++)
		{
			if (*c == '\0')
				return NULL;
			appendStringInfoChar(&name, *c);
		}
	}
	else if (is_first_of_name(*c))
	{
		for (; is_in_name(*c); c++)
			appendStringInfoChar(&name, *c >= 'A' && *c <= 'Z' ?
								 *c - 'A' + 'a' : *c);
	}
	*p = c;
	return name.len > 0 ? name.data : NULL;
}

const char *
saga_remote_name_parse(const char *text, SagaRemoteName *name)
{
	const char *p = text;
	char	   *first = read_identifier(&p);
	char	   *second = NULL;

	if (first != NULL && *p == '.')
	{
		p++;
		second = read_identifier(&p);
		if (second == NULL)
			first = NULL;
	}
	if (first == NULL || *p != '\0')
		return psprintf("\"%s\" is not the name of a function.", text);
	if (strlen(first) >= NAMEDATALEN ||
		(second != NULL && strlen(second) >= NAMEDATALEN))
		return psprintf("A name has at most %d bytes.", NAMEDATALEN - 1);
	name->schema = second != NULL ? first : NULL;
	name->function = second != NULL ? second : first;
	return NULL;
}

static void
append_quoted(StringInfo buf, const char *identifier)
{
	appendStringInfoChar(buf, '"');
	for (; *identifier != '\0'; identifier++)
	{
		if (*identifier == '"')
			appendStringInfoChar(buf, '"');
		appendStringInfoChar(buf, *identifier);
	}
	appendStringInfoChar(buf, '"');
}

/* In quotes if it would be read as another name without them. */
static void
append_readable(StringInfo buf, const char *identifier)
{
	bool		is_plain = !(identifier[0] >= '0' && identifier[0] <= '9');

	for (const char *c = identifier; *c != '\0' && is_plain; c++)
		is_plain = (*c >= 'a' && *c <= 'z') || *c == '_' ||
			(*c >= '0' && *c <= '9');
	if (is_plain)
		appendStringInfoString(buf, identifier);
	else
		append_quoted(buf, identifier);
}

static char *
write_name(const SagaRemoteName *name,
		   void (*append) (StringInfo buf, const char *identifier))
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (name->schema != NULL)
	{
		append(&buf, name->schema);
		appendStringInfoChar(&buf, '.');
	}
	append(&buf, name->function);
	return buf.data;
}

char *
saga_remote_name_text(const SagaRemoteName *name)
{
	return write_name(name, append_readable);
}

char *
saga_remote_name_quoted(const SagaRemoteName *name)
{
	return write_name(name, append_quoted);
}
