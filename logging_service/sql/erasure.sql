-- What `postgres_erasure` finds of a session or a user, and takes away. $1 are the ids of the user, none for a
-- session; $2 is the project, null: all. `subject_sessions` are the sessions that go as a whole.

-- name: make_sessions
CREATE TEMPORARY TABLE IF NOT EXISTS subject_sessions (
    session_id text COLLATE "C" NOT NULL,
    source     text COLLATE "C" NOT NULL,
    PRIMARY KEY (session_id, source)
)

-- name: sessions
INSERT INTO subject_sessions
SELECT session_id, source
  FROM (SELECT session_id, source FROM log_events WHERE session_id = ANY ($1)
        UNION SELECT session_id, source FROM event_facts WHERE session_id = ANY ($1)
        UNION SELECT session_id, source FROM llm_calls WHERE session_id = ANY ($1)
        UNION SELECT session_id, source FROM review_facts WHERE session_id = ANY ($1)) AS found
 WHERE $2::text IS NULL OR source = $2

-- name: sessions_of_user
-- Those in which the user is named, and nobody else.
WITH named AS (
    SELECT session_id, source, user_id FROM event_facts
     WHERE user_id IS NOT NULL AND session_id IS NOT NULL
    UNION SELECT session_id, source, user_id FROM llm_calls
     WHERE user_id IS NOT NULL AND session_id IS NOT NULL
    UNION SELECT session_id, source, user_id FROM review_facts
     WHERE user_id IS NOT NULL AND session_id IS NOT NULL
)
INSERT INTO subject_sessions
SELECT session_id, source
  FROM named
 WHERE $2::text IS NULL OR source = $2
 GROUP BY session_id, source
HAVING bool_and(user_id = ANY ($1))

-- name: some_sessions
SELECT session_id, source FROM subject_sessions WHERE session_id = ANY ($1)

-- name: days
-- The UTC days on which there is anything of the subject; $3 are the ids of the session.
SELECT (timestamp AT TIME ZONE 'UTC')::date AS day FROM log_events
 WHERE session_id = ANY ($3) AND ($2::text IS NULL OR source = $2)
 UNION
SELECT (timestamp AT TIME ZONE 'UTC')::date FROM event_facts
 WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
    OR user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
 UNION
SELECT (timestamp AT TIME ZONE 'UTC')::date FROM llm_calls
 WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
    OR user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
 UNION
SELECT (timestamp AT TIME ZONE 'UTC')::date FROM review_facts
 WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
    OR user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
 UNION
SELECT (bucket AT TIME ZONE 'UTC')::date FROM user_rollup
 WHERE span = 1440 AND user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
 UNION
SELECT (bucket AT TIME ZONE 'UTC')::date FROM user_deltas
 WHERE user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
 ORDER BY day

-- name: look_up
-- Each session is looked up, however the planner thinks of the table.
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off

-- name: events_of_sessions
SELECT event.timestamp, event_id, event_type, payload
  FROM subject_sessions JOIN log_events AS event USING (session_id, source)
 WHERE event.timestamp >= $1 AND event.timestamp < $2

-- name: events_of_user
-- Those at the times at which the facts name the user, and perhaps others of the same moment.
SELECT event.timestamp, event_id, event_type, payload
  FROM (SELECT DISTINCT timestamp, event_type, source
          FROM event_facts
         WHERE user_id = ANY ($3) AND ($4::text IS NULL OR source = $4)
           AND timestamp >= $1 AND timestamp < $2) AS fact
  JOIN log_events AS event USING (timestamp, event_type, source)
 WHERE event.timestamp >= $1 AND event.timestamp < $2

-- name: erase_events
SELECT erase_events($1, $2, $3, $4)

-- name: facts_of_sessions
-- With $3 the user stays, and facts that name one are meant too.
WITH gone AS (
    DELETE FROM event_facts AS fact USING subject_sessions AS gone_session
     WHERE timestamp >= $1 AND timestamp < $2 AND fact.session_id = gone_session.session_id
       AND fact.source = gone_session.source AND ($3 OR user_id IS NULL)
    RETURNING timestamp, event_type, fact.source, user_id, duration_us, is_failed
)
INSERT INTO event_facts (timestamp, event_type, source, user_id, duration_us, is_failed)
SELECT timestamp, event_type, source, user_id, duration_us, is_failed FROM gone

-- name: facts_of_user
WITH gone AS (
    DELETE FROM event_facts
     WHERE timestamp >= $1 AND timestamp < $2 AND user_id = ANY ($3)
       AND ($4::text IS NULL OR source = $4)
    RETURNING timestamp, event_type, source, duration_us, is_failed
)
INSERT INTO event_facts (timestamp, event_type, source, duration_us, is_failed)
SELECT timestamp, event_type, source, duration_us, is_failed FROM gone

-- name: calls_of_sessions
SELECT DISTINCT timestamp, event_id
  FROM llm_calls
 WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
   AND ($1 OR user_id IS NULL)

-- name: calls_of_user
SELECT DISTINCT timestamp, event_id
  FROM llm_calls
 WHERE user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)

-- name: erase_calls
SELECT erase_calls($1, $2, $3, $4)

-- name: reviews_of_sessions
WITH gone AS (
    DELETE FROM review_facts
     WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
       AND ($1 OR user_id IS NULL)
    RETURNING *
)
INSERT INTO review_facts (timestamp, event_id, source, user_id, duration_us, is_failed, errors,
                          warnings, infos)
SELECT timestamp, event_id, source, user_id, duration_us, is_failed, errors, warnings, infos
  FROM gone

-- name: reviews_of_user
WITH gone AS (
    DELETE FROM review_facts
     WHERE user_id = ANY ($1) AND ($2::text IS NULL OR source = $2)
    RETURNING *
)
INSERT INTO review_facts (timestamp, event_id, source, duration_us, is_failed, errors, warnings,
                          infos)
SELECT timestamp, event_id, source, duration_us, is_failed, errors, warnings, infos FROM gone

-- name: letters
SELECT id, event, reason FROM dead_letters WHERE id > $1 ORDER BY id LIMIT $2

-- name: drop_letters
DELETE FROM dead_letters WHERE id = ANY ($1)

-- name: drop_stored_reviews
-- $3 are the ids of the session, $4 how many at the most; with a session it does not matter whose they are.
DELETE FROM reviews
 WHERE review_id = ANY (ARRAY(
     SELECT review_id FROM reviews
      WHERE (user_id = ANY ($1) OR session_id = ANY ($3)
             OR user_id IS NULL
                AND (session_id, project) IN (SELECT session_id, source FROM subject_sessions))
        AND ($2::text IS NULL OR project = $2)
      LIMIT $4))

-- name: sums_of_sessions
-- The hours in whose sums the subject is.
SELECT DISTINCT hour
  FROM session_sums
 WHERE (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
    OR user_ids && $1::text[] AND ($2::text IS NULL OR source = $2)

-- name: sessions_on
-- Of the sessions that go, those of which there is anything from $1 to $2.
SELECT session_id, source FROM event_facts
 WHERE timestamp >= $1 AND timestamp < $2
   AND (session_id, source) IN (SELECT session_id, source FROM subject_sessions)
 UNION
SELECT session_id, source FROM llm_calls
 WHERE timestamp >= $1 AND timestamp < $2
   AND (session_id, source) IN (SELECT session_id, source FROM subject_sessions)

-- name: hashed
-- The rows of a roll-up in which there are hashes.
SELECT bucket, {keys}, {hashes}
  FROM {table}
 WHERE span = $1 AND bucket >= $2 AND bucket < $3 AND ($4::text IS NULL OR source = $4)

-- name: take_deltas
DELETE FROM {deltas}
 WHERE bucket >= $1 AND bucket < $2 AND ($3::text IS NULL OR source = $3)
RETURNING *
