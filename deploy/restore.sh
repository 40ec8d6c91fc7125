#!/bin/sh
# Restore a backup into an empty service: deploy/restore.sh backups/TIME. A service with tables is refused.
set -eu
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}
folder=${1:?must name a backup: make restore BACKUP=backups/TIME}

(cd "$folder" && sha256sum --check --quiet SHA256SUMS)
$compose up --detach --wait postgres

ask() { # DATABASE, SQL
    $compose exec -T postgres sh -c \
        'PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") exec psql --no-psqlrc --host=127.0.0.1 --port=5432 --username=postgres --tuples-only --no-align --dbname="$0" --command="$1"' \
        "$1" "$2"
}
for database in overnight mlflow mlflow_auth; do
    held=$(ask "$database" "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    if [ "$held" != 0 ]; then
        echo "$database: must be empty, has $held tables; docker compose down --volumes deletes everything in the service for good" >&2
        exit 1
    fi
done
for database in overnight mlflow mlflow_auth; do
    owner=mlflow
    if [ "$database" = overnight ]; then owner=overnight; fi
    $compose exec -T postgres sh -c \
        'PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") exec pg_restore --host=127.0.0.1 --port=5432 --username=postgres --no-owner --role="$1" --exit-on-error --single-transaction --dbname="$0"' \
        "$database" "$owner" <"$folder/$database.dump"
done
$compose run --rm --no-deps -T mlflow tar -C /artifacts -xf - <"$folder/artifacts.tar"
echo "restored $folder; make up starts the service on it"
