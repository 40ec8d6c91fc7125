#!/bin/bash
# Create the databases of the service and their owners. PostgreSQL's image runs this script when its volume is new.
# A worker's password gives access to the study storage only, not to MLflow's accounts.
set -euo pipefail

[ -s "${STORAGE_PASSWORD_FILE:?}" ] && [ -s "${MLFLOW_PASSWORD_FILE:?}" ] || { echo "a role's password is missing" >&2; exit 1; }

psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres <<'SQL'
\set storage_password `cat "$STORAGE_PASSWORD_FILE"`
\set mlflow_password `cat "$MLFLOW_PASSWORD_FILE"`
REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
CREATE ROLE overnight LOGIN PASSWORD :'storage_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE overnight OWNER overnight;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT, TEMPORARY ON DATABASE overnight, mlflow, mlflow_auth FROM PUBLIC;
SQL
