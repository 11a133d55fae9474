# The worker, without torch. From the repository's root:
#   docker build -f deploy/docker/worker.Dockerfile -t nextclick-worker:0.1.0 .
# With --build-arg REQUIREMENTS=requirements/api.txt it is the image of `stream-app api` and `stream-app sink`.
# PYTHON_IMAGE takes a digest as well (python:3.11.15-slim-bookworm@sha256:...): docs/docker.md, "Pin the base image".
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A mirror of the package index is the builder's to name: pip reads these when they are given as build arguments.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG REQUIREMENTS=requirements/stream.txt
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /build
# Requirements first: this layer stays while only our own code changes. Wheels only, so no compiler is needed, and pip
# stays outside the environment that is shipped.
COPY ${REQUIREMENTS} stream.txt
COPY deploy/docker/build.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv --without-pip /opt/nextclick \
    && python -m pip --python /opt/nextclick install --require-hashes --only-binary :all: -r stream.txt \
    && python -m pip install --require-hashes --only-binary :all: -r build.txt
COPY pyproject.toml ./
COPY schemas schemas
COPY stream_app stream_app
RUN python -m pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/nextclick install --no-cache-dir --no-index --no-deps dist/*.whl \
    && rm /opt/nextclick/bin/trainer

FROM ${PYTHON_IMAGE}
# HOME: the root file system may be read-only, and libraries that want a cache shall find /tmp.
# The port is set here because the health check below asks for it.
ENV PATH=/opt/nextclick/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1 \
    HOME=/tmp \
    NEXTCLICK_WORKER__DATA_DIR=/var/lib/nextclick/state \
    NEXTCLICK_WORKER__WEB_PORT=6066 \
    NEXTCLICK_WORKER__LOG_FORMAT=json
# A volume takes its owner from the folder that it covers. The registry's is the trainer's too: same path, same user.
RUN install -d -o 10001 -g 10001 /var/lib/nextclick /var/lib/nextclick/state /var/lib/nextclick/registry
COPY --from=build /opt/nextclick /opt/nextclick
COPY deploy/docker/healthcheck.py /opt/nextclick/
USER 10001:10001
# Where nextclick.toml is looked for.
WORKDIR /var/lib/nextclick
EXPOSE 6066
STOPSIGNAL SIGTERM
# Alive, not ready: a worker that waits for its first model or restores its table is well, only not done.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "/opt/nextclick/healthcheck.py", "http://127.0.0.1:6066/livez"]
ENTRYPOINT ["stream-app"]
CMD ["worker"]
