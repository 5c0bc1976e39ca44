"""Which parts a GPU's time goes to, by the names of its kernels, from `nsys stats --report cuda_gpu_kern_sum --format csv`."""

import csv
import io
import re

# The first that fits; what candle and cuBLAS call their kernels.
PARTS = [
    ("products", r"gemm|cutlass|xmma|nvjet|cublas|splitk|gemv"),
    ("convolutions", r"conv|im2col|col2im"),
    ("softmax and sums", r"softmax|reduce|fast_(sum|max|min|argm)|_sum|sum_"),
    ("gather and scatter", r"index|gather|scatter|^is_|^ia_|^sa_"),
    ("casts and copies", r"cast|copy|fill|const"),
    ("element by element", r"badd|bsub|bmul|bdiv|bmax|bmin|maximum|minimum|u[a-z]+_|affine|where|pow|powf|binary|unary"),
]


def part_of(kernel: str) -> str:
    return next((part for part, names in PARTS if re.search(names, kernel, re.IGNORECASE)), "others")


def shares(report: str) -> dict:
    """The share of each part, and the ten kernels that take longest."""
    lines = report.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith("Time (%)")), None)
    if first is None:
        raise ValueError("nsys told of no kernels")
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[first:]))))
    times = [(row["Name"], float(row["Total Time (ns)"]), int(row["Instances"])) for row in rows if row.get("Name")]
    whole = sum(nanoseconds for _, nanoseconds, _ in times) or 1.0
    found = {}
    for name, nanoseconds, _ in times:
        part = part_of(name)
        found[part] = found.get(part, 0.0) + nanoseconds / whole
    longest = sorted(times, key=lambda one: -one[1])[:10]
    return {"parts": dict(sorted(found.items(), key=lambda one: -one[1])), "seconds": whole / 1e9,
            "longest": [{"kernel": name, "share": of / whole, "count": count} for name, of, count in longest]}


def in_words(found: dict) -> str:
    parts = ", ".join(f"{part} {share:.0%}" for part, share in found["parts"].items() if share >= 0.005)
    return f"{found['seconds']:.2f} s: {parts}"
