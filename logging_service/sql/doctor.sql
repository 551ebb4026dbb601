-- What an examination asks PostgreSQL; nothing here writes, and each answers at once.

-- name: server()^
SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS is_standby,
       current_setting('default_transaction_read_only')::boolean AS is_read_only,
       extract(epoch FROM clock_timestamp())::float8 AS now;

-- name: settings(names)
-- Sizes in bytes; `choices` are those of the settings that have some.
SELECT name, setting, enumvals AS choices,
       CASE unit WHEN 'MB' THEN setting::bigint * 1048576
                 WHEN 'kB' THEN setting::bigint * 1024
                 WHEN '8kB' THEN setting::bigint * 8192 END AS bytes
  FROM pg_settings WHERE name = ANY (:names::text[]);

-- name: connections()^
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
       current_setting('max_connections')::integer
           - current_setting('superuser_reserved_connections')::integer AS most;

-- name: payload_compression()$
-- 'l' for lz4, 'p' for pglz, '' for the default, of what will be stored.
SELECT attcompression::text FROM pg_attribute
 WHERE attrelid = to_regclass('log_events') AND attname = 'payload';

-- name: days()^
-- The first and the last day that have a partition, and how many of the next seven have one.
WITH days AS (
    SELECT (bounds[1]::timestamptz AT TIME ZONE 'UTC')::date AS day
      FROM pg_inherits
      JOIN pg_class ON pg_class.oid = inhrelid
     CROSS JOIN regexp_match(pg_get_expr(relpartbound, pg_class.oid),
                             $$FROM \('([^']+)'\) TO \('([^']+)'\)$$) AS bounds
     WHERE inhparent = to_regclass('log_events')
       AND bounds[1]::timestamptz >= '0001-01-01'
)
SELECT min(day) AS first, max(day) AS last, count(*) AS partitions,
       count(*) FILTER (WHERE day BETWEEN (now() AT TIME ZONE 'UTC')::date
                                      AND (now() AT TIME ZONE 'UTC')::date + 6) AS ahead,
       (now() AT TIME ZONE 'UTC')::date AS today
  FROM days;

-- name: retention_day()$
-- The day from which retention counts.
SELECT day FROM retention_clock;

-- name: open_letters(most)^
-- How many dead letters were not replayed, up to `most`, and the newest of them.
SELECT (SELECT count(*) FROM (SELECT FROM dead_letters WHERE replayed_at IS NULL LIMIT :most)
            AS counted) AS letters,
       newest.reason, newest.sqlstate, newest.last_seen
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (SELECT reason, sqlstate, last_seen FROM dead_letters
                      WHERE replayed_at IS NULL ORDER BY id DESC LIMIT 1) AS newest ON true;

-- name: peppers(most)
-- With which peppers the keys were made that are good now.
SELECT pepper, count(*) AS keys FROM api_keys
 WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
 GROUP BY pepper LIMIT :most;

-- name: data_directory()$
-- Null for a role that may not know.
SELECT setting FROM pg_settings WHERE name = 'data_directory';
