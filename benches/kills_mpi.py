"""Kills runs of several processes at random moments, continues them with other numbers of processes, and compares what is
left with the undisturbed run of one process.

    cargo build --release --features mpi
    python3 benches/kills_mpi.py [--kills 20] [--model show-o|janus-pro] [--seed 1] [--program PATH]

A run of two iterations, of the embedded model or of a random Janus-Pro in bf16 products, is started with 1 process, or by mpirun
with 2 or 4, which is drawn anew each time. After a random time SIGKILL goes to one of those who work, to the first of them, to
one of those who watch them, or to mpirun itself; then again, one to six times, until the run is left to end. Every file below
its folder must then be there with the very same bytes, and no other. After a kill no process of the job may be left after ten
seconds; where one who works was killed, mpirun must end with exit code 1, and one line must say which of them by what.

Prints a line per run and exits with 1 if any ended otherwise; the folder of such a run is kept and named. Needs Linux,
mpirun on the path, and the standard library only.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from kills import ROOT, differences, questions, tree

RUN = """
seed: 3
iterations: 2
output: out
data: { root: data, scenes: { records: 12 }, fresh: true, chunk: 2 }
model: { showo: embedded }
caption: { max_new_tokens: 8 }
imagine: { images: 4, steps: 3, guidance: 0.0, temperature: 4.0 }
ask: { writer: scenes }
answer: { matcher: lexical, max_new_tokens: 6, score: confidence }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { codes: encoded, batch_size: 8, optimizer_state: shared, checkpoint_every: 2, schedule: { steps: 6, warmup_steps: 1, learning_rate: 1.0e-3 } }
"""

JANUS = """
seed: 5
iterations: 2
output: out
data: { root: data, scenes: { records: 8 }, fresh: true, chunk: 2 }
model: { checkpoint: model, kernels: fixed }
caption: { max_new_tokens: 6, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 20, temperature: 2.0 }, { top_k: 0, temperature: 1.0 }] }
imagine: { images: 3, guidance: 1.0 }
ask: { writer: file, file: questions.json }
answer: { matcher: lexical, max_new_tokens: 8 }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { schedule: { steps: 4, warmup_steps: 2, learning_rate: 1.0e-4 }, batch_size: 4, accumulation: 2, checkpoint_every: 2, products: bf16 }
"""


WRONG = "WRONG:"


def children(process: int) -> list:
    """The processes that a process started, by their numbers."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def is_alive(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Campaign:
    def __init__(self, program: str, model: str, top: pathlib.Path, draw: random.Random):
        self.program, self.model, self.top, self.draw = program, model, top, draw
        self.work = top / "work"
        self.slowest = 0.0

    def fresh(self):
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        (self.work / "run.yaml").write_text(RUN if self.model == "show-o" else JANUS)
        if self.model != "show-o":
            subprocess.run([self.program, "random-model", "model", "--backbone", self.model], cwd=self.work, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            (self.work / "questions.json").write_text(questions())

    def start(self, processes: int) -> subprocess.Popen:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(processes)]
        command = command if processes > 1 else []
        log = open(self.top / "log.txt", "wb")
        return subprocess.Popen([*command, self.program, "run", "run.yaml"], cwd=self.work, stdin=subprocess.DEVNULL,
                                env={**os.environ, "RAYON_NUM_THREADS": "1"}, stdout=log, stderr=log)

    def said(self) -> str:
        return (self.top / "log.txt").read_text(errors="replace")[-2000:]

    def kill(self, job: subprocess.Popen) -> str:
        """Kills somebody; who, and what is wrong with the end of the others."""
        watchers = children(job.pid)
        workers = [worker for watcher in watchers for worker in children(watcher)]
        whom = "it"
        if watchers:
            whom = self.draw.choice([*["a worker", "the first worker"] * bool(workers), "a watcher", "mpirun"])
        victim = {"a worker": self.draw.choice(workers or [0]), "the first worker": [*workers, 0][0],
                  "a watcher": self.draw.choice(watchers or [0])}.get(whom, job.pid)
        began = time.monotonic()
        hit = True
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            hit = False
        job.wait()
        while any(map(is_alive, watchers + workers)) and time.monotonic() - began < 30:
            time.sleep(0.05)
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if took >= 10:
            return f"{whom}, {WRONG} others were there for {took:.0f} s more"
        if hit and "worker" in whom:
            said = [line for line in self.said().splitlines() if line.startswith("hermesflow: ")]
            if job.returncode != 1 or len(said) != 1 or "was killed by SIGKILL" not in said[0]:
                return f"{whom}, {WRONG} mpirun ends with {job.returncode} and {said}"
        return whom

    def disturbed(self, seconds: float, expected: dict, most: int) -> tuple:
        """One run with some kills: what was done to it, how many kills hit, and what is wrong with its end, if anything."""
        self.fresh()
        course, hits = [], 0
        for _ in range(self.draw.randint(1, 6)):
            processes = self.draw.choice([1, 2, 4])
            job = self.start(processes)
            try:
                job.wait(self.draw.uniform(0.3, seconds * (1.5 if processes > 1 else 1)))
            except subprocess.TimeoutExpired:
                whom = self.kill(job)
                hits += 1
                course.append(f"{processes}: {whom}")
                if hits >= most:
                    break
                continue
            if job.returncode != 0:
                return course, hits, f"{processes} processes end with {job.returncode}: {self.said()}"
            course.append(f"{processes}: to the end")
            break
        processes = self.draw.choice([1, 2, 4])
        course.append(f"{processes}: left to end")
        job = self.start(processes)
        if job.wait() != 0:
            return course, hits, f"ends with {job.returncode}: {self.said()}"
        wrong = [one for one in course if WRONG in one]
        return course, hits, "; ".join(differences(tree(self.work), expected) + wrong) or None


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--model", choices=["show-o", "janus-pro"], default="show-o")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    arguments.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    given = arguments.parse_args()
    top = pathlib.Path(tempfile.mkdtemp(prefix="kills-mpi-"))
    campaign = Campaign(given.program, given.model, top, random.Random(given.seed))
    campaign.fresh()
    began = time.monotonic()
    if subprocess.run([given.program, "run", "run.yaml"], cwd=campaign.work, env={**os.environ, "RAYON_NUM_THREADS": "1"},
                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        raise SystemExit("the undisturbed run fails")
    seconds, expected = time.monotonic() - began, tree(campaign.work)
    kills = runs = wrong = 0
    while kills < given.kills and (time.monotonic() - began) < given.minutes * 60:
        course, hits, problem = campaign.disturbed(seconds, expected, given.kills - kills)
        kills, runs = kills + hits, runs + 1
        print(f"{runs}: {'; '.join(course)}: {'the same bytes' if problem is None else problem}", flush=True)
        if problem:
            wrong += 1
            kept = top / f"run-{runs}"
            shutil.copytree(campaign.work, kept, symlinks=True)
            print(f"  kept in {kept}", flush=True)
    print(f"{kills} kills in {runs} runs of {seconds:.1f} s, {wrong} ended otherwise; after a kill all were gone within "
          f"{campaign.slowest:.1f} s")
    if not wrong:
        shutil.rmtree(top)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
