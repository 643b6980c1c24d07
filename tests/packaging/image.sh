#!/usr/bin/env bash
# Builds the image and runs it as it will be run: uid 65532, read-only root, no capabilities, one volume.
# With a Docker engine as the Dockerfile says; else with podman on stand-ins for both bases, made of this machine's
# files, whose cargo hands out target/release/env0-s3-logs: that tries the Dockerfile, not the bases or the compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

image=env0-s3-logs:check
container=env0-s3-logs-check
max_bytes=$((40 * 1024 * 1024))
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

# The Dockerfile with its bases by name instead of digest, and images of those names.
stand_ins() {
    local binary="${CARGO_TARGET_DIR:-target}/release/env0-s3-logs" root="$folder/root" tools builder runtime
    sed 's/@sha256:[0-9a-f]*//' Dockerfile >"$folder/Dockerfile"
    {
        read -r builder
        read -r runtime
    } < <(sed -n 's/^FROM \([^ ]*\).*/\1/p' "$folder/Dockerfile")

    with_libraries "$root" "$binary"
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar -C "$root" -c . | "${engine[@]}" import - "$runtime" >/dev/null 2>&1

    mapfile -t tools < <(type -P sh cp install mkdir)
    with_libraries "$root" "${tools[@]}"
    install "${tools[@]}" "$root/bin"
    install "$binary" "$root/prebuilt"
    printf '#!/bin/sh\nmkdir -p target/release && cp /prebuilt target/release/env0-s3-logs\n' >"$root/bin/cargo"
    chmod 0755 "$root/bin/cargo"
    tar -C "$root" -c . | "${engine[@]}" import --change 'ENV PATH=/bin' - "$builder" >/dev/null 2>&1
}

# Copies what programs are linked against into a root.
with_libraries() {
    local root="$1"
    ldd "${@:2}" | grep -o '/[^ :]*\.so[^ ]*' | sort -u | while read -r library; do
        install -D "$library" "$root$library"
    done
    mkdir -p "$root/bin"
}

if docker info >/dev/null 2>&1; then
    engine=(docker)
    build=(build)
    run=(run)
    healthy() { [[ "$(docker inspect --format '{{.State.Health.Status}}' "$container")" == healthy ]]; }
else
    if ! { command -v podman && command -v runc; } >/dev/null; then
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends podman runc
    fi >/dev/null 2>&1 || true
    # Storage of its own, that goes with the folder.
    export TMPDIR="$folder"
    engine=(podman --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs --cgroup-manager cgroupfs --runtime runc)
    # Without systemd it complains about timers that this script has no need of.
    engine+=(--log-level fatal)
    if ! "${engine[@]}" info >/dev/null 2>&1; then
        echo "SKIPPED: no Docker engine here, and podman can't be installed or used"
        exit 0
    fi
    stand_ins
    build=(build --isolation chroot --pull=never --format docker --file "$folder/Dockerfile")
    # A sandbox may forbid to raise limits.
    run=(run --ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
    healthy() { "${engine[@]}" healthcheck run "$container" >/dev/null 2>&1; }
    echo "no Docker engine here: podman, on stand-in bases with the binary that is already built"
fi

"${engine[@]}" "${build[@]}" --build-arg VERSION=0.0.0-check --tag "$image" . >"$folder/build.log" 2>&1 || {
    cat "$folder/build.log"
    exit 1
}
bytes="$("${engine[@]}" image inspect --format '{{.Size}}' "$image")"
echo "image: $bytes bytes (at most $max_bytes)"
((bytes <= max_bytes))
[[ "$("${engine[@]}" image inspect --format '{{.Config.User}}' "$image")" == 65532:65532 ]]

trap '"${engine[@]}" rm --force --volumes "$container" >/dev/null 2>&1 || true; rm -rf "$folder"' EXIT
"${engine[@]}" "${run[@]}" --detach --name "$container" --read-only --cap-drop ALL --security-opt no-new-privileges --network none \
    --env ENV0_S3_LOG_ROLE_ARN=arn:aws:iam::000000000000:role/env0-logs \
    --env ENV0_S3_LOG_BUCKET_NAME=my-env0-logs \
    --env ENV0_S3_LOG_AWS_REGION=us-east-1 \
    --env ENV0_S3_LOG_INGEST_TOKEN=a-token-for-this-check "$image" >/dev/null
for attempt in $(seq 60); do
    if healthy; then
        echo "healthy, as uid $(awk '/^Uid:/ { print $2 }' "/proc/$("${engine[@]}" inspect --format '{{.State.Pid}}' "$container")/status")"
        break
    fi
    if ((attempt == 60)); then
        "${engine[@]}" logs "$container"
        exit 1
    fi
    sleep 0.5
done
"${engine[@]}" stop --time 30 "$container" >/dev/null
[[ "$("${engine[@]}" inspect --format '{{.State.ExitCode}}' "$container")" == 0 ]]
