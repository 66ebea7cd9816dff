# docker build -t statestored .
#
# PYTHON_IMAGE names the base; pin it by its digest where builds have to be repeatable.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
RUN python -m venv /opt/statestored && /opt/statestored/bin/pip install --no-cache-dir ".[server]"

FROM ${PYTHON_IMAGE}
# Compiled once, here: the container's root file system may be read-only.
COPY --from=build /opt/statestored /opt/statestored
# Any user can be named at `docker run --user`: a volume takes over this directory's mode.
RUN mkdir -m 1777 /data
USER 10001:10001
ENV STATESTORED_DATA_DIR=/data \
    STATESTORED_LISTEN=0.0.0.0:7828 \
    PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7828
COPY deploy/healthcheck.py /opt/statestored/healthcheck.py
# A bare socket: importing an HTTP client would cost more than the daemon's own start.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/opt/statestored/bin/python", "-S", "/opt/statestored/healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/statestored/bin/statestored"]
