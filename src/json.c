/*
 * json.c
 *		Owns the writing and reading of jsonb objects field by field.
 *
 * Runs in any backend, on memory only.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "json.h"

static void
push_value(SagaJsonWriter *writer, const char *key, JsonbValue *value)
{
	if (key == NULL)
		(void) pushJsonbValue(writer, WJB_ELEM, value);
	else
	{
		saga_json_key(writer, key);
		(void) pushJsonbValue(writer, WJB_VALUE, value);
	}
}

static void
push_string(SagaJsonWriter *writer, const char *key, const char *value)
{
	JsonbValue	item;

	item.type = jbvString;
	item.val.string.val = pstrdup(value);
	item.val.string.len = strlen(value);
	push_value(writer, key, &item);
}

static void
push_numeric(SagaJsonWriter *writer, const char *key, Datum value)
{
	JsonbValue	item;

	item.type = jbvNumeric;
	/* no trailing zeros: 30, not 30.000000 */
	item.val.numeric = DatumGetNumeric(DirectFunctionCall1(numeric_trim_scale,
														   value));
	push_value(writer, key, &item);
}

void
saga_json_begin_object(SagaJsonWriter *writer)
{
	(void) pushJsonbValue(writer, WJB_BEGIN_OBJECT, NULL);
}

void
saga_json_end_object(SagaJsonWriter *writer)
{
	(void) pushJsonbValue(writer, WJB_END_OBJECT, NULL);
}

void
saga_json_begin_array(SagaJsonWriter *writer)
{
	(void) pushJsonbValue(writer, WJB_BEGIN_ARRAY, NULL);
}

void
saga_json_end_array(SagaJsonWriter *writer)
{
	(void) pushJsonbValue(writer, WJB_END_ARRAY, NULL);
}

Jsonb *
saga_json_finish_object(SagaJsonWriter *writer)
{
	return JsonbValueToJsonb(pushJsonbValue(writer, WJB_END_OBJECT, NULL));
}

Jsonb *
saga_json_finish_array(SagaJsonWriter *writer)
{
	return JsonbValueToJsonb(pushJsonbValue(writer, WJB_END_ARRAY, NULL));
}

void
saga_json_key(SagaJsonWriter *writer, const char *key)
{
	JsonbValue	item;

	item.type = jbvString;
	item.val.string.val = pstrdup(key);
	item.val.string.len = strlen(key);
	(void) pushJsonbValue(writer, WJB_KEY, &item);
}

void
saga_json_put_string(SagaJsonWriter *writer, const char *key,
					 const char *value)
{
	if (value != NULL)
		push_string(writer, key, value);
}

void
saga_json_put_bool(SagaJsonWriter *writer, const char *key, bool value)
{
	JsonbValue	item;

	item.type = jbvBool;
	item.val.boolean = value;
	push_value(writer, key, &item);
}

void
saga_json_put_int(SagaJsonWriter *writer, const char *key, int64 value)
{
	push_numeric(writer, key, NumericGetDatum(int64_to_numeric(value)));
}

void
saga_json_put_double(SagaJsonWriter *writer, const char *key, double value)
{
	push_numeric(writer, key,
				 DirectFunctionCall1(float8_numeric, Float8GetDatum(value)));
}

void
saga_json_put_seconds(SagaJsonWriter *writer, const char *key, int64 value)
{
	push_numeric(writer, key,
				 NumericGetDatum(int64_div_fast_to_numeric(value, 6)));
}

void
saga_json_put_jsonb(SagaJsonWriter *writer, const char *key,
					const Jsonb *value)
{
	JsonbValue	item;

	if (value == NULL)
		return;
	JsonbToJsonbValue((Jsonb *) value, &item);
	if (JB_ROOT_IS_SCALAR((Jsonb *) value))
		(void) JsonbExtractScalar((JsonbContainer *) &value->root, &item);
	push_value(writer, key, &item);
}

void
saga_json_add_string(SagaJsonWriter *writer, const char *value)
{
	push_string(writer, NULL, value);
}

bool
saga_json_get(JsonbContainer *object, const char *key, JsonbValue *value)
{
	return getKeyJsonValueFromContainer(object, key, strlen(key), value) &&
		value->type != jbvNull;
}

bool
saga_json_is_object(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsObject(value->val.binary.data);
}

bool
saga_json_is_array(const JsonbValue *value)
{
	return value->type == jbvBinary &&
		JsonContainerIsArray(value->val.binary.data) &&
		!JsonContainerIsScalar(value->val.binary.data);
}

char *
saga_json_string(const JsonbValue *value)
{
	Assert(value->type == jbvString);
	return pnstrdup(value->val.string.val, value->val.string.len);
}

double
saga_json_double(const JsonbValue *value)
{
	Assert(value->type == jbvNumeric);
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(value->val.numeric)));
}

int64
saga_json_int(const JsonbValue *value)
{
	Assert(value->type == jbvNumeric);
	return DatumGetInt64(DirectFunctionCall1(numeric_int8,
											 NumericGetDatum(value->val.numeric)));
}
