"""One session on a GPU, in one command of less than ten minutes: checks, ceilings, benches beside PyTorch, profile.

    cargo build --release --features cuda
    python benches/gpu_session.py [--golden FOLDER] [--json FILE]

In order, each with a time budget of its own:

    verify     `hermesflow verify` on every folder of --golden: numbers recorded from the original models, in f32; those of
               whole models in our type, too
    model      a random model of --size in --work, unless it is there (or --model names one)
    benches    what the GPU can do (a large product, a copy) and each stage at 512², ours beside PyTorch in f32 and in bf16, in
               turns; behind each stage one run of ours that tells which parts its time goes to
    train      a step of Pair-DPO, each side in a process of its own, one after another: together they need too much memory
    profile    kernels by nsys, where it is installed

What fails or takes too long is reported, and the rest goes on. Everything is printed and written to --json as it comes: a
session that is cut off loses nothing. Nothing is fetched. Without PyTorch only ours is timed.

A stage does less than a whole run where that would take too long (see WORK); PyTorch's long stages are one token or one step,
multiplied, as released.py has it and the table says. "of the GPU" is the operations that the stage takes (as `hermesflow
doctor` counts them) over its time, as a share of the product's rate; "of its memory" the bytes of weights that its passes
read, as a share of the copy's rate: decoding is bound by the one, everything else by the other.

It runs without a GPU too, to be tried: --device cpu --size tiny.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import kernels
from program import SETTINGS, model_settings

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = ["caption", "imagine", "answer", "encode", "decode"]
# Seconds of each part at most; they are less than the session together.
BUDGETS = {"verify": 110, "model": 90, "benches": 190, "train": 120, "profile": 60}
FULL = {"captions": 10, "caption_tokens": 100, "images": 16, "steps": 4, "questions": 8, "answer_tokens": 20, "pairs": 4}
LITTLE = {"captions": 2, "caption_tokens": 6, "images": 2, "steps": 2, "questions": 2, "answer_tokens": 4, "pairs": 1}
WORK = {"full": FULL, "medium": FULL, "small": LITTLE, "tiny": LITTLE}


class Failed(Exception):
    """A part that goes no further."""


class Clock:
    """What is left of a part, and of the session."""

    def __init__(self, seconds: float):
        self.end = self.part_end = time.monotonic() + seconds

    def begin(self, seconds: float) -> None:
        self.part_end = min(self.end, time.monotonic() + seconds)

    def left(self) -> float:
        return max(0.0, self.part_end - time.monotonic())


class Side:
    """A process that does one stage for every line, with a limit to its patience."""

    def __init__(self, name: str, command: list, log: pathlib.Path):
        self.name, self.log, self.lines = name, log, queue.Queue()
        with log.open("w") as errors:
            self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=errors, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self, seconds: float) -> dict:
        try:
            line = self.lines.get(timeout=max(seconds, 0.01))
        except queue.Empty:
            self.close()
            raise Failed(f"{self.name}: not done in {seconds:.0f} s") from None
        if line is None:
            self.close()
            said = self.log.read_text().strip().splitlines()
            raise Failed(f"{self.name}: ended; {said[-1] if said else 'it said nothing'}")
        return json.loads(line)

    def ask(self, stage: str, seconds: float) -> dict:
        try:
            self.process.stdin.write(stage + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # It has ended: the answer says so.
        return self.answer(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Session:
    def __init__(self, arguments, scratch: pathlib.Path):
        self.arguments, self.scratch = arguments, scratch
        self.clock = Clock(60 * arguments.minutes)
        self.binary = arguments.binary.resolve()
        self.on_gpu = arguments.device != "cpu"
        self.dtype = arguments.dtype or ("bf16" if self.on_gpu else "f32")
        self.work = WORK[arguments.size] | {"picture": 0}
        self.settings = scratch / "bench.yaml"
        self.settings.write_text(SETTINGS)
        self.model = arguments.model
        self.record = {"began": datetime.datetime.now().isoformat(timespec="seconds"), "device": arguments.device,
                       "size": arguments.size, "dtype": self.dtype, "work": self.work, "failed": [], "seconds": {},
                       "stages": {}}

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.save()

    def save(self) -> None:
        target = self.arguments.json
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_text(json.dumps(self.record, indent=1) + "\n")
        partial.replace(target)

    def part(self, name: str, work) -> None:
        began = time.monotonic()
        self.clock.begin(BUDGETS[name])
        if self.clock.left() == 0:
            self.fail(name, "no time was left")
            return
        try:
            work()
        except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as problem:
            self.fail(name, str(problem))
        self.record["seconds"][name] = round(time.monotonic() - began, 1)
        self.save()

    def fail(self, what: str, why: str) -> None:
        self.record["failed"].append(f"{what}: {why}")
        self.say(f"FAILED {what}: {why}")

    def run(self, command: list, seconds: float | None = None) -> subprocess.CompletedProcess:
        left = self.clock.left() if seconds is None else min(seconds, self.clock.left())
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=max(left, 1))

    def machine(self) -> None:
        self.clock.begin(30)
        self.record["machine"] = {"cores": len(os.sched_getaffinity(0)), "system": platform.platform()}
        if shutil.which("nvidia-smi"):
            asked = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory"
            told = self.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"])
            self.record["machine"]["gpus"] = told.stdout.strip().splitlines()
        self.record["machine"]["hermesflow"] = self.run([self.binary, "--version"]).stdout.strip()
        self.say(f"machine: {self.record['machine']}")
        self.types = [] if self.arguments.torch == "none" else self.arguments.torch.split(",")
        if self.types:
            probe = "import torch, safetensors; print(torch.__version__, torch.cuda.is_available())"
            told = self.run([self.arguments.python, "-c", probe])
            version, _, can = told.stdout.strip().partition(" ")
            missing = told.returncode != 0 or (self.on_gpu and can != "True")
            if missing:
                why = "it sees no GPU" if version else (told.stderr.strip().splitlines() or ["no such Python"])[-1]
                self.say(f"without PyTorch ({why}): only ours is timed")
                self.types = []
            else:
                self.record["machine"]["pytorch"] = version

    def verify(self) -> None:
        golden = self.arguments.golden
        if not golden.is_dir():
            raise Failed(f"{golden} is no folder")
        folders = sorted(path for path in golden.iterdir() if path.is_dir())
        found = {"passed": 0, "failed": 0, "skipped": 0}
        self.record["verify"] = found | {"failures": []}
        models = [folder for folder in folders if (folder / "case.json").is_file()] if self.dtype != "f32" else []
        for folder, dtype in [*((folder, "f32") for folder in folders), *((folder, self.dtype) for folder in models)]:
            if self.clock.left() == 0:
                raise Failed(f"{folder.name} and what is behind it: no time was left")
            try:
                where = ["--device", self.arguments.device, "--dtype", dtype]
                told = self.run([self.binary, "verify", folder, *where, "--json"])
                checks = json.loads(told.stdout or "[]")
            except subprocess.TimeoutExpired:
                self.fail(f"verify {folder.name}", "not done in time")
                continue
            if not checks:
                self.fail(f"verify {folder.name}", (told.stderr.strip().splitlines() or ["it said nothing"])[-1])
            for check in checks:
                found[check["verdict"]] += 1
                if check["verdict"] == "failed":
                    self.record["verify"]["failures"].append(check)
                    self.say(f"  {check['case']}: {check['what']}: {check['largest_error']} (tolerance {check['tolerance']}) "
                             f"{check['note']}")
            self.record["verify"] |= found
            self.say(f"verify {folder.name} in {dtype}: {found['passed']} passed, {found['failed']} failed so far")

    def make_model(self) -> None:
        size = self.arguments.size
        if self.model is None and size == "small":
            self.model = ROOT / "assets/scenes"
        if self.model is None:
            self.model = self.arguments.work / f"session-{size}"
            if not (self.model / "tokenizer.json").exists():
                options = [] if size == "tiny" else ["--resolution", "512"]
                made = self.run([self.binary, "random-model", self.model, "--size", size, *options])
                if made.returncode:
                    raise Failed(made.stderr.strip())
        self.say(f"model: {self.model}")

    def options(self) -> list:
        return [f"--{key.replace('_', '-')}={value}" for key, value in self.work.items()]

    def ours(self, *command) -> list:
        model = model_settings(self.model, self.arguments.device, self.dtype)
        return [self.binary, "bench", self.settings, *model, *command, *self.options()]

    def sides(self, stage: str) -> dict:
        """The commands of ours and of PyTorch's, by what the table calls them."""
        released = [self.arguments.python, HERE / "released.py", self.model, stage, f"--device={self.arguments.device}"]
        theirs = {dtype: [*released, f"--torch={dtype}", *self.options()] for dtype in self.types}
        return {"ours": self.ours(f"--serve={stage}"), **theirs}

    def start(self, stage: str, commands: dict) -> dict:
        """The processes, loaded at the same time; one that does not start is reported and left out."""
        sides = {name: Side(name, command, self.scratch / f"{stage}-{name}.log".replace(" ", "-")) for name, command in commands.items()}
        for name, side in list(sides.items()):
            try:
                ready = side.answer(self.clock.left())
                self.say(f"{name}: {ready.get('device') or ready['ready']}")
            except Failed as problem:
                self.fail(f"start of {stage}", str(problem))
                del sides[name]
        return sides

    def turns(self, stage: str, sides: dict) -> dict:
        """A warm-up of each and then turns, until the time for this stage is over."""
        until = time.monotonic() + self.arguments.patience
        runs = {name: [] for name in sides}
        for turn in range(1 + self.arguments.repeat):
            if turn > 1 and time.monotonic() > until:
                break
            for name in list(sides):
                try:
                    run = sides[name].ask(stage, min(2 * self.arguments.patience, self.clock.left()))
                except Failed as problem:
                    self.fail(stage, str(problem))
                    del sides[name]
                    continue
                if turn > 0:
                    runs[name].append(run)
        return {name: of_side for name, of_side in runs.items() if of_side}

    def ceilings(self, sides: dict) -> None:
        found = {}
        for name, side in list(sides.items()):
            try:
                product, copy = side.ask("multiply", self.clock.left()), side.ask("copy", self.clock.left())
            except Failed as problem:
                self.fail("ceilings", str(problem))
                del sides[name]
                continue
            size = 2 * 8192**3 if self.on_gpu else 2 * 1024 * 2048 * 4096
            moved = 8 * (1 << 29 if self.on_gpu else 1 << 26)
            found[name] = {"product": size / product["seconds"], "copy": moved / copy["seconds"]}
            self.say(f"ceilings, {name}: product {found[name]['product'] / 1e12:.1f} TFLOP/s, copy "
                     f"{found[name]['copy'] / 1e9:.0f} GB/s")
        self.record["ceilings"] = found

    def benches(self) -> None:
        commands = self.sides("multiply")
        sides = self.start("benches", commands)
        try:
            self.ceilings(sides)
            for stage in STAGES:
                if self.clock.left() == 0:
                    raise Failed(f"{stage} and what is behind it: no time was left")
                # What ended in a stage before begins again, once.
                ended = {name: commands.pop(name) for name in list(commands) if name not in sides}
                sides |= self.start(f"{stage} again", ended) if ended else {}
                if not sides:
                    raise Failed(f"{stage} and what is behind it: nobody is left")
                self.stage(stage, sides)
        finally:
            for side in sides.values():
                side.close()

    def stage(self, stage: str, sides: dict) -> None:
        found = self.record["stages"].setdefault(stage, {})
        found |= self.turns(stage, sides)
        if "ours" in sides:
            try:
                found["parts"] = sides["ours"].ask(f"profile {stage}", self.clock.left())
            except Failed as problem:
                self.fail(f"parts of {stage}", str(problem))
                del sides["ours"]
        self.say(self.row(stage))

    def train(self) -> None:
        for name, command in self.sides("train").items():
            side = self.start("train", {name: command})
            try:
                found = self.record["stages"].setdefault("train", {})
                found |= self.turns("train", side)
                if name == "ours" and side:
                    found["parts"] = side[name].ask("profile train", self.clock.left())
            except Failed as problem:
                self.fail("train", str(problem))
            finally:
                for one in side.values():
                    one.close()
            self.save()
        self.say(self.row("train"))

    def profile(self) -> None:
        if not self.on_gpu or not shutil.which("nsys"):
            self.say("profile: no nsys; the parts of each stage stand in the table")
            return
        for stage in ["imagine", "caption", "train"]:
            if self.clock.left() < 10:
                raise Failed(f"{stage}: no time was left")
            report = self.scratch / f"{stage}.nsys-rep"
            command = self.ours(f"--stages={stage}", "--repeat=1", "--json")
            self.run(["nsys", "profile", "--trace=cuda", "--force-overwrite=true", f"--output={report}", *command])
            told = self.run(["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", report])
            found = kernels.shares(told.stdout)
            self.record["stages"].setdefault(stage, {})["kernels"] = found
            self.say(f"kernels of {stage} (its load and warm-up too): {kernels.in_words(found)}")

    def best(self, which: str) -> float:
        """The best that was measured of a product or a copy; of products, those in our type."""
        known = self.record.get("ceilings", {})
        fits = [one[which] for name, one in known.items() if which == "copy" or name in ("ours", self.dtype)]
        return max(fits, default=0.0)

    def row(self, stage: str) -> str:
        found = self.record["stages"].get(stage, {})
        median = lambda name: statistics.median(run["seconds"] for run in found[name]) if found.get(name) else None
        mine, cells = median("ours"), []
        show = lambda value, form: "–" if value is None else form.format(value)
        cells.append(show(mine, "{:.3g} s"))
        for dtype in self.types:
            other = median(dtype)
            cells += [show(other, "{:.4g} s"), show(other / mine if other and mine else None, "{:.1f}×")]
        theirs = next((found[dtype][-1]["how"] for dtype in self.types if found.get(dtype)), "")
        cells.append(theirs or ("measured" if self.types else ""))
        run = found["ours"][-1] if found.get("ours") else {}
        for amount, ceiling in (("operations", "product"), ("weight_bytes", "copy")):
            rate = run[amount] / mine if run.get(amount) else None
            share = rate / self.best(ceiling) if rate and self.best(ceiling) else None
            cells.append(show(share, "{:.0%}"))
        for name in ["ours", *self.types]:
            peaks = [one.get("gpu_peak") or one.get("peak") or 0 for one in found.get(name, [])]
            cells.append(show(max(peaks) / 1e9 if peaks else None, "{:.2f} GB"))
        shares = found.get("parts", {}).get("shares", {})
        cells.append(", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share >= 0.005))
        return "| " + " | ".join([stage, *cells]) + " |"

    def table(self) -> str:
        theirs = [cell for dtype in self.types for cell in (f"PyTorch {dtype}", "ratio")]
        peaks = ["our memory", *(f"PyTorch {dtype}'s" for dtype in self.types)]
        cells = ["stage", "ours", *theirs, "PyTorch's time is", "of the GPU", "of its memory", *peaks, "our time goes to"]
        head = "| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|"
        return "\n".join([head, *(self.row(stage) for stage in [*STAGES, "train"])])

    def finish(self) -> int:
        self.record["table"] = self.table()
        work = ", ".join(f"{key} {value}" for key, value in self.work.items() if value)
        self.say(f"\n{self.arguments.size}, {self.arguments.device}, ours in {self.dtype}; {work}\n\n{self.table()}")
        for problem in self.record["failed"]:
            print(f"FAILED {problem}")
        wrong = self.record.get("verify", {}).get("failed", 0)
        self.say(f"\nwritten to {self.arguments.json}")
        return 1 if self.record["failed"] or wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/hermesflow",
                        help="the program, built with --features cuda; here or elsewhere")
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu")
    parser.add_argument("--size", default="full", choices=WORK)
    parser.add_argument("--dtype", choices=["f32", "bf16"], help="our matrices; bf16 on a GPU, else f32")
    parser.add_argument("--torch", default="f32,bf16", help="PyTorch's types; none leaves it out")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--golden", type=pathlib.Path, default=ROOT / "crates/hermesflow-verify/tests/golden",
                        help="folder of recorded cases; the tests' own if none is given")
    parser.add_argument("--model", type=pathlib.Path, help="folder with showo/, vq/ and tokenizer.json")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/bench", help="where a random model is made")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each stage, while there is time")
    parser.add_argument("--patience", type=float, default=25.0, help="seconds after which a stage takes no further turn")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "target/bench/gpu_session.json")
    arguments = parser.parse_args()
    arguments.device = "cuda:0" if arguments.device == "cuda" else arguments.device
    if not arguments.binary.is_file():
        parser.error(f"{arguments.binary} is not there: cargo build --release --features cuda, or --binary PATH")
    with tempfile.TemporaryDirectory() as scratch:
        session = Session(arguments, pathlib.Path(scratch))
        session.machine()
        session.part("verify", session.verify)
        session.part("model", session.make_model)
        if session.model and (session.model / "tokenizer.json").exists():
            session.part("benches", session.benches)
            session.part("train", session.train)
            session.part("profile", session.profile)
        ended = session.finish()
    sys.exit(ended)


if __name__ == "__main__":
    main()
