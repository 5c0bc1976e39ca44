#!/usr/bin/env bash
# Lints the Rust code of the feature `cuda`, with or without the CUDA toolkit: where there is no nvcc, a stand-in leaves the kernels
# empty, so only a machine with the toolkit checks those (`just cuda-build`).
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/cuda-check CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    echo "no nvcc here: the kernels are not compiled, only the Rust code is checked"
    export PATH=$PWD/tools/cuda:$PATH NVCC=$PWD/tools/cuda/nvcc
fi
cargo clippy --workspace --features hermesflow/cuda --all-targets -- -D warnings
# What several processes add: on its own, so that no MPI library is needed.
cargo clippy -p hermesflow-nn -p hermesflow-train --features hermesflow-train/nccl -- -D warnings
