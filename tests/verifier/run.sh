#!/usr/bin/env bash
# Has the verifier that was written from the specification alone, in Python, judge every bucket that the tests of
# `verify` make. Packages from PyPI, pinned by version and hash, in a folder that is gone afterwards.
set -euo pipefail
cd "$(dirname "$0")"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
if ! "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt; then
    echo "SKIPPED: PyPI can't be reached, so boto3 could not be installed"
    exit 0
fi
VERIFIER_PYTHON="$folder/venv/bin/python" PYTHONDONTWRITEBYTECODE=1 cargo test --locked --test it verify::
