#!/usr/bin/env bash
# Runs the suite and the tests marked `gpu` on a machine with a GPU, and prints a table of each: one command, without network
# or installation. It needs torch, transformers, accelerate, PEFT and pytest, and takes the package from src/.
#
#     benchmarks/gpu.sh [FOLDER] [suite|tests]
#
# writes suite-gpu.json and gpu-tests.json into the folder (benchmarks/results).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src HF_HUB_OFFLINE=1
folder="${1:-benchmarks/results}"
python="${PYTHON:-python3}"
if [ "${2:-suite}" = suite ]; then
    "$python" -m benchmarks.suite --scale gpu --minutes 6 --output "$folder/suite-gpu.json"
fi
if [ "${2:-tests}" = tests ]; then
    "$python" -m benchmarks.gpu "$folder/gpu-tests.json"
fi
