-- name: make_partitions(days)$
-- The names of those that were made; the function and what it makes belong to the schema's owner.
SELECT make_partitions(:days::date[]);
