"""The whole demo here, and what plain PyTorch would take for the same work.

    cargo build --release
    python benches/demo.py [--out FOLDER] [--json FILE]

Runs `hermesflow demo` in FOLDER (or takes a finished one with --seconds), counts what it made (caption tokens, images,
answers, training steps; not its evaluations), and multiplies by what one token, denoising step, picture and training step
takes in PyTorch as the original runs it (released.py). Answers are counted with two tokens each, a word and the end; the
PyTorch side is therefore a lower bound. Needs tokenizers; leave the machine alone meanwhile.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from tokenizers import Tokenizer

from released import Released
from released_stages import WORK

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "assets/scenes"
STEPS, MASKS, BATCH, TRAINING = 16, 3, 8, 240  # configs/scenes.yaml


def made(folder: pathlib.Path) -> dict:
    """How much the loop made, over all iterations."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    read = lambda path: json.loads(path.read_text())
    data, count = folder / "data", {"captions": 0, "caption tokens": 0, "images": 0, "answers": 0, "training steps": 0}
    for path in sorted(data.glob("understanding_caption_results*.json")):
        replies = [reply for record in read(path) for reply in record["caption_mmu"]]
        count["captions"] += len(replies)
        count["caption tokens"] += sum(len(tokenizer.encode(reply).ids) + 1 for reply in replies)
    for path in sorted(data.glob("generation_vqa_results*.json")):
        for record in read(path):
            count["images"] += len(record["result"])
            count["answers"] += len(record["result"]) * record["question_number"]
        count["training steps"] += TRAINING
    return count


def seconds_of_one(repeat: int = 5) -> dict:
    """Medians of one of each in PyTorch, as the original does it."""
    work = argparse.Namespace(**(WORK | {"pairs": BATCH, "images": BATCH, "steps": 1}))
    torch.manual_seed(0)
    model = Released(MODEL, work)
    once = {
        "caption token": lambda: model.next_token(10),
        "answer token": lambda: model.next_token(20),
        # Without guidance only the conditional half of what `imagine` times is needed.
        "denoising step of a picture": lambda: model.imagine()[0] / BATCH / 2,
        "picture encoded": lambda: model.encode()[0],
        "picture decoded": lambda: model.decode()[0],
        "training step": lambda: model.train()[0],
    }
    for work in once.values():
        work()
    return {name: statistics.median(work() for _ in range(repeat)) for name, work in once.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, help="of the demo that lies in --out")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out, seconds = arguments.out or pathlib.Path(scratch) / "demo", arguments.seconds
        if seconds is None:
            started = time.perf_counter()
            subprocess.run([arguments.program, "demo", "--out", out], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
        count, one = made(out), seconds_of_one()
    parts = {
        "caption": count["caption tokens"] * one["caption token"],
        "imagine": count["images"] * (STEPS * one["denoising step of a picture"] + one["picture decoded"]),
        "answer": 2 * count["answers"] * one["answer token"] + count["images"] * one["picture encoded"],
        "train": count["training steps"] * one["training step"] * (1 + MASKS) / 2,
    }
    total = sum(parts.values())
    print(", ".join(f"{name} {number:,}" for name, number in count.items()))
    print(", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in one.items()))
    print(", ".join(f"{name} {value / 60:.0f} min" for name, value in parts.items()))
    print(f"the demo, evaluations and all: {seconds / 60:.1f} min; PyTorch, without evaluations: {total / 60:.0f} min, "
          f"{total / seconds:.0f}×")
    if arguments.json:
        record = {"made": count, "seconds of one": one, "pytorch": parts, "ours": seconds, "ratio": total / seconds}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
