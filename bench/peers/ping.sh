#!/usr/bin/env bash
# Round trips of 64 bytes: `thalweg serve --no-model` beside a stock quinn+tokio echo, in alternation.
# ROUNDS (default 5) and SECONDS_EACH (default 10) may be set. Servers on CPU 0, generators on CPU 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 bench/peers/compare.py ping --rounds "${ROUNDS:-5}" --seconds "${SECONDS_EACH:-10}"
