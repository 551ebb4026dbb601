-- Statements for the role that owns the schema, which migrates, and for that of the services.

-- name: whose()^
SELECT current_user AS role, current_database() AS database;

-- name: hand_over(role)$
-- What an administrator has to run before this session can migrate for the services' role; null
-- where nothing is in the way.
SELECT format('ALTER DATABASE %I OWNER TO %I; REASSIGN OWNED BY %I TO %2$I',
              current_database(), current_user, pg_get_userbyid(relowner))
  FROM pg_class
 WHERE oid = to_regclass('log_events')
   AND (pg_get_userbyid(relowner) = :role OR NOT pg_has_role(relowner, 'USAGE'));

-- name: clearing(role, tables)
-- Statements that take from the role every right on these tables, those that are there, and on what
-- will be made; and from everyone the right to make something in the schema.
WITH place AS (
    SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname = current_schema()
)
SELECT format('REVOKE ALL ON %I.%I FROM %I', nspname, relname, :role::text) AS statement
  FROM place JOIN pg_class ON relnamespace = place.oid
 WHERE relname = ANY (:tables::text[])
    OR (relispartition AND relacl IS NOT NULL
        AND pg_partition_root(pg_class.oid) = ANY (SELECT to_regclass(format('%I.%I', nspname, name))
                                                     FROM unnest(:tables::text[]) AS name))
UNION ALL
SELECT format('ALTER DEFAULT PRIVILEGES %s REVOKE ALL ON TABLES FROM %I', within, :role::text)
  FROM place CROSS JOIN unnest(ARRAY['', format('IN SCHEMA %I', nspname)]) AS within
UNION ALL
SELECT format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC, %I', nspname, :role::text)
  FROM place WHERE pg_has_role(nspowner, 'USAGE');

-- name: giving(role, tables, rights, functions)
-- Statements that give the role its rights on each of these tables and functions.
SELECT format('GRANT %s ON %I.%I TO %I', each_right, current_schema(), name, :role::text)
       AS statement
  FROM unnest(:tables::text[], :rights::text[]) AS given (name, each_right)
 WHERE to_regclass(format('%I.%I', current_schema(), name)) IS NOT NULL
UNION ALL
SELECT format('GRANT EXECUTE ON FUNCTION %I.%s TO %I', current_schema(), signature, :role::text)
  FROM unnest(:functions::text[]) AS signature
UNION ALL
SELECT format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), :role::text);

-- name: may_alter()$
-- Whether who is connected could change or remove stored events or calls: as an owner of theirs or
-- of what they lie in, by a right beyond reading and adding, or as another role that it may become.
WITH kept AS (
    SELECT oid, relowner, relnamespace
      FROM pg_class
     WHERE oid IN (to_regclass('log_events'), to_regclass('llm_calls'))
    UNION ALL
    -- Without rights of its own a partition has those of its owner alone.
    SELECT part.oid, part.relowner, part.relnamespace
      FROM pg_inherits
      JOIN pg_class AS parent ON parent.oid = inhparent
      JOIN pg_class AS part ON part.oid = inhrelid
     WHERE inhparent IN (to_regclass('log_events'), to_regclass('llm_calls'))
       AND (part.relacl IS NOT NULL OR part.relowner <> parent.relowner)
), owners (role) AS (
    SELECT relowner FROM kept
    UNION SELECT nspowner FROM kept JOIN pg_namespace ON pg_namespace.oid = relnamespace
    UNION SELECT datdba FROM pg_database WHERE datname = current_database()
)
SELECT EXISTS (
    SELECT FROM pg_roles AS role
     WHERE pg_has_role(session_user, role.oid, 'MEMBER')
       AND (role.oid IN (SELECT owners.role FROM owners)
            OR role.rolname IN ('pg_execute_server_program', 'pg_write_server_files')
            OR EXISTS (SELECT FROM kept
                        WHERE has_table_privilege(role.oid, kept.oid,
                                                  'UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
                           OR has_any_column_privilege(role.oid, kept.oid, 'UPDATE, REFERENCES')))
);
