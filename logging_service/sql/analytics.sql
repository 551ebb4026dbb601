-- The parts of which `analytics_statements` composes what is read. What stands in braces is put in
-- by it: fixed texts, or the number of a bound parameter.

-- name: rolled_up
-- Rows of a roll-up.
SELECT {columns}
  FROM {table}
 WHERE ({times}) AND {conditions}

-- name: stretch
(span = {}::smallint AND bucket >= {} AND bucket < {})

-- name: rolled_up_often
-- The same in many stretches. Behind OFFSET the conditions are those of the index, for each stretch anew;
-- else the planner may join all rows of a span.
SELECT rolled.*
  FROM unnest({spans}::smallint[], {starts}::timestamptz[], {ends}::timestamptz[])
       AS stretch (span, start, until)
 CROSS JOIN LATERAL (
       SELECT {columns}
         FROM {table}
        WHERE span = stretch.span AND bucket >= stretch.start AND bucket < stretch.until
          AND {conditions}
       OFFSET 0) AS rolled

-- name: not_folded
-- What is yet to be folded into it.
SELECT {columns}
  FROM {table}
 WHERE bucket >= {first} AND bucket < {last} AND {conditions}

-- name: facts
-- Facts of single events, each of which adds its own to the sums.
SELECT {columns}
  FROM {table}
 WHERE ({times}) AND {conditions}

-- name: facts_at
-- The same at many times.
SELECT facts.*
  FROM unnest({starts}::timestamptz[], {ends}::timestamptz[]) AS stretch (start, until)
 CROSS JOIN LATERAL (
       SELECT {columns}
         FROM {table}
        WHERE timestamp >= stretch.start AND timestamp < stretch.until AND {conditions}
       OFFSET 0) AS facts

-- name: wanted
-- The column of a roll-up is one of its index.
{columns} = ANY ({names})

-- name: wanted_together
({columns}) IN (SELECT * FROM unnest({names}))

-- name: ranked
-- Groups in their order, from one on.
SELECT {columns}, {ranks}
  FROM ({rows}) AS rows
 GROUP BY {names}
HAVING {number} > 0 AND {beyond}
 ORDER BY {order}
 LIMIT {limit}

-- name: ranked_sessions
-- The same of sessions: single facts at some times, and sums of the other hours. A session that is
-- alone in its hour, and not among these facts, is as large there as in all of the period: of each
-- day no more of them are looked at than are wanted.
WITH counted AS MATERIALIZED (
    SELECT name_0, {sums} FROM ({rows}) AS rows GROUP BY name_0
), rows AS (
    SELECT * FROM counted
    UNION ALL
    SELECT session_id, {values}
      FROM session_sums
     WHERE hour = ANY ({hours}) AND NOT is_alone AND {conditions}
    UNION ALL
    SELECT session_id, {values}
      FROM (SELECT name_0 FROM counted) AS counted
     CROSS JOIN LATERAL (SELECT * FROM session_sums WHERE session_id = name_0 OFFSET 0) AS summed
     WHERE hour = ANY ({hours}) AND is_alone AND {conditions}
    UNION ALL
    SELECT alone.*
      FROM (SELECT DISTINCT (each_hour AT TIME ZONE 'UTC')::date AS summed_day
              FROM unnest({hours}) AS each_hour) AS days
     CROSS JOIN LATERAL (
           SELECT session_id, {values}
             FROM session_sums
            WHERE day = summed_day AND hour = ANY ({hours}) AND is_alone AND {some} > 0
              AND {behind} AND {conditions}
              AND session_id NOT IN (SELECT name_0 FROM counted WHERE name_0 IS NOT NULL)
            ORDER BY {order_alone}, session_id
            LIMIT {limit}) AS alone
)
SELECT name_0, {ranks}
  FROM rows
 GROUP BY name_0
HAVING {number} > 0 AND {beyond}
 ORDER BY {order}
 LIMIT {limit}

-- name: summed_hours
-- The first and the last hour in a time that was ever summed up.
SELECT min(hour) AS first, max(hour) AS last FROM session_hours WHERE hour >= $1 AND hour < $2

-- name: summed_sessions
-- What is summed up of sessions, in as many rows as these have hours and sources.
SELECT session_id AS name_0, {values}
  FROM session_sums
 WHERE (session_id = ANY ({names}) OR session_id IS NULL AND {with_none})
   AND hour = ANY ({hours}) AND {conditions}

-- name: ranked_reviews
SELECT {names}, {ranks}
  FROM (SELECT {columns} FROM review_facts WHERE {conditions}) AS rows
 GROUP BY {names}
HAVING {beyond}
 ORDER BY {order}
 LIMIT {limit}

-- name: added_up
SELECT {columns}
  FROM ({rows}) AS rows
 GROUP BY {keys}

-- name: sketches
SELECT {columns} FROM ({rows}) AS rows WHERE {some} IS NOT NULL

-- name: lacks_events
-- Whether single events of the quarter hour from $1 to $2 are not there any more, with $3 those of a
-- project. They are counted, since the planner looks for a first one by reading the day.
SELECT EXISTS (SELECT FROM thinned_days WHERE day = ($1::timestamptz AT TIME ZONE 'UTC')::date)
    OR (EXISTS (SELECT FROM usage_rollup
                 WHERE span = 15 AND bucket = $1 AND ($3::text IS NULL OR source = $3))
        AND (SELECT count(*) FROM event_facts
              WHERE timestamp >= $1 AND timestamp < $2
                AND ($3::text IS NULL OR source = $3)) = 0)

-- name: reviews
-- What the calls of a session cost counts for its last review. Calls of a day before the period and
-- of a day behind it belong to its sessions too; a review of that day is later than one of ours.
-- Percentiles are of whole numbers that sort fast: a cost beyond them counts as the largest.
WITH reviews AS (
    SELECT *, lead(timestamp) OVER (PARTITION BY session_id, source
                                    ORDER BY timestamp, event_id) IS NULL AS is_last
      FROM review_facts
     WHERE timestamp >= {start} AND timestamp < {end} + interval '1 day' AND {source}
), spent AS (
    SELECT session_id AS spent_session, source AS spent_source,
           sum({cost}) AS cost, sum(unpriced) AS unpriced,
           sum(uncached_input + cache_read + cache_write + cache_write_1h + output + reasoning
               + unsplit) AS tokens
      FROM llm_calls
     WHERE timestamp >= {start} - interval '1 day' AND timestamp < {end} + interval '1 day'
       AND session_id IS NOT NULL AND {source}
     GROUP BY session_id, source
), rows AS (
    SELECT {columns}, duration_us, is_failed, errors, warnings, infos,
           cost, least(coalesce(cost, 0), 9223372036854775807)::bigint AS ranked_cost,
           tokens, unpriced
      FROM (SELECT * FROM reviews WHERE timestamp < {end} AND {wanted}) AS ours
      LEFT JOIN spent ON is_last AND spent_source = source AND spent_session = session_id
)
SELECT {keys},
       count(*) AS reviews,
       count(*) FILTER (WHERE is_failed) AS failed,
       coalesce(sum(cost), 0) AS cost,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ranked_cost) AS costs,
       coalesce(sum(tokens), 0) AS tokens,
       coalesce(sum(unpriced), 0) AS unpriced,
       count(duration_us) AS timed,
       sum(duration_us) AS total_us,
       percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY duration_us) AS durations,
       sum(errors) AS errors,
       sum(warnings) AS warnings,
       sum(infos) AS infos
  FROM rows
 GROUP BY GROUPING SETS ({sets})

-- name: version
-- What was stored, wherever its delivery is in the books, how often that was changed since, and of which
-- days retention removed something.
-- Duplicates are in it: an event that was stored while its delivery was on trial can become one.
SELECT (SELECT coalesce(sum(stored + duplicates), 0) FROM epochs)
       + (SELECT coalesce(sum(stored + duplicates), 0) FROM deliveries)
       + (SELECT coalesce(sum(stored + duplicates), 0) FROM trials) AS stored,
       (SELECT number FROM ledger_changes) AS changes,
       (SELECT coalesce(sum(day - '2000-01-01'), 0) FROM thinned_days) AS thinned
