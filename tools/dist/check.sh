#!/usr/bin/env bash
# Tries what build.sh made where there is neither Rust nor anything else of this project: the wheel in a fresh virtual environment, the
# archive in a folder that holds nothing but its files (chroot: no libc, no shell, no /proc). Both run `hermesflow demo --quick`; what
# they leave is compared, and lies in target/dist-check to be looked at.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
dist=$target/dist-files
check=$target/dist-check
wheel=$(ls "$dist"/hermesflow-*.whl)
archive=$(ls "$dist"/hermesflow-*.tar.gz)

for file in "$wheel" "$archive"; do
    size=$(stat -c %s "$file")
    echo "$(basename "$file"): $((size / 1000)) kB"
    [ "$size" -lt 25000000 ] || { echo "larger than 25 MB" >&2; exit 1; }
done

rm -rf "$check"
mkdir -p "$check"
check=$(realpath "$check")

# The wheel: no cargo on the PATH, no package index.
python3 -m venv "$check/venv"
bare() { env -i HOME="$check" PATH="$check/venv/bin:/usr/bin:/bin" "$@"; }
if bare sh -c 'command -v cargo rustc'; then
    echo "Rust is on the PATH of the bare environment" >&2
    exit 1
fi
bare pip install --quiet --disable-pip-version-check --no-index --no-deps "$(realpath "$wheel")"
bare hermesflow --version
bare hermesflow demo --quick --out "$check/wheel" >"$check/wheel.txt"

# The archive: a root with nothing else in it.
mkdir "$check/root"
tar -C "$check/root" --strip-components 1 -xzf "$archive"
inside() { if [ "$(id -u)" = 0 ]; then chroot "$check/root" "$@"; else unshare -r chroot "$check/root" "$@"; fi; }
inside /hermesflow --version
inside /hermesflow demo --quick --out /demo >"$check/archive.txt"
mv "$check/root/demo" "$check/archive"

# Both end with a table and two pictures.
cat "$check/wheel/figures.md"
for made in wheel archive; do
    for picture in pairs before-after; do
        head -c 8 "$check/$made/$picture.png" | od -An -tx1 | grep -q '89 50 4e 47 0d 0a 1a 0a'
    done
done
if diff "$check/wheel/figures.md" "$check/archive/figures.md" && cmp "$check/wheel/pairs.png" "$check/archive/pairs.png"; then
    echo "wheel and archive: the same figures and pictures"
else
    echo "wheel and archive differ" >&2
    exit 1
fi
echo "look at $check/wheel/pairs.png and before-after.png"
