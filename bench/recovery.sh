#!/usr/bin/env bash
# Recovery of 1,000,000 records of 256 bytes that were never sealed, with a cold page cache: the crate by itself, and a node
# until it serves. ROUNDS (default 3), RECORDS, and WRITERS (sessions of each of the 1,000 channels, default 4) may be set.
# Needs root, to drop the page cache.
set -euo pipefail
cd "$(dirname "$0")/.."
thalweg=${THALWEG:-target/release/thalweg}
micro=${RECOVERY:-target/release/recovery}
[ -x "$micro" ] || cargo build --release --quiet -p thalweg-micro --bin recovery
[ -x "$thalweg" ] || { echo "$thalweg is missing: run \`cargo build --release\` first" >&2; exit 2; }
work=$(mktemp -d -p target)
node=""
trap '[ -z "$node" ] || kill -9 "$node" 2>/dev/null || true; rm -rf "$work"' EXIT

# A log that nothing was sealed of, and nothing of it in memory.
fill() {
    rm -rf "$work/data"
    mkdir -m 700 "$work/data"
    "$micro" write "$work/data/log" "${RECORDS:-1000000}" 256 1000 "${WRITERS:-4}" >/dev/null
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

for _ in $(seq "${ROUNDS:-3}"); do
    fill
    "$micro" read "$work/data/log"
    fill
    : >"$work/out"
    begin=$(date +%s%N)
    "$thalweg" serve --no-model --quic 127.0.0.1:0 --http off --data "$work/data" >"$work/out" 2>"$work/log" &
    node=$!
    until grep -q '^ready ' "$work/out"; do
        kill -0 "$node" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
        sleep 0.01
    done
    ready_ms=$((($(date +%s%N) - begin) / 1000000))
    peak_kib=$(awk '/^VmHWM/ { print $2 }' "/proc/$node/status")
    echo "node ready_ms=$ready_ms peak_rss_mib=$((peak_kib / 1024))"
    kill "$node"
    wait "$node" || true
    node=""
done
