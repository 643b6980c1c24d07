#!/usr/bin/env bash
# tests/load/instructions.sh: what the hash chain costs, counted in instructions (callgrind), not
# timed. The load run at 100 events a request, every object signed; printed are all instructions of the daemon
# and the share of what is there for the chain alone: its text, the signature and the whole of the PUT's request
# that carries them, as an upper bound. (The SHA-256 is none of it: S3 is sent it as the checksum.)
# Needs valgrind and openssl; builds the daemon with its symbols into target/instructions. Takes ten minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v valgrind openssl callgrind_control >/dev/null || { echo "valgrind and openssl are needed" >&2; exit 69; }

export CARGO_INCREMENTAL=0
cargo build --locked --release --example load
CARGO_PROFILE_RELEASE_STRIP=none cargo build --locked --release --bin env0-s3-logs --target-dir target/instructions

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
openssl genpkey -algorithm ed25519 -out "$folder/chain.key.pem"
cat >"$folder/daemon" <<END
#!/usr/bin/env bash
exec valgrind --quiet --tool=callgrind --trace-children=yes --callgrind-out-file="$folder/counts" "$PWD/target/instructions/release/env0-s3-logs" "\$@"
END
chmod +x "$folder/daemon"

echo "counting …"
target/release/examples/load --daemon "$folder/daemon" --point 100:ndjson:16:none:1500000 --runs 1 --alone \
    --env "ENV0_S3_LOG_SIGNING_KEY_FILE=$folder/chain.key.pem" >"$folder/table" &
load=$!
# The daemon is killed at the end: what it has counted is written down every two seconds until then.
while kill -0 "$load" 2>/dev/null; do
    callgrind_control --dump >/dev/null 2>&1 || true
    sleep 2
done
wait "$load"
tail -n 1 "$folder/table"

for counts in "$folder"/counts.*; do
    callgrind_annotate --inclusive=yes --threshold=99.999 "$counts" 2>/dev/null || true
done | sed 's/( *[0-9.]*%)//' | awk '
    { gsub(",", "", $1) }
    /PROGRAM TOTALS/ { total += $1 }
    /ChainEntry::signed_text/ { text += $1 }
    /EVP_DigestSign / { signature += $1 }
    /orchestrator::try_attempt::/ { request += $1 }
    END {
        if (!total || !signature) { print "nothing was counted" > "/dev/stderr"; exit 70 }
        printf "instructions        %14.0f\n", total
        printf "the signed text     %14.0f  %.4f %%\n", text, 100 * text / total
        printf "the signature       %14.0f  %.4f %%\n", signature, 100 * signature / total
        printf "each PUT, all of it %14.0f  %.4f %%\n", request, 100 * request / total
    }'
