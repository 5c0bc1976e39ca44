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
from processes import mpirun

RUNS = ROOT / "crates/hermesflow/tests/data"
# The runs that the tests of several processes make, and what a campaign changes of them.
SHOWO = ["processes.yaml", "data.scenes.records=12", "imagine.steps=3", "train.optimizer_state=shared", "train.schedule.steps=6", "train.preview=null"]
JANUS = ["processes-by-features.yaml", "train.accumulation=2"]

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
        file, *self.settings = SHOWO if self.model == "show-o" else JANUS
        shutil.copy(RUNS / file, self.work / "run.yaml")
        if self.model != "show-o":
            subprocess.run([self.program, "random-model", "model", "--backbone", self.model], cwd=self.work, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            (self.work / "questions.json").write_text(questions())

    def start(self, processes: int) -> subprocess.Popen:
        command = mpirun(processes) if processes > 1 else []
        log = open(self.top / "log.txt", "wb")
        return subprocess.Popen([*command, self.program, "run", "run.yaml", *self.settings], cwd=self.work, stdin=subprocess.DEVNULL,
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
    if subprocess.run([given.program, "run", "run.yaml", *campaign.settings], cwd=campaign.work, env={**os.environ, "RAYON_NUM_THREADS": "1"},
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
