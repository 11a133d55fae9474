# The trainer, with torch. From the repository's root:
#   docker build -f deploy/docker/trainer.Dockerfile -t nextclick-trainer:0.1.0 .
# The locked torch is the CUDA build, several GB: docs/docker.md, "A trainer image without CUDA".
# PYTHON_IMAGE takes a digest as well (python:3.11.15-slim-bookworm@sha256:...): docs/docker.md, "Pin the base image".
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A mirror of the package index is the builder's to name: pip reads these when they are given as build arguments.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
# Another locked file, such as one with the CPU build of torch.
ARG REQUIREMENTS=requirements/trainer.txt
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR=/var/cache/pip
WORKDIR /build
# Requirements first: this layer stays while only our own code changes. Wheels only, so no compiler is needed, and pip
# stays outside the environment that is shipped.
COPY ${REQUIREMENTS} trainer.txt
COPY deploy/docker/build.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv --without-pip /opt/nextclick \
    && python -m pip --python /opt/nextclick install --require-hashes --only-binary :all: -r trainer.txt \
    && python -m pip install --require-hashes --only-binary :all: -r build.txt
COPY pyproject.toml ./
COPY schemas schemas
COPY trainer trainer
RUN python -m pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/nextclick install --no-cache-dir --no-index --no-deps dist/*.whl \
    && rm /opt/nextclick/bin/stream-app

FROM ${PYTHON_IMAGE}
# HOME: the root file system may be read-only, and libraries that want a cache shall find /tmp.
ENV PATH=/opt/nextclick/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1 \
    HOME=/tmp \
    NEXTCLICK_TRAINER__LOG_DIR=/var/lib/nextclick/trainer/click-log \
    NEXTCLICK_TRAINER__WORK_DIR=/var/lib/nextclick/trainer/work \
    NEXTCLICK_TRAINER__REGISTRY=/var/lib/nextclick/registry \
    NEXTCLICK_TRAINER__LOG_FORMAT=json
# A volume takes its owner from the folder that it covers. The registry's is the workers' too: same path, same user.
RUN install -d -o 10001 -g 10001 /var/lib/nextclick /var/lib/nextclick/trainer /var/lib/nextclick/registry
COPY --from=build /opt/nextclick /opt/nextclick
USER 10001:10001
# Where nextclick.toml is looked for.
WORKDIR /var/lib/nextclick
STOPSIGNAL SIGTERM
# The trainer serves no page. This asks what an operator would: can the registry and Kafka be read with these settings?
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["trainer", "models", "--json"]
ENTRYPOINT ["trainer"]
CMD ["run"]
