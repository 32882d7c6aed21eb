/*
 * json.h
 *		Writing and reading jsonb objects field by field.
 *
 * Any backend.  Results are in CurrentMemoryContext.
 */
#ifndef SAGA_JSON_H
#define SAGA_JSON_H

#include "utils/jsonb.h"

/* A writer starts as NULL; saga_json_finish() ends the outermost object. */
typedef JsonbParseState *SagaJsonWriter;

extern void saga_json_begin_object(SagaJsonWriter *writer);
extern void saga_json_end_object(SagaJsonWriter *writer);
extern void saga_json_begin_array(SagaJsonWriter *writer);
extern void saga_json_end_array(SagaJsonWriter *writer);
extern Jsonb *saga_json_finish_object(SagaJsonWriter *writer);
extern Jsonb *saga_json_finish_array(SagaJsonWriter *writer);

/* The key of an object or array that is begun next. */
extern void saga_json_key(SagaJsonWriter *writer, const char *key);

/* A field; a NULL value writes nothing. */
extern void saga_json_put_string(SagaJsonWriter *writer, const char *key,
								 const char *value);
extern void saga_json_put_bool(SagaJsonWriter *writer, const char *key,
							   bool value);
extern void saga_json_put_int(SagaJsonWriter *writer, const char *key,
							  int64 value);
extern void saga_json_put_double(SagaJsonWriter *writer, const char *key,
								 double value);
/* microseconds, written as seconds */
extern void saga_json_put_seconds(SagaJsonWriter *writer, const char *key,
								  int64 value);
extern void saga_json_put_jsonb(SagaJsonWriter *writer, const char *key,
								const Jsonb *value);

/* An element of an array. */
extern void saga_json_add_string(SagaJsonWriter *writer, const char *value);

/* A field of an object; false if there is none, or it is null. */
extern bool saga_json_get(JsonbContainer *object, const char *key,
						  JsonbValue *value);

extern bool saga_json_is_object(const JsonbValue *value);
extern bool saga_json_is_array(const JsonbValue *value);

/* Of a string, and of a number. */
extern char *saga_json_string(const JsonbValue *value);
extern double saga_json_double(const JsonbValue *value);

/* Of a number that is a whole one; others are rounded, too large ones raise. */
extern int64 saga_json_int(const JsonbValue *value);

#endif							/* SAGA_JSON_H */
