# `just` lists the recipes.
default:
    @just --list

# What CI runs: format, lints, documents, licences, spelling, tests.
check:
    .ci/run

# All tests, as the README types them.
test:
    cargo test --release --workspace

# The whole loop on the embedded model.
demo:
    cargo run --release -- demo

# Replay recorded numbers of the original models.
verify *PATHS:
    cargo run --release -- verify {{PATHS}}

# Make the embedded model again from nothing.
pretrain:
    cargo run --release -- pretrain configs/pretrain-scenes.yaml

# The table of the README: the method beside its controls.
controls:
    cargo run --release -- controls configs/scenes.yaml

# Lints the Rust code of the feature `cuda`; the kernels too where the CUDA toolkit is (CUDA_COMPUTE_CAP: the GPU's, such as 90).
cuda-check:
    tools/cuda/check.sh

# The program for GPUs (needs the CUDA toolkit).
cuda-build:
    cargo build --release --features cuda

# Checks, ceilings, benches and profile on a GPU, in nine minutes at most; --device cpu --size tiny tries it without one.
gpu-session *ARGS:
    python3 benches/gpu_session.py {{ARGS}}

# Kill the program at random moments, N times for each kind of work, and compare what is left with an undisturbed run.
kills N="40" *ARGS:
    cargo build --release
    python3 benches/kills.py --kills {{N}} {{ARGS}}

# The program for several processes (needs an MPI library and libclang).
mpi-build:
    cargo build --release --features mpi

# Kills of runs of 1, 2 and 4 processes, continued by others, against the undisturbed run of one.
mpi-kills N="20" *ARGS: mpi-build
    python3 benches/kills_mpi.py --kills {{N}} {{ARGS}}

# Times of a run in 1, 2 and 4 processes beside what `hermesflow doctor --processes` predicts.
mpi-times *ARGS: mpi-build
    python3 benches/processes.py {{ARGS}}

# A run over two hosts, which are network namespaces of this one (needs root), against the run of one process.
mpi-hosts: mpi-build
    tools/mpi/two_hosts.sh

# Licences and advisories (needs cargo-deny).
deny:
    cargo deny check

# Spelling (needs typos).
typos:
    typos

# The documentation of all crates, without warnings.
doc:
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --workspace --no-deps --document-private-items

# What is handed out: a Python wheel and an archive with one static file, in target/dist-files.
dist:
    tools/dist/build.sh

# Tries the wheel in a fresh virtual environment and the archive in an empty root, both without Rust.
dist-check: dist
    tools/dist/check.sh

# Mutated files of every format through the program, for so many seconds; says how many were accepted, refused or went wrong.
fuzz SECONDS *ARGS:
    cargo run --release -p hermesflow-fuzz -- run --seconds {{SECONDS}} {{ARGS}}
