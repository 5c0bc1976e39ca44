"""Times each stage here and in PyTorch as the original runs it, in turns, on an otherwise idle machine.

    cargo build --release
    python benches/stages.py medium [--dtype bf16] [--stages caption,train] [--repeat 3] [--json FILE]
    python benches/stages.py full --device cuda --dtype bf16 --torch f32,bf16
    python benches/stages.py medium --backbone janus-pro

The first argument is a size, or a folder with showo/, vq/ and tokenizer.json, or a Janus-Pro's:

    small   the embedded model
    medium  hidden 512, 8 blocks, the published vocabulary and image tokenizer, 256² (Janus-Pro: 384²)
    full    the published size at that resolution, a few tokens, steps and one pair; its training has 2 of the 24 blocks

Sizes are made with random weights in target/bench. Every stage has a process of its own on either side, a warm-up, and
medians of turns. PyTorch is in f32, or in bf16 too (--torch; see released.py); what it repeats many times is timed once and
multiplied, as the table says; ours always does all of the work. On a GPU (--device cuda, and a program built for it) every
clock stops when the GPU is done, and memory is that of tensors on it; gpu_session.py does all of that in one go. `products`
is the share of our threads' time in matrix products and their rate, `multiply` a large product alone, against oneDNN's in
the same type. With --minilm FOLDER (all-MiniLM-L6-v2, for its vocabulary) the judges of captions and replies are timed too
(judges.py).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from program import SETTINGS, model_settings
from released_stages import WORK, add_work

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = "multiply,encode,decode,encode@512,decode@512,caption,answer,imagine,train"
# Of a Janus-Pro, whose image tokenizer has no other size and is not timed here.
JANUS_STAGES = "multiply,caption,answer,imagine,train"
FEW = {"caption_tokens": 10, "images": 2, "steps": 2, "answer_tokens": 20, "pairs": 1}


def folder_of(arguments, layers: int | None = None) -> pathlib.Path:
    """The folder of a size's model, which is made if it is not there."""
    size, backbone = arguments.size, arguments.backbone
    if size == "small":
        return ROOT / "assets/scenes"
    if size not in ("medium", "full"):
        return pathlib.Path(size)
    name = size if backbone == "show-o" else f"{backbone}-{size}"
    folder = ROOT / "target/bench" / (f"{name}-{layers}" if layers else name)
    if not (folder / "tokenizer.json").exists():
        options = [f"--layers={layers}"] if layers else []
        options += ["--resolution=256"] if backbone == "show-o" else []
        command = [arguments.program, "random-model", folder, "--backbone", backbone, "--size", size, *options]
        subprocess.run(command, check=True)
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


def ours(stage: str, folder: pathlib.Path, settings: pathlib.Path, options: list, arguments) -> Side:
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    model = model_settings(folder, device, arguments.dtype)
    return Side([arguments.program, "bench", settings, *model, f"--serve={stage}", *options])


def sides(stage: str, folder: pathlib.Path, settings: pathlib.Path, work: dict, arguments) -> list[Side]:
    """Ours, and PyTorch's in each type."""
    name, _, picture = stage.partition("@")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in (work | {"picture": int(picture or 0)}).items()]
    own = ours(name, folder, settings, options, arguments)
    if name == "multiply" and arguments.dtype == "bf16":
        name = "multiply_bf16"
    released = [sys.executable, HERE / "released.py", folder, name, f"--device={arguments.device}", *options]
    return [own, *(Side([*released, f"--torch={dtype}"]) for dtype in arguments.torch.split(","))]


def peak(run: dict) -> int:
    """Of the GPU where there is one."""
    return run.get("gpu_peak") or run["peak"] or 0


def compare(sides: list[Side], repeat: int, dtypes: list[str]) -> dict:
    for side in sides:
        side()
    turns = [[side() for side in sides] for _ in range(repeat)]
    own = [turn[0] for turn in turns]
    found = {
        "ours": [run["seconds"] for run in own],
        "share": own[-1]["share"],
        "gflops": own[-1]["gflops"],
        "peak": max(map(peak, own)),
    }
    for at, dtype in enumerate(dtypes, 1):
        # The first one has the names that there were before there were two.
        ending = "" if at == 1 else f"_{dtype}"
        other = [turn[at] for turn in turns]
        seconds = [run["seconds"] for run in other]
        found |= {
            f"pytorch{ending}": seconds,
            f"ratio{ending}": statistics.median(seconds) / statistics.median(found["ours"]),
            f"extrapolated{ending}": other[-1]["how"],
            f"pytorch{ending}_peak": max(map(peak, other)),
        }
    return found


def head(dtypes: list[str]) -> str:
    theirs = "".join(f" PyTorch {dtype} | ratio |" for dtype in dtypes)
    peaks = "".join(f" PyTorch {dtype} peak |" for dtype in dtypes)
    line = f"| stage | ours |{theirs} PyTorch's time is | products | our peak |{peaks}"
    return line + "\n" + "|---" * (line.count("|") - 1) + "|"


def row(stage: str, found: dict, dtypes: list[str]) -> str:
    endings = ["", *(f"_{dtype}" for dtype in dtypes[1:])]
    theirs = "".join(f" {statistics.median(found[f'pytorch{e}']):.4g} s | {found[f'ratio{e}']:.1f}× |" for e in endings)
    peaks = "".join(f" {found[f'pytorch{e}_peak'] / 1e9:.2f} GB |" for e in endings)
    share = "" if found["share"] is None else f"{found['share']:.0%}, "
    return (f"| {stage} | {statistics.median(found['ours']):.3g} s |{theirs} {found['extrapolated'] or 'measured'} | "
            f"{share}{found['gflops']:.0f} GFLOP/s | {found['peak'] / 1e9:.2f} GB |{peaks}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="small, medium, full, or a folder")
    parser.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    parser.add_argument("--dtype", default="f32", help="our matrices: f32 or bf16")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--torch", default="f32", help="PyTorch's types: f32, bf16, or f32,bf16")
    parser.add_argument("--backbone", default="show-o", choices=["show-o", "janus-pro"], help="of medium and full")
    parser.add_argument("--stages", help=f"default: {STAGES}; of a Janus-Pro {JANUS_STAGES}")
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
        settings.write_text(SETTINGS)
        usual = JANUS_STAGES if (folder_of(arguments) / "config.json").exists() else STAGES
        for number, stage in enumerate((arguments.stages or usual).split(",")):
            few_blocks = 2 if (arguments.size, stage) == ("full", "train") else None
            folder = folder_of(arguments, few_blocks)
            dtypes = arguments.torch.split(",")
            rivals = sides(stage, folder, settings, work, arguments)
            if number == 0:
                print(f"{rivals[1].ready}; ours in {arguments.dtype}; medians of {arguments.repeat} in turns\n")
                print(head(dtypes))
            results[stage] = compare(rivals, arguments.repeat, dtypes)
            print(row(stage, results[stage], dtypes), flush=True)
            for side in rivals:
                side.close()
    if arguments.minilm:
        print()
        subprocess.run([sys.executable, HERE / "judges.py", arguments.minilm], check=True)
    if arguments.json:
        record = {"size": arguments.size, "device": arguments.device, "dtype": arguments.dtype, "work": work,
                  "stages": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
