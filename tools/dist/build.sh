#!/usr/bin/env bash
# Builds what is handed out, into target/dist: a Python wheel that carries the program (glibc 2.17 or newer), and an archive with the
# program as one static file (musl). Both run on any x86-64 Linux without Rust. Needs cargo, rustup, python3 and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
dist=$target/dist-files
tools=$(realpath -m "$target/dist-tools")

if ! "$tools/bin/maturin" --version >/dev/null 2>&1; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check maturin==1.16.0 ziglang==0.17.1 cargo-zigbuild==0.24.1
fi
export PATH=$tools/bin:$PATH

rm -rf "$dist"
mkdir -p "$dist"

# zig links against the symbols that glibc 2.17 has (manylinux2014), whatever this machine's glibc is.
maturin build --quiet --locked --zig --target x86_64-unknown-linux-gnu --compatibility manylinux2014 --out "$dist"

rustup target add x86_64-unknown-linux-musl
cargo zigbuild --quiet --locked --profile dist --target x86_64-unknown-linux-musl -p hermesflow --bin hermesflow
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=hermesflow-$version-x86_64-linux
mkdir "$dist/$name"
cp "$target/x86_64-unknown-linux-musl/dist/hermesflow" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$dist/$name"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$dist" -czf "$dist/$name.tar.gz" "$name"
rm -r "${dist:?}/$name"

ls -l "$dist"
