#!/bin/sh
# Write what docker-compose.yml needs: .env with the user of the containers, and one file per secret in secrets/.
# Existing files stay as they are.
set -eu
umask 077
cd "$(dirname "$0")/.."

# The containers run as the owner of the secrets, and never as root.
uid=$(id -u) gid=$(id -g)
if [ "$uid" = 0 ]; then uid=10001 gid=10001; fi

keep() { # NAME: write standard input to secrets/NAME, unless the file exists
    [ -e "secrets/$1" ] && return
    cat >"secrets/$1.writing"
    if [ "$(id -u)" = 0 ]; then chown "$uid:$gid" "secrets/$1.writing"; fi
    mv -n "secrets/$1.writing" "secrets/$1"
    echo "wrote secrets/$1"
}
random() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

mkdir -p secrets
if [ "$(id -u)" = 0 ]; then chown "$uid:$gid" secrets; fi
for name in postgres_password storage_password mlflow_password mlflow_admin_password mlflow_secret_key tracking_password; do
    random | keep "$name"
done
printf 'postgresql+psycopg://overnight:%s@postgres:5432/overnight' "$(cat secrets/storage_password)" | keep storage_url
printf 'postgresql+psycopg://mlflow:%s@postgres:5432/mlflow' "$(cat secrets/mlflow_password)" | keep mlflow_url
printf 'postgresql+psycopg://mlflow:%s@postgres:5432/mlflow_auth' "$(cat secrets/mlflow_password)" | keep logins_url

if [ ! -e .env ]; then
    printf 'OVERNIGHT_UID=%s\nOVERNIGHT_GID=%s\n' "$uid" "$gid" >.env
    echo "wrote .env"
fi
