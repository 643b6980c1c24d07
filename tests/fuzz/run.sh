#!/usr/bin/env bash
# Runs the coverage-guided fuzz: tests/fuzz/run.sh SECONDS [FAMILY…], all families one after the other without names.
# It begins with the inputs in tests/fixtures/fuzz and leaves there a smallest set that reaches as much. An input that
# fails is kept in tests/fuzz/target/found; `FUZZ_FAMILY=FAMILY tests/fuzz/target/*/release/fuzz FILE` repeats it.
set -euo pipefail
cd "$(dirname "$0")"
seconds="$1"
shift
families=("$@")
if [[ ${#families[@]} == 0 ]]; then
    families=(native otlp-json otlp-protobuf loki-json loki-protobuf splunk newrelic sumologic logzio)
fi
# Short inputs are many more a second, and say as much of a parser.
max_bytes=256

cargo build --release --locked
fuzz="$(echo "$PWD"/target/*/release/fuzz)"
for family in "${families[@]}"; do
    export FUZZ_FAMILY="$family"
    packed="../fixtures/fuzz/$family.txt"
    corpus="target/corpus/$family"
    smallest="target/smallest/$family"
    mkdir -p "$corpus" target/found "$(dirname "$packed")"
    rm -rf "$smallest"
    mkdir -p "$smallest"
    touch "$packed"
    python3 -c '
import base64, hashlib, pathlib, sys
for line in open(sys.argv[1]):
    data = base64.b64decode(line)
    (pathlib.Path(sys.argv[2]) / hashlib.sha1(data).hexdigest()).write_bytes(data)' "$packed" "$corpus"
    echo "== $family"
    "$fuzz" -dict=dictionary -max_len="$max_bytes" -max_total_time="$seconds" -artifact_prefix=target/found/ \
        -print_final_stats=1 "$corpus" 2>&1 | grep -E 'DONE|panicked|Test unit|number_of_executed' || true
    "$fuzz" -merge=1 -use_counters=0 -max_len="$max_bytes" "$smallest" "$corpus" >/dev/null 2>&1
    python3 -c '
import base64, pathlib, sys
inputs = sorted(file.read_bytes() for file in pathlib.Path(sys.argv[1]).iterdir())
open(sys.argv[2], "w").writelines(base64.b64encode(data).decode() + "\n" for data in inputs)' "$smallest" "$packed"
done
