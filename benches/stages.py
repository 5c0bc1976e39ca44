"""Times each stage here and in PyTorch as the original runs it, in turns, on an otherwise idle machine.

    cargo build --release
    python benches/stages.py medium [--dtype bf16] [--stages caption,train] [--repeat 3] [--json FILE]

The first argument is a size, or a folder with showo/, vq/ and tokenizer.json:

    small   the embedded model
    medium  hidden 512, 8 blocks, the published vocabulary and image tokenizer, 256²
    full    the published size at 256², a few tokens, steps and one pair; its training has 2 of the 24 blocks

Sizes are made with random weights in target/bench. Every stage has a process of its own on either side, a warm-up, and
medians of turns. PyTorch is in f32 (see released.py); what it repeats many times is timed once and multiplied, as the table
says; ours always does all of the work. `products` is the share of our threads' time in matrix products and their rate,
`multiply` a large product alone, against oneDNN's in the same type. With --minilm FOLDER (all-MiniLM-L6-v2, for its
vocabulary) the judges of captions and replies are timed too (judges.py).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from released import WORK, add_work

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = "multiply,encode,decode,encode@512,decode@512,caption,answer,imagine,train"
FEW = {"caption_tokens": 10, "images": 2, "steps": 2, "answer_tokens": 20, "pairs": 1}


def folder_of(size: str, program: str, layers: int | None = None) -> pathlib.Path:
    """The folder of a size's model, which is made if it is not there."""
    if size == "small":
        return ROOT / "assets/scenes"
    if size not in ("medium", "full"):
        return pathlib.Path(size)
    folder = ROOT / "target/bench" / (f"{size}-{layers}" if layers else size)
    if not (folder / "tokenizer.json").exists():
        options = [f"--layers={layers}"] if layers else []
        subprocess.run([program, "random-model", folder, "--size", size, "--resolution", "256", *options], check=True)
    return folder


class Side:
    """A process that does one stage once for every line."""

    def __init__(self, command: list):
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.answer()["ready"]

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args[:3])}: ended with {self.process.wait()}")
        return json.loads(line)

    def __call__(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def sides(stage: str, folder: pathlib.Path, settings: pathlib.Path, work: dict, arguments) -> tuple[Side, Side]:
    name, _, picture = stage.partition("@")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in (work | {"picture": int(picture or 0)}).items()]
    model = [f"model.{key}={folder / path}" for key, path in
             (("showo", "showo"), ("vq", "vq"), ("tokenizer", "tokenizer.json"))]
    ours = [arguments.program, "bench", settings, *model, f"model.dtype={arguments.dtype}", f"--serve={name}", *options]
    if name == "multiply" and arguments.dtype == "bf16":
        name = "multiply_bf16"
    return Side(ours), Side([sys.executable, HERE / "released.py", folder, name, *options])


def compare(ours: Side, theirs: Side, repeat: int) -> dict:
    ours(), theirs()
    turns = [(ours(), theirs()) for _ in range(repeat)]
    mine, other = ([turn[side]["seconds"] for turn in turns] for side in (0, 1))
    last = turns[-1]
    return {
        "ours": mine,
        "pytorch": other,
        "ratio": statistics.median(other) / statistics.median(mine),
        "extrapolated": last[1]["how"],
        "share": last[0]["share"],
        "gflops": last[0]["gflops"],
        "peak": max(turn[0]["peak"] or 0 for turn in turns),
        "pytorch_peak": max(turn[1]["peak"] for turn in turns),
    }


def row(stage: str, found: dict) -> str:
    mine, other = statistics.median(found["ours"]), statistics.median(found["pytorch"])
    return (f"| {stage} | {mine:.3g} s | {other:.4g} s | {found['ratio']:.1f}× | {found['extrapolated'] or 'measured'} | "
            f"{found['share']:.0%}, {found['gflops']:.0f} GFLOP/s | {found['peak'] / 1e9:.2f} GB | "
            f"{found['pytorch_peak'] / 1e9:.2f} GB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="small, medium, full, or a folder")
    parser.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    parser.add_argument("--dtype", default="f32", help="our matrices: f32 or bf16")
    parser.add_argument("--stages", default=STAGES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--minilm", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    add_work(parser)
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in WORK if getattr(arguments, name) is not None}
    work = WORK | (FEW if arguments.size == "full" else {}) | chosen
    del work["picture"]
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        settings = pathlib.Path(scratch) / "bench.yaml"
        settings.write_text("pair: { similarity: lexical }\nask: { writer: template }\nanswer: { matcher: lexical }\n")
        for number, stage in enumerate(arguments.stages.split(",")):
            few_blocks = 2 if (arguments.size, stage) == ("full", "train") else None
            folder = folder_of(arguments.size, arguments.program, few_blocks)
            pair = sides(stage, folder, settings, work, arguments)
            if number == 0:
                print(f"{pair[1].ready}; ours in {arguments.dtype}; medians of {arguments.repeat} in turns\n")
                print("| stage | ours | PyTorch | ratio | PyTorch's time is | products | our peak | PyTorch's |")
                print("|---|---|---|---|---|---|---|---|")
            results[stage] = compare(*pair, arguments.repeat)
            print(row(stage, results[stage]), flush=True)
            for side in pair:
                side.close()
    if arguments.minilm:
        print()
        subprocess.run([sys.executable, HERE / "judges.py", arguments.minilm], check=True)
    if arguments.json:
        record = {"size": arguments.size, "dtype": arguments.dtype, "work": work, "stages": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
