#!/usr/bin/env bash
# Real clients, unmodified and at their default settings, against a daemon that is killed in the middle: every event
# that was acknowledged must end in the bucket. Everything is installed into a folder that is gone afterwards; what
# can't be installed is skipped, and says so.
set -euo pipefail
cd "$(dirname "$0")"
root="$(cd ../.. && pwd)"
target="${CARGO_TARGET_DIR:-$root/target}"

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

(cd "$root" && cargo build --quiet --locked --example local-aws)
daemon="$target/release/env0-s3-logs"
if [[ ! -x "$daemon" ]]; then
    (cd "$root" && cargo build --quiet --locked --bin env0-s3-logs)
    daemon="$target/debug/env0-s3-logs"
fi

cp package.json package-lock.json "$folder/"
(cd "$folder" && npm ci --silent --ignore-scripts --no-audit --no-fund) &
npm_install=$!

{
    python3 -m venv "$folder/venv" &&
        "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
} || echo "PyPI's packages can't be installed"

# Debian's packages are unpacked, not installed: that needs no root and starts no service.
if ! command -v syslog-ng >/dev/null; then
    mkdir -p "$folder/debian/partial"
    apt-cache show syslog-ng-core >/dev/null 2>&1 || apt-get update --quiet=2 || true
    if apt-get install --quiet=2 --download-only --no-install-recommends \
        --option Debug::NoLocking=true --option Dir::Cache::archives="$folder/debian" \
        syslog-ng-core syslog-ng-mod-http >"$folder/apt.log" 2>&1; then
        for package in "$folder"/debian/*.deb; do
            dpkg --extract "$package" "$folder/debian/root"
        done
        export PATH="$folder/debian/root/usr/sbin:$PATH"
        SYSLOG_NG_LIBRARIES="$(find "$folder/debian/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)"
        SYSLOG_NG_MODULES="$(dirname "$(find "$folder/debian/root" -name libhttp.so)")"
        export SYSLOG_NG_LIBRARIES SYSLOG_NG_MODULES
    fi
fi

wait "$npm_install" || echo "npm's packages can't be installed"
python3 run.py "$target/debug/examples/local-aws" "$daemon" "$folder"
