#!/usr/bin/env bash
# Fan-out 1 -> 1,000 of 128 bytes, at 20 messages a second and saturated: Thalweg beside NATS (with and without TLS) and
# Redis, in alternation. ROUNDS (default 5) and SECONDS_EACH (default 10) may be set. Servers on CPU 0, generators on CPU 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v redis-server >/dev/null || apt-get install -y redis-server >/dev/null
exec python3 bench/peers/compare.py fanout --rounds "${ROUNDS:-5}" --seconds "${SECONDS_EACH:-10}"
