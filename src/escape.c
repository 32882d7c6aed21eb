/*
 * escape.c
 *		Texts of pictures.  Above all those of users, as names, keys, errors and
 *		reasons are, in what another program reads: HTML, Mermaid, DOT, a
 *		terminal.
 *
 * Any backend.  Pure: only the text decides.  What comes out means the same
 * text there and nothing else, whatever the text is; characters that are not
 * seen, or that change how others are seen, are written as <U+202E>.
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"

PG_FUNCTION_INFO_V1(saga_escape);
PG_FUNCTION_INFO_V1(saga_time_text);

/* Writes one character that is there to be seen, behind those before it. */
typedef void (*PutCharacter) (StringInfo out, pg_wchar c);

/* What is not ASCII, in UTF-8. */
static void
put_utf8(StringInfo out, pg_wchar c)
{
	unsigned char bytes[5] = {0};

	unicode_to_utf8(c, bytes);
	appendBinaryStringInfo(out, (char *) bytes, pg_utf_mblen(bytes));
}

static void
put_plain(StringInfo out, pg_wchar c)
{
	put_utf8(out, c == '\n' || c == '\t' ? ' ' : c);
}

/* Only ASCII comes out, so the encoding of the page does not matter. */
static void
put_html(StringInfo out, pg_wchar c)
{
	if (c >= 0x80 || strchr("&<>\"'`", (int) c) != NULL)
		appendStringInfo(out, "&#%u;", c);
	else
		appendStringInfoChar(out, (char) c);
}

/* Is nothing there but digits?  A point after them would make it a list. */
static bool
is_number(StringInfo out)
{
	return strspn(out->data, "0123456789") == (size_t) out->len;
}

/* Within the quotes of a label.  A colon could make it an icon, a dollar a
 * formula, a dash or a point at the beginning a list. */
static void
put_mermaid(StringInfo out, pg_wchar c)
{
	if (c == '\n' || c == '\t')
		c = ' ';
	if (c >= 0x80)
		put_utf8(out, c);
	else if (isalnum((int) c) || (out->len > 0 && c == ' ') || c == '_' ||
			 (strchr(".,/()-", (int) c) != NULL && !is_number(out)))
		appendStringInfoChar(out, (char) c);
	else
		appendStringInfo(out, "#%u;", c);
}

/* Within double quotes. */
static void
put_dot(StringInfo out, pg_wchar c)
{
	if (c == '&')
		appendStringInfoString(out, "&amp;");
	else if (c == '"' || c == '\\')
		appendStringInfo(out, "\\%c", (int) c);
	else
		put_plain(out, c);
}

static PutCharacter
put_function(const char *form)
{
	if (strcmp(form, "plain") == 0)
		return put_plain;
	if (strcmp(form, "html") == 0)
		return put_html;
	if (strcmp(form, "mermaid") == 0)
		return put_mermaid;
	if (strcmp(form, "dot") == 0)
		return put_dot;
	ereport(ERROR,
			errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			errmsg("unrecognized form of text: \"%s\"", form));
}

/* Controls, and what Unicode has of them: marks of direction, separators of
 * lines, spaces without width, tags.  Joiners are part of what is seen. */
static bool
is_hidden(pg_wchar c)
{
	return (c < 0x20 && c != '\n' && c != '\t') ||
		(c >= 0x7f && c < 0xa0) || c == 0xad || c == 0x61c ||
		c == 0x180e || c == 0x200b || c == 0x200e || c == 0x200f ||
		(c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) ||
		c == 0xfeff || (c >= 0xfff0 && c <= 0xfffb) ||
		(c >= 0xe0000 && c <= 0xe0fff);
}

static void
put_hidden(StringInfo out, pg_wchar c, PutCharacter put)
{
	for (const char *p = psprintf("<U+%04X>", c); *p != '\0'; p++)
		put(out, (unsigned char) *p);
}

/* Of a database without an encoding: what a byte means is not known. */
static void
escape_bytes(StringInfo out, const char *in, int length, PutCharacter put)
{
	for (int i = 0; i < length; i++)
	{
		pg_wchar	c = (unsigned char) in[i];

		if (c == '\r' && i + 1 < length && in[i + 1] == '\n')
			continue;
		if (c >= 0x80)
			put(out, '?');
		else if (is_hidden(c))
			put_hidden(out, c, put);
		else
			put(out, c);
	}
}

static void
escape_utf8(StringInfo out, const char *in, int length, PutCharacter put)
{
	const unsigned char *p = (const unsigned char *) in;
	const unsigned char *end = p + length;

	for (; p < end; p += pg_utf_mblen(p))
	{
		pg_wchar	c = utf8_to_unicode(p);

		if (c == '\r' && p + 1 < end && p[1] == '\n')
			continue;
		if (is_hidden(c))
			put_hidden(out, c, put);
		else
			put(out, c);
	}
}

/*
 * saga.escape(text, form): the text for html, mermaid, dot or plain (a
 * terminal).  The first is for text and for attributes in quotes, of several
 * lines maybe; the second and the third are for labels in quotes.
 */
Datum
saga_escape(PG_FUNCTION_ARGS)
{
	text	   *in = PG_GETARG_TEXT_PP(0);
	PutCharacter put = put_function(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	int			length = VARSIZE_ANY_EXHDR(in);
	StringInfoData out;
	char	   *utf8;
	char	   *result;

	initStringInfo(&out);
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		escape_bytes(&out, VARDATA_ANY(in), length, put);
		PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
	}
	utf8 = pg_server_to_any(VARDATA_ANY(in), length, PG_UTF8);
	if (utf8 != VARDATA_ANY(in))
		length = strlen(utf8);
	escape_utf8(&out, utf8, length, put);
	result = pg_any_to_server(out.data, out.len, PG_UTF8);
	PG_RETURN_TEXT_P(cstring_to_text(result));
}


/* "3 h 20 min", or "3 h": so many of the smaller unit. */
static char *
two_units(double n, int size, const char *large, const char *small)
{
	int64		rounded = (int64) rint(n);

	if (rounded % size == 0)
		return psprintf("%lld %s", (long long) (rounded / size), large);
	return psprintf("%lld %s %lld %s", (long long) (rounded / size), large,
					(long long) (rounded % size), small);
}

/* saga.time_text(seconds): how long something took, for people. */
Datum
saga_time_text(PG_FUNCTION_ARGS)
{
	double		seconds = PG_GETARG_FLOAT8(0);
	char	   *text;

	if (!(seconds > 0))
		seconds = 0;
	seconds = Min(seconds, 3e11);
	/* where rounding would give 60 of the unit it is the next one */
	if (seconds < 0.0995)
		text = psprintf("%.1f ms", seconds * 1000);
	else if (seconds < 0.9995)
		text = psprintf("%.0f ms", seconds * 1000);
	else if (seconds < 59.5)
		text = psprintf("%.1f s", seconds);
	else if (seconds < 3570)
		text = two_units(seconds, 60, "min", "s");
	else if (seconds < 84600)
		text = two_units(seconds / 60, 60, "h", "min");
	else
		text = two_units(seconds / 3600, 24, "d", "h");
	PG_RETURN_TEXT_P(cstring_to_text(text));
}
