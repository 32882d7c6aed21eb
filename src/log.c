/*
 * log.c
 *		Owns the form in which our lines in the server's log name what they are
 *		about; see log.h.
 */
#include "postgres.h"

#include "utils/json.h"

#include "log.h"
#include "trace.h"

static void
put_word(StringInfo text, const char *word)
{
	if (text->len > 0)
		appendStringInfoChar(text, ' ');
	appendStringInfo(text, "%s=", word);
}

static void
put_name(StringInfo text, const char *word, const char *name)
{
	if (name == NULL)
		return;
	put_word(text, word);
	escape_json(text, name);
}

static void
put_number(StringInfo text, const char *word, int64 number)
{
	put_word(text, word);
	appendStringInfo(text, "%lld", (long long) number);
}

/* What is known by everybody, and so needs no quotes. */
static void
put_plain(StringInfo text, const char *word, const char *value)
{
	put_word(text, word);
	appendStringInfoString(text, value);
}

static void
put_saga(StringInfo text, int64 id, const SagaDefinition *definition,
		 const char *key)
{
	put_number(text, "saga", id);
	if (definition != NULL)
		put_name(text, "definition", definition->name);
	put_name(text, "key", key);
}

/* "element" -1: the step is not foreach. */
static void
put_operation(StringInfo text, const char *step, int element,
			  SagaOperation operation, int attempt)
{
	put_name(text, "step", step);
	if (element >= 0)
		put_number(text, "element", element);
	put_plain(text, "operation", saga_operation_name(operation));
	if (attempt > 0)
		put_number(text, "attempt", attempt);
}

static void
put_trace(StringInfo text, const pg_uuid_t *token, const char *traceparent,
		  const char *span_id)
{
	SagaTrace	trace;

	saga_trace_of_saga(token, traceparent, &trace);
	put_plain(text, "trace_id", trace.trace_id);
	put_plain(text, "span_id", span_id != NULL ? span_id : trace.span_id);
}

/* Is it an operation of the saga's definition? */
static bool
is_known(const Saga *saga, const SagaTask *task)
{
	return task != NULL && saga->definition != NULL &&
		task->step >= 0 && task->step < saga->definition->rules.nsteps;
}

char *
saga_log_describe(const Saga *saga, const SagaTask *task)
{
	char	   *span_id = NULL;
	StringInfoData text;

	initStringInfo(&text);
	put_saga(&text, saga->ref.id, saga->definition, saga->key);
	if (is_known(saga, task))
	{
		const SagaStep *step = &saga->definition->steps[task->step];

		put_operation(&text, step->name,
					  step->foreach.text == NULL ? -1 : task->element,
					  task->operation, task->attempt);
		/* its round is not known of one that has ended */
		if (saga->state.steps != NULL)
			span_id = saga_trace_span_id(&saga->token, step->name,
										 task->element,
										 saga_machine_round(&saga->definition->rules,
															&saga->state,
															task->step),
										 task->operation);
	}
	put_trace(&text, &saga->token, saga->traceparent, span_id);
	return text.data;
}

char *
saga_log_describe_call(const SagaCallRequest *request)
{
	const SagaStep *step = &request->definition->steps[request->step];
	StringInfoData text;

	initStringInfo(&text);
	put_saga(&text, request->saga_id, request->definition, request->key);
	put_operation(&text, step->name,
				  step->foreach.text == NULL ? -1 : request->element,
				  request->operation, request->attempt);
	put_trace(&text, request->token, request->traceparent,
			  saga_trace_span_id(request->token, step->name, request->element,
								 request->round, request->operation));
	return text.data;
}

char *
saga_log_describe_ref(const SagaOperationRef *ref)
{
	StringInfoData text;

	initStringInfo(&text);
	put_number(&text, "saga", ref->saga_id);
	put_operation(&text, NULL, -1, ref->operation, ref->attempt);
	return text.data;
}

char *
saga_log_describe_names(const char *word,...)
{
	StringInfoData text;
	va_list		args;

	initStringInfo(&text);
	va_start(args, word);
	for (; word != NULL; word = va_arg(args, const char *))
		put_name(&text, word, va_arg(args, const char *));
	va_end(args);
	return text.data;
}
