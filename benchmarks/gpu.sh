#!/usr/bin/env bash
# Runs the tests marked `gpu` on a machine with a GPU, and prints a table: one command, without network or installation. It
# needs torch, transformers, accelerate, PEFT and pytest, and takes the package from src/.
#
#     benchmarks/gpu.sh [RESULTS.json]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
