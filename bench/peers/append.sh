#!/usr/bin/env bash
# Durable appends of 256 bytes, 256 in flight, and at 70 % of that rate: Thalweg beside NATS JetStream (`sync_interval:
# always`, with TLS and with 16 streams too) and Redis (`appendfsync always`), in alternation; then again with a disk whose
# syncs take 1 and 5 ms longer. ROUNDS (default 3), SECONDS_EACH (default 5) and DELAYS_US (default "0 1000 5000") may be set.
# Servers on CPU 0, generators on CPU 1. Needs gcc and strace for the delays.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v strace >/dev/null || missing="$missing strace"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
# shellcheck disable=SC2086 -- several packages
[ -z "$missing" ] || apt-get install -y $missing >/dev/null
# shellcheck disable=SC2086 -- several numbers
exec python3 bench/peers/compare.py append --rounds "${ROUNDS:-3}" --seconds "${SECONDS_EACH:-5}" \
    --delays-us ${DELAYS_US:-0 1000 5000}
