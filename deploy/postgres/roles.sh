#!/bin/sh
# Makes the roles and the database; the image runs it once, in an empty data folder.
set -eu
psql --set=ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set=owner="$OWNER_PASSWORD" --set=services="$SERVICES_PASSWORD" --set=reader="$READER_PASSWORD" <<'SQL'
CREATE ROLE logging_service_owner LOGIN PASSWORD :'owner';
CREATE ROLE logging_service_user LOGIN PASSWORD :'services';
CREATE DATABASE code_reviewer_logs OWNER logging_service_owner;
-- For dashboards: reads what the owner makes, digests of keys among it, and no more.
CREATE ROLE logging_service_reader LOGIN PASSWORD :'reader' CONNECTION LIMIT 10;
ALTER ROLE logging_service_reader SET default_transaction_read_only = on;
ALTER ROLE logging_service_reader SET statement_timeout = '30s';
\connect code_reviewer_logs
ALTER DEFAULT PRIVILEGES FOR ROLE logging_service_owner GRANT SELECT ON TABLES TO logging_service_reader;
SQL
