#!/usr/bin/env bash
# Documents: Thalweg beside Hocuspocus 4, y-sweet and y-websocket under one WebSocket client, in alternation; then ours over
# QUIC, and 1,000 documents at once. Sections may be named: latency sustained quic crowd. ROUNDS (default 3) and SECONDS_EACH
# (default 5) may be set. Servers on CPU 0, clients on CPU 1. Needs node, npm and, for SQLite, make and g++.
set -euo pipefail
cd "$(dirname "$0")/../.."
missing=""
command -v npm >/dev/null || missing="$missing npm"
command -v g++ >/dev/null || missing="$missing g++"
command -v make >/dev/null || missing="$missing make"
# shellcheck disable=SC2086 -- several packages
[ -z "$missing" ] || apt-get install -y $missing >/dev/null
exec python3 bench/peers/docs/run.py --rounds "${ROUNDS:-3}" --seconds "${SECONDS_EACH:-5}" "$@"
