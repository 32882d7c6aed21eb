/*
 * tap.h
 *		The few lines of the Test Anything Protocol that the unit tests need.
 *
 * A test calls tap_ok() for each thing that must hold and returns tap_done()
 * from main().
 */
#ifndef SAGA_TAP_H
#define SAGA_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int	tap_count = 0;
static int	tap_failures = 0;

/* Print "ok" or "not ok" with a description.  Returns the condition. */
__attribute__((format(printf, 2, 3)))
static inline bool
tap_ok(bool condition, const char *format,...)
{
	va_list		args;

	tap_count++;
	if (!condition)
		tap_failures++;
	printf("%s %d - ", condition ? "ok" : "not ok", tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	return condition;
}

/* A comment, for what helps to understand a result. */
__attribute__((format(printf, 1, 2)))
static inline void
tap_note(const char *format,...)
{
	va_list		args;

	printf("# ");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

/* The plan, at the end.  Returns what main() should. */
static inline int
tap_done(void)
{
	printf("1..%d\n", tap_count);
	if (tap_failures > 0)
		tap_note("%d of %d failed", tap_failures, tap_count);
	return tap_failures > 0 ? 1 : 0;
}

#endif							/* SAGA_TAP_H */
