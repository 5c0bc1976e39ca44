"""Time per record and peak memory of every command of the loop, over the number of records.

    cargo build --release
    python benches/scale.py [--records 100,1000,10000,100000] [--pixels 64] [--work FOLDER] [--json FILE]

A random model of the smallest size goes through caption, imagine, ask, answer, pair and train (20 steps) on made-up
pictures, and every command once more when all is done: what a run that goes on costs before it works. `run` finds all of it
done, and the report is made of that. The work folder is kept if it is given, and a run that was cut off goes on in it.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ["caption", "imagine", "ask", "answer", "pair", "train", "run", "report"]
SETTINGS = """
data: {{ root: {root}, chunk: 64 }}
output: {root}/run
iterations: 1
model: {{ showo: {model}/showo, vq: {model}/vq, tokenizer: {model}/tokenizer.json, dtype: f32 }}
caption:
  max_new_tokens: 8
  candidates: [{{ top_k: 1, temperature: 1.0 }}, {{ top_k: 3, temperature: 0.7 }}, {{ top_k: 4, temperature: 2.0 }}]
imagine: {{ images: 2, steps: 1 }}
ask: {{ writer: template }}
answer: {{ matcher: lexical, max_new_tokens: 4 }}
pair: {{ similarity: lexical, min_accuracy: 0.0 }}
train: {{ steps: 20, warmup_steps: 0, checkpoint_every: 20 }}
"""
COLOURS, THINGS = ["red", "blue", "green", "black", "white"], ["dog", "cat", "car", "boat", "bird", "chair", "horse"]


def picture(number: int, pixels: int) -> bytes:
    """A square PNG in two colours of its own, with the noise of a photograph in the lowest three bits."""
    shade = random.Random(number)
    colours = [shade.randrange(256 // 8) * 8 for _ in range(2)]
    edge = shade.randrange(pixels)
    noise = shade.randbytes(3 * pixels * pixels)
    rough = [bytes(colour | level & 7 for level in range(256)) for colour in colours]
    lines = (noise[row * 3 * pixels :][: 3 * pixels].translate(rough[row > edge]) for row in range(pixels))
    rows = b"".join(b"\0" + line for line in lines)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", pixels, pixels, 8, 2, 0, 0, 0)
    body = zlib.compress(rows, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def prepare(root: pathlib.Path, records: int, pixels: int) -> None:
    if (root / "initial_data.json").exists():
        return
    listed = []
    for number in range(records):
        path = root / "images" / f"{number // 1000}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, pixels))
        said = random.Random(number)
        caption = f"a {said.choice(COLOURS)} {said.choice(THINGS)} beside a {said.choice(COLOURS)} {said.choice(THINGS)}"
        listed.append({"id": str(number), "img_path": str(path.relative_to(root)), "prompt": caption, "caption": caption})
    (root / "initial_data.json").write_text(json.dumps(listed))


def timed(command: list) -> tuple[float, int]:
    """Seconds and peak bytes of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{said.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    parser.add_argument("--records", default="100,1000,10000,100000")
    parser.add_argument("--pixels", type=int, default=64, help="the side of the records' own pictures")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or pathlib.Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "model/tokenizer.json").exists():
            subprocess.run([arguments.program, "random-model", work / "model", "--size", "tiny"], check=True)
        print("| records | command | ms a record | peak | again, all done | peak |")
        print("|---|---|---|---|---|---|")
        for records in map(int, arguments.records.split(",")):
            root = work / str(records)
            root.mkdir(exist_ok=True)
            # In a process of its own: what this one holds would count as its children's peak.
            made = multiprocessing.Process(target=prepare, args=(root, records, arguments.pixels))
            made.start()
            made.join()
            if made.exitcode:
                sys.exit(f"{root}: could not be made")
            settings = work / f"{records}.yaml"
            settings.write_text(SETTINGS.format(root=root, model=work / "model"))
            for stage in STAGES:
                command = [arguments.program, stage, settings]
                if stage == "report":
                    command = [arguments.program, stage, root / "run", "--out", root / "report.html"]
                seconds, peak = timed(command)
                again, again_peak = timed(command)
                print(f"| {records:,} | {stage} | {seconds / records * 1e3:.2f} | {peak / 1e6:.0f} MB | {again:.2f} s | "
                      f"{again_peak / 1e6:.0f} MB |", flush=True)
                results.append({"records": records, "stage": stage, "seconds": seconds, "peak": peak, "again": again,
                                "again_peak": again_peak})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
