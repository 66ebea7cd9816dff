# docker build -t statestored .
#
# PYTHON_IMAGE names the base; pin it by its digest where builds have to be repeatable.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
RUN python -m venv --without-pip /opt/statestored \
    && pip --python /opt/statestored/bin/python install --no-cache-dir ".[server]"
# Whatever umask it was checked out with.
COPY deploy/healthcheck.py /opt/statestored/healthcheck.py
RUN chmod 0644 /opt/statestored/healthcheck.py

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/statestored /opt/statestored
# The image ships no compiled standard library, and the container's root file system may be read-only: what a start
# imports is compiled here, once. A start takes half as long.
# Any user can be named at `docker run --user`: a volume takes over this directory's mode.
RUN /opt/statestored/bin/statestored --version && mkdir -m 1777 /data
USER 10001:10001
ENV STATESTORED_DATA_DIR=/data \
    STATESTORED_LISTEN=0.0.0.0:7828 \
    PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7828
# A bare socket: importing an HTTP client would cost more than the daemon's own start.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/opt/statestored/bin/python", "-S", "/opt/statestored/healthcheck.py"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/statestored/bin/statestored"]
