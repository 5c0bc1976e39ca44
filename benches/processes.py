"""Times a run in 1, 2 and 4 processes on this machine, beside what `hermesflow doctor --processes` predicts.

    cargo build --release --features mpi
    python3 benches/processes.py [--size embedded|medium] [--processes 1,2,4] [--rounds 2] [--weak | --exchange] [--program PATH]

One iteration is run anew for each number of processes, in turn, with one thread per process, and once by one process with as
many threads as the machine has cores, which is what `doctor` predicts for one process. The time of a stage is what the program
says of it (`caption: 24/24 images in 0.9 s`), without its start. Printed are medians over the rounds; `doctor` is asked before
the first. With more processes than cores, cores are shared. `embedded` is the demo's model, `medium` a random Show-o with 85
million parameters, whose few images take most of the time. `--exchange` measures the sums between processes against copying.

`--weak` gives each process as much work as one alone has: records and micro batches are multiplied by the number of processes,
and a table says how many times as much is done in a second as by one process. Steps are timed without the checkpoint and the model
at a training's end, by what more steps take.

Nothing else should run. Needs Open MPI on the path and the standard library only.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ["caption", "imagine", "answer", "train"]
STEPS = {"embedded": 6, "medium": 3}
RECORDS = {"embedded": 24, "medium": 4}
# Of one process under `--weak`: more, so that the embedded model's stages take longer than the tenths of a second that are printed.
WEAK_RECORDS = {"embedded": 96, "medium": 4}
MICRO = {"embedded": 1, "medium": 4}

EMBEDDED = """
seed: 3
iterations: 1
output: out
data: { root: data, scenes: { records: RECORDS }, fresh: true, chunk: 2 }
model: { checkpoint: embedded }
caption: { max_new_tokens: 24 }
imagine: { images: 3, steps: 20, guidance: 0.0, temperature: 4.0 }
ask: { writer: scenes }
answer: { matcher: lexical, max_new_tokens: 6, score: confidence }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { codes: encoded, batch_size: 8, accumulation: MICRO, checkpoint_every: 1000, schedule: { steps: STEPS, warmup_steps: 1, learning_rate: 1.0e-3 } }
"""

MEDIUM = """
seed: 3
iterations: 1
output: out
data: { root: data, scenes: { records: RECORDS }, fresh: true, chunk: 1 }
model: { checkpoint: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }
caption: { max_new_tokens: 8, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 20, temperature: 2.0 }] }
imagine: { images: 2, steps: 2, guidance: 0.0 }
ask: { writer: scenes }
answer: { score: probability } # replies of random weights are all wrong
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { sides: und, batch_size: 1, accumulation: MICRO, checkpoint_every: 1000, schedule: { steps: STEPS, warmup_steps: 1, learning_rate: 1.0e-4 } }
"""


def mpirun(processes: int) -> list:
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(processes)]


def seconds(text: str) -> float:
    """Seconds of `614.2 ms`, `9.3 s` or `1 min 05 s`."""
    minutes, rest, unit = re.fullmatch(r"(?:(\d+) min )?([\d.]+) (m?)s", text).groups()
    return 60 * int(minutes or 0) + float(rest) / (1000 if unit else 1)


class Timing:
    def __init__(self, program: str, size: str, top: pathlib.Path):
        self.program, self.size, self.top = program, size, top
        self.write(RECORDS[size])
        if size == "medium":
            self.started([], 1, ["random-model", "model", "--size", "medium"])

    def write(self, records: int, shares: int = 1) -> None:
        """Writes the run's settings, with so many times the micro batches of a step."""
        settings = EMBEDDED if self.size == "embedded" else MEDIUM
        amounts = {"STEPS": STEPS[self.size], "RECORDS": records, "MICRO": shares * MICRO[self.size]}
        for name, amount in amounts.items():
            settings = settings.replace(name, str(amount))
        (self.top / "run.yaml").write_text(settings)

    def started(self, launcher: list, threads: int, arguments: list) -> str:
        """Runs the program and returns its log; its results go nowhere."""
        done = subprocess.run([*launcher, self.program, *arguments], cwd=self.top, text=True, stdin=subprocess.DEVNULL,
                              env={**os.environ, "RAYON_NUM_THREADS": str(threads)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise SystemExit(f"{arguments} ends with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def stages(self, processes: int, threads: int, arguments: list) -> dict:
        """The seconds of each stage that a command says it took."""
        said = self.started(mpirun(processes) if processes > 1 else [], threads, arguments)
        found = re.findall(r"^(\w+): (\d+)/\2 \w+ in ((?:\d+ min )?[\d.]+ m?s)", said, re.M)
        return {stage: seconds(text) for stage, _, text in found if stage in STAGES}

    def run(self, processes: int, threads: int) -> dict:
        """The seconds of each stage of one iteration, and of one step of its training."""
        for folder in ("data", "out", "more"):
            shutil.rmtree(self.top / folder, ignore_errors=True)
        times = self.stages(processes, threads, ["run", "run.yaml"])
        return {**times, "train": times["train"] / STEPS[self.size]}

    def run_weak(self, processes: int) -> dict:
        """The same of a run with the work of so many processes, one thread each; a step without what a training ends with."""
        self.write(processes * WEAK_RECORDS[self.size], processes)
        times, steps = self.run(processes, 1), STEPS[self.size]
        more = self.stages(processes, 1, ["train", "run.yaml", "output=more", f"train.schedule.steps={3 * steps}"])
        return {**times, "train": (more["train"] - times["train"] * steps) / (2 * steps)}

    def predicted(self, processes: int, threads: int) -> dict:
        """The seconds that `doctor` predicts, by the number of processes, and the line that says from what."""
        said = self.started([], threads, ["doctor", "run.yaml", "--processes", str(processes), "--per-node", str(processes)])
        table = said[said.index("In several processes"):].splitlines()
        print(next(line for line in table if line.startswith("What went in")), flush=True)
        rows = [re.split(r" {2,}", line.strip()) for line in table if re.match(r" +\d+ ", line)]
        return {int(row[0]): dict(zip(STAGES, map(seconds, row[1:5]))) for row in rows}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", choices=list(STEPS), default="embedded")
    arguments.add_argument("--processes", default="1,2,4")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--weak", action="store_true", help="as much work for each process as one alone has")
    arguments.add_argument("--exchange", action="store_true", help="only the sums between 2 processes, against copying")
    arguments.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    given = arguments.parse_args()
    if given.exchange:
        example = pathlib.Path(given.program).parent / "examples/exchange"
        if not example.exists():
            raise SystemExit(f"{example} is missing: cargo build --release --workspace --features hermesflow/mpi --example exchange")
        subprocess.run([*mpirun(2), str(example)], check=True)
        return
    cores, counts = os.cpu_count() or 1, [int(count) for count in given.processes.split(",")]
    with tempfile.TemporaryDirectory(prefix="processes-") as top:
        timing = Timing(given.program, given.size, pathlib.Path(top))
        if given.weak:
            print_weak(timing, counts, given.rounds)
        else:
            print_times(timing, counts, given.rounds, cores)


def print_times(timing: Timing, counts: list, rounds: int, cores: int) -> None:
    predicted = timing.predicted(max(counts), cores)
    ways = [(1, cores), *((count, 1) for count in counts)]
    times = in_turn(ways, rounds, lambda way: timing.run(*way))
    print(f"\nmedians of {rounds} rounds in seconds, of training a step; {cores} cores\n")
    print_head("| processes | threads of each |")
    for (count, threads), measured in times.items():
        # One process has all cores in the prediction.
        paper = predicted.get(count) if (count, threads) == (1, cores) or count > 1 else None
        cells = [f"{measured[stage]:.2f}" + (f" (predicted {paper[stage]:.2f})" if paper else "") for stage in STAGES]
        print(f"| {count} | {threads} | " + " | ".join(cells) + " |")


def print_weak(timing: Timing, counts: list, rounds: int) -> None:
    times = in_turn(sorted({1, *counts}), rounds, timing.run_weak)
    print(f"\nmedians of {rounds} rounds in seconds, of training a step; so many times the work of one process is done in a second\n")
    print_head("| processes of one thread, each with the work of one |")
    for count, measured in times.items():
        cells = [f"{measured[stage]:.2f} ({count * times[1][stage] / measured[stage]:.2f} times)" for stage in STAGES]
        print(f"| {count} | " + " | ".join(cells) + " |")


def in_turn(ways: list, rounds: int, run: Callable) -> dict:
    """The median seconds of each stage, of each way to run, over rounds in which all ways take turns."""
    times = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            times[way].append(run(way))
    return {way: {stage: statistics.median(one[stage] for one in all) for stage in STAGES} for way, all in times.items()}


def print_head(first: str) -> None:
    print(first + " " + " | ".join(f"`{stage}`" for stage in STAGES) + " |")
    print("|---" * (first.count("|") - 1 + len(STAGES)) + "|")


if __name__ == "__main__":
    main()
