#!/usr/bin/env bash
# Has the verifier that was written from the specification alone, in Python, judge every bucket that the tests of
# `verify` make. Packages from PyPI, pinned by version and hash, in a folder that is gone afterwards.
set -euo pipefail
cd "$(dirname "$0")"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
if ! {
    python3 -m venv "$folder/venv" &&
        "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
}; then
    echo "SKIPPED: boto3 could not be installed from PyPI"
    exit 0
fi
# The tests pass without it, too: so each of its runs is counted.
cat >"$folder/python" <<SCRIPT
#!/bin/sh
echo >>"$folder/runs"
exec "$folder/venv/bin/python" -B "\$@"
SCRIPT
chmod 0755 "$folder/python"
touch "$folder/runs"
VERIFIER_PYTHON="$folder/python" cargo test --locked --test it verify::
runs="$(wc -l <"$folder/runs")"
echo "both verifiers judged $runs times, and agreed"
((runs > 0))
