#!/usr/bin/env bash
# curl, as a deployment's hook uses it: a few lines a request, and no second try.
set -euo pipefail
base="$1" token="$2" count="$3"
per_request=25

for first in $(seq 1 "$per_request" "$count"); do
    for number in $(seq "$first" $((first + per_request - 1))); do
        printf '{"message":"event curl %06d module.vpc.aws_subnet.private: Still creating..."}\n' "$number"
    done | curl --silent --output /dev/null --header "Authorization: Bearer $token" --data-binary @- \
        "$base/v1/logs/env0-deployments" || true
    sleep 0.25
done
echo sent
cat >/dev/null
