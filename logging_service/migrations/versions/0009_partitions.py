"""Partitions are made by a function with its owner's rights: the services need none for it."""

from alembic import op
from sqlalchemy import text

revision = "0009"
down_revision = "0008"

# Whoever may call a function of the owner chooses what stands around it. So it looks up nothing by
# the caller's path (every name is qualified; temporary tables come last and are never meant), reads
# and writes times in one way, and is safe with any `standard_conforming_strings`: no backslash.
_AS_OWNER = """
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO, YMD'
SET lock_timeout = '4s'
"""

# A day that had events before, and has lost them, is noted as thinned. Attaching takes a weaker
# lock on the parent than CREATE TABLE … PARTITION OF, which would wait for every reader and writer.
# A table that somebody detached keeps its name.
_MAKE_PARTITIONS = """
DECLARE
    wanted record;
    free text;
    made text[] := '{}';
BEGIN
    IF cardinality(days) > 4000 OR EXISTS (
        SELECT FROM unnest(days) AS day
         WHERE (day BETWEEN '1970-01-01' AND '9999-12-31') IS NOT TRUE
    ) THEN
        RAISE EXCEPTION 'at most 4000 days, of the years 1970 to 9999'
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pg_advisory_xact_lock(7260411531);
    FOR wanted IN
        WITH parents (place, parent, step, form) AS (
            VALUES (1, 'log_events', 'day', 'YYYYMMDD'),
                   (2, 'event_facts', 'day', 'YYYYMMDD'),
                   (3, 'llm_calls', 'month', 'YYYYMM')
        ), covered AS MATERIALIZED (
            SELECT parent, bounds[1]::timestamptz AS since, bounds[2]::timestamptz AS until
              FROM parents
              JOIN pg_inherits ON inhparent = to_regclass(format('%I.%I', {schema_text}, parent))
              JOIN pg_class ON pg_class.oid = inhrelid
             CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                                     $$FROM [(]'([^']+)'[)] TO [(]'([^']+)'[)]$$) AS bounds
        ), steps AS (
            SELECT DISTINCT place, parent, form, date_trunc(step, day::timestamp) AS start,
                   date_trunc(step, day::timestamp) + ('1 ' || step)::interval AS following
              FROM parents CROSS JOIN unnest(days) AS day
        )
        SELECT parent, start::date AS day, start AT TIME ZONE 'UTC' AS since,
               following AT TIME ZONE 'UTC' AS until,
               parent || '_p' || to_char(start, form) AS name
          FROM steps
         WHERE NOT EXISTS (SELECT FROM covered
                            WHERE covered.parent = steps.parent
                              AND steps.start AT TIME ZONE 'UTC' >= covered.since
                              AND steps.start AT TIME ZONE 'UTC' < covered.until)
         ORDER BY place, start
    LOOP
        SELECT candidate INTO free
          FROM generate_series(1, 9) AS number
         CROSS JOIN LATERAL (
               SELECT wanted.name || CASE number WHEN 1 THEN '' ELSE '_' || number END
               ) AS named (candidate)
         WHERE to_regclass(format('%I.%I', {schema_text}, candidate)) IS NULL
         ORDER BY number
         LIMIT 1;
        free := coalesce(free, wanted.name);
        EXECUTE format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING ALL)',
                       {schema_text}, free, wanted.parent);
        EXECUTE format('ALTER TABLE %1$I.%3$I ATTACH PARTITION %1$I.%2$I '
                       'FOR VALUES FROM (%4$L) TO (%5$L)',
                       {schema_text}, free, wanted.parent, wanted.since, wanted.until);
        made := made || free;
        IF wanted.parent = 'log_events' THEN
            INSERT INTO {schema}.thinned_days (day)
            SELECT wanted.day
             WHERE EXISTS (SELECT FROM {schema}.usage_rollup
                            WHERE span = 1440 AND bucket = wanted.since)
                OR EXISTS (SELECT FROM {schema}.usage_deltas
                            WHERE bucket >= wanted.since AND bucket < wanted.until)
                ON CONFLICT DO NOTHING;
        END IF;
    END LOOP;
    IF made <> '{}' THEN
        INSERT INTO {schema}.audit_outbox (event_type, payload)
        SELECT 'audit.partitions_made',
               json_build_object('by', 'database role ' || session_user, 'key_id', NULL,
                                 'partitions', cardinality(made),
                                 'first_day', min(day), 'last_day', max(day))
          FROM unnest(days) AS day;
    END IF;
    RETURN made;
END
"""

# Name, parameters, what it returns, body: what else only the owner may do gets a row here, and an
# `audit.*` event of its own.
FUNCTIONS = (("make_partitions", "days date[]", "text[]", _MAKE_PARTITIONS),)


def upgrade() -> None:
    connection = op.get_bind()
    schema, schema_text = connection.execute(
        text("SELECT quote_ident(current_schema()), quote_literal(current_schema())")
    ).one()
    for name, parameters, returned, body in FUNCTIONS:
        function = f"{schema}.{name}({parameters})"
        filled = body.replace("{schema}", schema).replace("{schema_text}", schema_text)
        connection.exec_driver_sql(
            f"CREATE FUNCTION {function} RETURNS {returned} {_AS_OWNER} AS $body${filled}$body$"
        )
        connection.exec_driver_sql(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
