/*
 * impact.c
 *		Owns saga.impact(): how the newest version of a definition differs from
 *		the steps that are to be its next one, and whom that would meet.
 *
 * What is compared are the two stored forms (defcheck.c), by SQL on these two
 * values alone; how many sagas are where is asked of store.c.
 *
 * Any backend.  Only reads.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "catalog.h"
#include "define.h"
#include "owner.h"
#include "statement.h"
#include "store.h"

PG_FUNCTION_INFO_V1(saga_impact);

/*
 * $1 and $2 are the old and the new steps, $3 an object with how many sagas are
 * at each step.  A step is taken apart into fields, which are called as the
 * arguments of saga.step(), with values as text; "after" is what it is when it
 * is not said.  Steps that are removed stand before the step that came after
 * them.
 */
static SagaStatement compare_steps = {
	"WITH steps AS ("
	" SELECT x.side, s.n, s.step, s.step ->> 'name' AS name,"
	"  COALESCE(s.step -> 'after', CASE WHEN s.n = 1 THEN '[]'"
	"   ELSE jsonb_build_array(x.steps -> (s.n - 2)::integer -> 'name') END) AS after"
	" FROM (VALUES (1, $1), (2, $2)) x(side, steps)"
	" CROSS JOIN LATERAL jsonb_array_elements(x.steps) WITH ORDINALITY s(step, n)"
	"), fields AS ("
	" SELECT s.side, s.name, f.*"
	" FROM steps s CROSS JOIN LATERAL ("
	"  SELECT 0 AS m, 0::bigint AS k, 'after' AS field, s.after AS value"
	"  UNION ALL"
	"  SELECT 1, 0, e.key, e.value FROM jsonb_each(s.step) e"
	"  WHERE e.key NOT IN ('name', 'after', 'action', 'compensation',"
	"   'confirmation', 'only_if')"
	"  UNION ALL"
	"  SELECT 2, o.n, CASE e.key WHEN 'function' THEN o.op WHEN 'task' THEN o.op"
	"    WHEN 'arguments' THEN 'arguments of ' || o.op"
	"    ELSE CASE o.op WHEN 'action' THEN '' ELSE o.op || '_' END || e.key END, e.value"
	"  FROM unnest('{action,compensation,confirmation,only_if}'::text[])"
	"   WITH ORDINALITY o(op, n), jsonb_each(s.step -> o.op) e"
	"  WHERE e.key NOT IN ('retry', 'context')"
	"  UNION ALL"
	"  SELECT 3, o.n, CASE o.op WHEN 'action' THEN '' ELSE o.op || '_' END"
	"   || 'retry ' || e.key, e.value"
	"  FROM unnest('{action,compensation,confirmation}'::text[])"
	"   WITH ORDINALITY o(op, n), jsonb_each(s.step #> ARRAY[o.op, 'retry']) e"
	" ) f"
	"), texts AS ("
	" SELECT f.side, f.name, f.m, f.k, f.field, f.value,"
	"  CASE WHEN f.field LIKE 'arguments of %' THEN"
	"    (SELECT '(' || COALESCE(string_agg((a.item ->> 'name') || ' ' || (a.item ->> 'type')"
	"      || CASE WHEN (a.item -> 'optional')::boolean THEN ' DEFAULT' ELSE '' END, ', '), '') || ')'"
	"     FROM jsonb_array_elements(f.value) a(item))"
	"   WHEN jsonb_typeof(f.value) = 'array' THEN"
	"    '{' || COALESCE((SELECT string_agg(a.item, ',') FROM jsonb_array_elements_text(f.value) a(item)), '') || '}'"
	"   WHEN f.field = 'otherwise' THEN f.value::text"
	"   WHEN f.field ~ '(delay|timeout)$' THEN (f.value #>> '{}') || ' s'"
	"   ELSE f.value #>> '{}' END AS text"
	" FROM fields f"
	"), pairs AS ("
	" SELECT COALESCE(a.name, b.name) AS name, COALESCE(a.m, b.m) AS m,"
	"  COALESCE(a.k, b.k) AS k, COALESCE(a.field, b.field) AS field,"
	"  a.text AS old, b.text AS new"
	" FROM (SELECT * FROM texts WHERE side = 1) a"
	" FULL JOIN (SELECT * FROM texts WHERE side = 2) b"
	"  ON b.name = a.name AND b.field = a.field"
	" WHERE a.value IS DISTINCT FROM b.value"
	"), rows AS ("
	" SELECT COALESCE(b.name, a.name) AS name, a.name IS NULL AS added,"
	"  b.name IS NULL AS removed, a.n AS old_n,"
	"  COALESCE(b.n, (SELECT d.n FROM steps c JOIN steps d ON d.side = 2 AND d.name = c.name"
	"   WHERE c.side = 1 AND c.n > a.n ORDER BY c.n LIMIT 1)) AS n"
	" FROM (SELECT * FROM steps WHERE side = 1) a"
	" FULL JOIN (SELECT * FROM steps WHERE side = 2) b ON b.name = a.name"
	")"
	" SELECT r.name, CASE WHEN r.added THEN 'added' WHEN r.removed THEN 'removed'"
	"   WHEN d.detail IS NULL THEN 'same' ELSE 'changed' END,"
	"  CASE WHEN NOT r.added AND NOT r.removed THEN d.detail END,"
	"  COALESCE(($3 ->> r.name)::bigint, 0)"
	" FROM rows r CROSS JOIN LATERAL ("
	"  SELECT string_agg(p.field || ': ' || COALESCE(p.old, w.default_text)"
	"    || ' -> ' || COALESCE(p.new, w.default_text), '; ' ORDER BY p.m, p.k, p.field) AS detail"
	"  FROM pairs p CROSS JOIN LATERAL (SELECT CASE p.field"
	"    WHEN 'savepoint' THEN 'false' WHEN 'durable' THEN 'false'"
	"    WHEN 'and_then' THEN 'retry' WHEN 'recoveries' THEN '1'"
	"    WHEN 'exclusive_timeout' THEN '3600 s' ELSE 'none' END AS default_text) w"
	"  WHERE p.name = r.name"
	"   AND COALESCE(p.old, w.default_text) <> COALESCE(p.new, w.default_text)"
	/* what belongs to an operation that is there on one side only goes without saying */
	"   AND NOT (p.m >= 2 AND (p.old IS NULL OR p.new IS NULL)"
	"    AND (p.m = 3 OR p.field LIKE 'arguments of %'))"
	"   AND NOT (p.field LIKE 'arguments of %' AND EXISTS (SELECT FROM pairs q"
	"    WHERE q.name = p.name AND q.field = substr(p.field, 14)))) d"
	" ORDER BY r.n NULLS LAST, r.removed DESC, r.old_n",
	3, {JSONBOID, JSONBOID, JSONBOID}, NULL
};

static Jsonb *
empty_jsonb(const char *text)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
}

/* saga.impact(definition, VARIADIC steps) */
Datum
saga_impact(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool		sees_all = saga_owner_has_granted("monitor_privilege");
	Oid			user = GetUserId();
	char	   *name;
	Jsonb	   *old;
	Jsonb	   *counts;
	Datum		values[3];
	SagaOwnerSwitch owner;
	uint64		n;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				errmsg("the name of a saga definition must not be null"));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	old = saga_catalog_newest_steps(name, sees_all);
	values[1] = JsonbPGetDatum(saga_define_check(name, PG_ARGISNULL(1) ? NULL :
												 PG_GETARG_ARRAYTYPE_P(1)));
	counts = saga_store_count_at_steps(name, user, sees_all);
	values[0] = JsonbPGetDatum(old != NULL ? old : empty_jsonb("[]"));
	values[2] = JsonbPGetDatum(counts != NULL ? counts : empty_jsonb("{}"));
	InitMaterializedSRF(fcinfo, 0);
	saga_owner_enter(&owner);
	n = saga_statement_run(&compare_steps, values, NULL, false, 0);
	for (uint64 i = 0; i < n; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	saga_owner_leave(&owner);
	return (Datum) 0;
}
