#!/usr/bin/env bash
# Builds the image and runs it as it will be run: uid 65532, read-only root, no capabilities, one volume.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! docker info >/dev/null 2>&1; then
    echo "SKIPPED: no Docker engine here"
    exit 0
fi
image=env0-s3-logs:check
container=env0-s3-logs-check
max_bytes=$((40 * 1024 * 1024))

docker build --build-arg VERSION=0.0.0-check --tag "$image" .
bytes="$(docker image inspect --format '{{.Size}}' "$image")"
echo "image: $bytes bytes"
((bytes <= max_bytes))
[[ "$(docker image inspect --format '{{.Config.User}}' "$image")" == 65532:65532 ]]

trap 'docker rm --force --volumes "$container" >/dev/null' EXIT
docker run --detach --name "$container" --read-only --cap-drop ALL --security-opt no-new-privileges --network none \
    --env ENV0_S3_LOG_ROLE_ARN=arn:aws:iam::000000000000:role/env0-logs \
    --env ENV0_S3_LOG_BUCKET_NAME=my-env0-logs \
    --env ENV0_S3_LOG_AWS_REGION=us-east-1 \
    --env ENV0_S3_LOG_INGEST_TOKEN=a-token-for-this-check "$image" >/dev/null
for _ in $(seq 60); do
    health="$(docker inspect --format '{{.State.Health.Status}}' "$container")"
    [[ "$health" == starting ]] || break
    sleep 0.5
done
echo "health: $health"
if [[ "$health" != healthy ]]; then
    docker logs "$container"
    exit 1
fi
docker stop --time 30 "$container" >/dev/null
[[ "$(docker inspect --format '{{.State.ExitCode}}' "$container")" == 0 ]]
