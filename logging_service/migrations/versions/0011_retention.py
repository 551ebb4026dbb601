"""What removes events and who they are about: functions with the rights of the schema's owner."""

from alembic import op
from sqlalchemy import text

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    # The day that retention takes for today. It goes on by one day an hour, so that a clock that
    # was set wrong does not end every event at once.
    """
    CREATE TABLE retention_clock (
        only_row  boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
        day       date        NOT NULL,
        passed_at timestamptz NOT NULL DEFAULT '-infinity'
    )
    """,
    """
    INSERT INTO retention_clock (day)
    SELECT least((now() AT TIME ZONE 'UTC')::date,
                 (max(timestamp) AT TIME ZONE 'UTC')::date + 1)
      FROM log_events
    """,
)

# As in 0009. Who waits for a lock on a whole table holds up all who come later: not for long.
_AS_OWNER = """
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO, YMD'
SET lock_timeout = '250ms'
"""
# A few rows by their keys: each is looked up, whatever the planner thinks of the table.
_BY_KEY = """
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
"""

_GO_ON = """
DECLARE
    passed date;
BEGIN
    UPDATE {schema}.retention_clock AS clock
       SET day = least(clock.day + 1, (now() AT TIME ZONE 'UTC')::date), passed_at = now()
     WHERE passed_at NOT BETWEEN now() - interval '50 minutes' AND now()
        OR clock.day > (now() AT TIME ZONE 'UTC')::date;
    SELECT clock.day INTO passed FROM {schema}.retention_clock AS clock;
    RETURN passed;
END
"""

# What lies wholly in the time goes. The cheap locks come first: with that on the table nobody is
# waited for any more. A day that is thinned already has no other way to say that it changed.
_DROP_PARTITIONS = """
DECLARE
    since timestamptz := day::timestamp AT TIME ZONE 'UTC';
    until timestamptz;
    parents text[];
    parent_name text;
    places regclass[];
    place regclass;
    dropped text[];
BEGIN
    CASE parent
        WHEN 'log_events' THEN
            parents := ARRAY['log_events', 'event_facts'];
            until := since + interval '1 day';
        WHEN 'llm_calls' THEN
            parents := ARRAY['llm_calls'];
            until := since + interval '1 month';
        ELSE
            RAISE EXCEPTION 'log_events or llm_calls' USING ERRCODE = 'invalid_parameter_value';
    END CASE;
    IF (until <= (SELECT clock.day - 1 FROM {schema}.retention_clock AS clock)) IS NOT TRUE THEN
        RAISE EXCEPTION 'it has to be over since a day' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT array_agg(inhrelid::regclass ORDER BY relname DESC),
           array_agg(relname::text ORDER BY relname DESC)
      INTO places, dropped
      FROM pg_inherits
      JOIN pg_class ON pg_class.oid = inhrelid
     CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                             $$FROM [(]'([^']+)'[)] TO [(]'([^']+)'[)]$$) AS bounds
     WHERE inhparent = ANY (SELECT to_regclass(format('%I.%I', {schema_text}, name))
                              FROM unnest(parents) AS name)
       AND bounds[1]::timestamptz >= since AND bounds[2]::timestamptz <= until;
    IF places IS NULL THEN
        RETURN '{}';
    END IF;
    IF parent = 'log_events' THEN
        INSERT INTO {schema}.thinned_days (day) VALUES (drop_partitions.day)
            ON CONFLICT DO NOTHING;
    END IF;
    IF parent <> 'log_events' OR NOT FOUND THEN
        UPDATE {schema}.ledger_changes SET number = number + 1;
    END IF;
    FOREACH parent_name IN ARRAY parents LOOP
        EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE',
                       {schema_text}, parent_name);
    END LOOP;
    IF parent = 'log_events' AND kept <> '{}' AND EXISTS (
        WITH RECURSIVE known AS (
            (SELECT event_type FROM {schema}.log_events
              WHERE timestamp >= since AND timestamp < until
              ORDER BY event_type LIMIT 1)
            UNION ALL
            SELECT (SELECT event_type FROM {schema}.log_events
                     WHERE timestamp >= since AND timestamp < until
                       AND event_type > known.event_type
                     ORDER BY event_type LIMIT 1)
              FROM known WHERE known.event_type IS NOT NULL
        )
        SELECT FROM known
         WHERE upper(regexp_replace(event_type, '[^A-Za-z0-9]+', '_', 'g')) = ANY (kept)
    ) THEN
        RAISE EXCEPTION 'it has events that are kept' USING ERRCODE = 'object_in_use';
    END IF;
    FOREACH place IN ARRAY places LOOP
        EXECUTE format('DROP TABLE %s', place);
    END LOOP;
    INSERT INTO {schema}.audit_outbox (event_type, payload)
    VALUES ('audit.retention',
            json_build_object('by', 'database role ' || session_user, 'key_id', NULL,
                              'day', day, 'partitions', dropped));
    RETURN dropped;
END
"""

# By the index of types. The facts of these events lie in the same time.
_DELETE_EVENTS = """
DECLARE
    since timestamptz := day::timestamp AT TIME ZONE 'UTC';
    first timestamptz;
    last timestamptz;
    deleted bigint;
BEGIN
    IF (most BETWEEN 1 AND 100000
        AND day <= (SELECT clock.day - 2 FROM {schema}.retention_clock AS clock)) IS NOT TRUE THEN
        RAISE EXCEPTION 'at most 100000, of a day that is over since a day'
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT min(timestamp), max(timestamp) INTO first, last
      FROM (SELECT timestamp FROM {schema}.log_events
             WHERE event_type = wanted
               AND timestamp >= since AND timestamp < since + interval '1 day'
             ORDER BY timestamp LIMIT most) AS oldest;
    IF first IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO {schema}.thinned_days (day) VALUES (delete_events.day) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        UPDATE {schema}.ledger_changes SET number = number + 1;
    END IF;
    DELETE FROM {schema}.log_events
     WHERE event_type = wanted AND timestamp >= first AND timestamp <= last;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    DELETE FROM {schema}.event_facts
     WHERE event_type = wanted AND timestamp >= first AND timestamp <= last;
    INSERT INTO {schema}.audit_outbox (event_type, payload)
    VALUES ('audit.retention',
            json_build_object('by', 'database role ' || session_user, 'key_id', NULL,
                              'day', day, 'type', wanted, 'events', deleted));
    RETURN deleted;
END
"""

# While anything is counted of a day, it has to be known that it cannot be counted anew.
_FORGET_THINNED_DAYS = """
BEGIN
    DELETE FROM {schema}.thinned_days
     WHERE thinned_days.day < before
       AND NOT EXISTS (SELECT FROM {schema}.usage_rollup
                        WHERE span = 1440
                          AND bucket = thinned_days.day::timestamp AT TIME ZONE 'UTC')
       AND NOT EXISTS (SELECT FROM {schema}.log_events
                        WHERE timestamp >= thinned_days.day::timestamp AT TIME ZONE 'UTC'
                          AND timestamp < (thinned_days.day + 1)::timestamp AT TIME ZONE 'UTC');
    RETURN;
END
"""

# The payload that stays is made of numbers and a user, whatever the caller would put there.
_ERASE_EVENTS = """
DECLARE
    erased bigint;
BEGIN
    IF cardinality(events) > 1000 THEN
        RAISE EXCEPTION 'at most 1000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE {schema}.log_events AS event
       SET session_id = NULL, trace_id = NULL, request_id = NULL, redactions = NULL,
           payload = json_strip_nulls(json_build_object(
               'erased', true,
               'user_id', left(fact->>'user', 200),
               'duration_ms', trim_scale((fact->>'duration_us')::bigint::numeric / 1000),
               'success', CASE WHEN (fact->>'failed')::boolean THEN false END,
               'counts', CASE WHEN fact->>'errors' IS NOT NULL THEN json_build_object(
                   'error', (fact->>'errors')::bigint,
                   'warning', (fact->>'warnings')::bigint,
                   'info', (fact->>'infos')::bigint) END))
      FROM unnest(times, events, facts) AS one (timestamp, event_id, fact)
     WHERE event.timestamp = one.timestamp AND event.event_id = one.event_id;
    GET DIAGNOSTICS erased = ROW_COUNT;
    INSERT INTO {schema}.audit_outbox (event_type, payload)
    SELECT 'audit.events_erased',
           json_build_object('by', 'database role ' || session_user, 'key_id', NULL,
                             'subject', subject, 'events', erased)
     WHERE erased > 0;
    RETURN erased;
END
"""

_ERASE_CALLS = """
DECLARE
    erased bigint;
BEGIN
    IF cardinality(events) > 1000 THEN
        RAISE EXCEPTION 'at most 1000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE {schema}.llm_calls AS call
       SET session_id = NULL, user_id = CASE WHEN keep_user THEN user_id END
      FROM unnest(times, events) AS one (timestamp, event_id)
     WHERE call.timestamp = one.timestamp AND call.event_id = one.event_id;
    GET DIAGNOSTICS erased = ROW_COUNT;
    INSERT INTO {schema}.audit_outbox (event_type, payload)
    SELECT 'audit.events_erased',
           json_build_object('by', 'database role ' || session_user, 'key_id', NULL,
                             'subject', subject, 'entries', erased)
     WHERE erased > 0;
    RETURN erased;
END
"""

# Name, parameters, what it returns, its settings, body.
FUNCTIONS = (
    ("pass_day", "", "date", _AS_OWNER, _GO_ON),
    (
        "drop_partitions",
        "parent text, day date, kept text[]",
        "text[]",
        _AS_OWNER,
        _DROP_PARTITIONS,
    ),
    (
        "delete_events",
        "day date, wanted text, most integer",
        "bigint",
        _AS_OWNER,
        _DELETE_EVENTS,
    ),
    ("forget_thinned_days", "before date", "void", _AS_OWNER, _FORGET_THINNED_DAYS),
    (
        "erase_events",
        "times timestamptz[], events uuid[], facts json[], subject text",
        "bigint",
        _AS_OWNER + _BY_KEY,
        _ERASE_EVENTS,
    ),
    (
        "erase_calls",
        "times timestamptz[], events uuid[], keep_user boolean, subject text",
        "bigint",
        _AS_OWNER + _BY_KEY,
        _ERASE_CALLS,
    ),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    schema, schema_text = connection.execute(
        text("SELECT quote_ident(current_schema()), quote_literal(current_schema())")
    ).one()
    for name, parameters, returned, settings, body in FUNCTIONS:
        function = f"{schema}.{name}({parameters})"
        filled = body.replace("{schema}", schema).replace("{schema_text}", schema_text)
        connection.exec_driver_sql(
            f"CREATE FUNCTION {function} RETURNS {returned} {settings} AS $body${filled}$body$"
        )
        connection.exec_driver_sql(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
