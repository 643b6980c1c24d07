# Debian 12 builds (glibc 2.36), Debian 13 runs (glibc 2.41): a binary never needs a newer glibc than it is built on.
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo ./.cargo
COPY src ./src
ARG TARGETARCH
# Without it build.rs asks the source tarball.
ARG REVISION
ARG SOURCE
# arm64 has systems with memory pages of 4, 16 and 64 KiB. jemalloc ends the process where they are larger than it was built for.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    if [ "${TARGETARCH}" = arm64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && REVISION="${REVISION}" SOURCE="${SOURCE}" cargo build --release --locked --bin env0-s3-logs \
    && install -D -m 0755 target/release/env0-s3-logs /out/usr/local/bin/env0-s3-logs \
    && install -d -m 0700 -o 65532 -g 65532 /out/var/lib/env0-s3-logs \
    && /out/usr/local/bin/env0-s3-logs --version

# cc: glibc, libgcc and a CA bundle; no shell, no package manager.
FROM gcr.io/distroless/cc-debian13:nonroot@sha256:54df941ed0d06a1bd95ef5e0ce391fd8d9f94b64782dc9a60062727849ee3f97
ARG VERSION=0.0.0-dev
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="env0-s3-logs" \
      org.opencontainers.image.description="Takes env0 deployment and audit events over HTTP, makes them durable, writes them to your S3 bucket" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.url="${SOURCE}" \
      org.opencontainers.image.documentation="${SOURCE}#readme" \
      org.opencontainers.image.vendor="env0-s3-logs contributors" \
      org.opencontainers.image.authors="env0-s3-logs contributors" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian13:nonroot" \
      org.opencontainers.image.base.digest="sha256:54df941ed0d06a1bd95ef5e0ce391fd8d9f94b64782dc9a60062727849ee3f97"
COPY --from=build /out/ /
COPY LICENSE /usr/share/doc/env0-s3-logs/LICENSE
ENV ENV0_S3_LOG_LISTEN_ADDR=0.0.0.0:8080 \
    ENV0_S3_LOG_ADMIN_ADDR=0.0.0.0:9090
# Numeric: a kubelet that checks runAsNonRoot can't look up a name.
USER 65532:65532
VOLUME ["/var/lib/env0-s3-logs"]
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/env0-s3-logs", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/env0-s3-logs"]
