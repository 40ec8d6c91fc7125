# One image for all parts of the service: `overnight worker`, `overnight migrate` and MLflow's server.
# To pin a digest in place of the tag: `--build-arg PYTHON_IMAGE=python@sha256:...`.
ARG PYTHON_IMAGE=python:3.11.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/overnight
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN /opt/overnight/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[service]'

FROM ${PYTHON_IMAGE}
ARG UID=10001
ARG GID=10001
COPY --from=build /opt/overnight /opt/overnight
# A new volume copies content and owner of these directories.
RUN install --directory --owner="${UID}" --group="${GID}" --mode=0750 /var/lib/overnight /artifacts /data
ENV PATH=/opt/overnight/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=overnight \
    OVERNIGHT_DATA=/data \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true
WORKDIR /var/lib/overnight
USER ${UID}:${GID}
CMD ["overnight", "--help"]
