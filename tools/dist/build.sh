#!/usr/bin/env bash
# Builds what is handed out, into target/dist-files: a Python wheel that carries the program, and an archive with the same program. It is
# one static file (musl, linked by zig), so both run on any x86-64 Linux without Rust, whatever its libc. Needs cargo, rustup, python3
# and PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dist=$CARGO_TARGET_DIR/dist-files
tools=$CARGO_TARGET_DIR/dist-tools
arch=x86_64-unknown-linux-musl

if ! "$tools/bin/maturin" --version >/dev/null 2>&1; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check maturin==1.16.0 ziglang==0.17.1 wheel==0.45.1
fi
export PATH=$tools/bin:$PATH
rustup target add $arch

rm -rf "$dist"
mkdir -p "$dist"
maturin build --quiet --locked --zig --target $arch --out "$dist"

# A static program satisfies every libc. Rust's standard library needs Linux 3.2, so no older tag than manylinux 2.17 is promised.
program=$CARGO_TARGET_DIR/$arch/dist/hermesflow
if readelf -d "$program" | grep -q NEEDED; then
    echo "$program is not static" >&2
    exit 1
fi
wheel tags --remove --platform-tag manylinux2014_x86_64.manylinux_2_17_x86_64.musllinux_1_1_x86_64 "$dist"/*.whl

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=hermesflow-$version-x86_64-linux
mkdir "$dist/$name"
cp "$program" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$dist/$name"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$dist" -czf "$dist/$name.tar.gz" "$name"
rm -r "${dist:?}/$name"

ls -l "$dist"
