#!/bin/sh
# Back up all databases and the artifacts of the running service to backups/TIME, readable by you only.
# The databases are first, so that every artifact that they name is in the archive.
set -eu
umask 077
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}

folder=backups/$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p backups
mkdir "$folder.writing"
for database in overnight mlflow mlflow_auth; do
    $compose exec -T postgres sh -c \
        'PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") exec pg_dump --host=127.0.0.1 --port=5432 --username=postgres --format=custom "$0"' \
        "$database" >"$folder.writing/$database.dump"
done
$compose exec -T mlflow tar -C /artifacts -cf - . >"$folder.writing/artifacts.tar"
(cd "$folder.writing" && sha256sum -- *.dump artifacts.tar >SHA256SUMS)
mv "$folder.writing" "$folder"
echo "$folder"
