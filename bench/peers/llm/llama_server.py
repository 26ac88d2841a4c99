#!/usr/bin/env python3
"""llama.cpp's server out of the package `xllamacpp`: llama_server.py MODEL THREADS SLOTS CONTEXT. Prints `ready http=HOST:PORT`.

Everything that serves is llama.cpp's own C++ (sampling, HTTP, continuous batching); this process only starts it.
"""

import os
import signal
import sys

import xllamacpp

path, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:5])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel = slots * context, slots
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(f"ready http={server.listening_address.removeprefix('http://')}", flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
# Its threads do not end by themselves.
os._exit(0)
