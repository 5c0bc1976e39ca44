"""Kills the program at random moments, again and again, and compares what is left with an undisturbed run.

    cargo build --release
    python3 benches/kills.py [--kills 40] [--only run-bf16,fetch] [--minutes 30] [--seed 1] [--program PATH]

For each kind of work the command runs once in peace; then it is started and killed by SIGKILL after a random time, one to
six times, until it is left to end. Every file below its folder must then be there with the very same bytes, and no other:
nothing is left behind. A command that ends by itself must end with exit code 0, unless all of its work was done already.
`--kills` counts the kills of each kind. Needs the standard library only; `fetch` runs against a small hub on this machine.

Prints a line per kind and exits with 1 if any run ended otherwise; the folder of such a run is kept and named.
"""

import argparse
import hashlib
import http.server
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

RUN = """
seed: 5
iterations: 2
output: out
data: { root: data, scenes: { records: 12 }, fresh: true, chunk: 2 }
model: { showo: model/showo, vq: model/vq, tokenizer: model/tokenizer.json }
caption: { max_new_tokens: 6, candidates: [{ top_k: 1, temperature: 1.0 }, { top_k: 20, temperature: 2.0 }, { top_k: 0, temperature: 1.0 }] }
imagine: { images: 4, steps: 3, guidance: 1.0 }
ask: { writer: file, file: questions.json }
answer: { matcher: lexical, max_new_tokens: 8 }
pair: { similarity: lexical, min_accuracy: 0.0 }
train: { codes: drawn, steps: 12, warmup_steps: 2, batch_size: 2, checkpoint_every: 3, learning_rate: 1.0e-3 }
"""

PRETRAINING = """
seed: 1
output: pretrained
tokenizer: { vocab_size: 320, lines: 200 }
vq:
  model: { ch: 8, ch_mult: [1, 1, 1, 1], num_res_blocks: [1, 1, 1, 1], z_channels: 6, resolution: 64, norm_groups: 4 }
  commitment: 0.05
  entropy: 0.02
  salience: 4.0
  harden_steps: 4
  batch_size: 2
  steps: 6
  learning_rate: 0.002
  warmup_steps: 1
  weight_decay: 0.0001
  max_grad_norm: 1.0
base:
  model: { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2 }
  max_text_len: 64
  caption_question: Give a caption for this image.
  stages:
    - { mix: { understanding: 2, questions: 1, generation: 2 }, steps: 6, learning_rate: 0.002, warmup_steps: 1, weight_decay: 0.01, max_grad_norm: 1.0 }
    - { mix: { understanding: 2, questions: 1, generation: 2 }, steps: 4, learning_rate: 0.002, warmup_steps: 1, weight_decay: 0.01, max_grad_norm: 1.0 }
checkpoint_every: 2
"""

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "1_Pooling/config.json": b'{"pooling": 1}',
    "model.safetensors": bytes(at % 251 for at in range(6_000_000)),
}


def questions() -> str:
    """Questions whose choices are scraps of what a random model writes, so that its images differ in score."""
    words = ["choice", "question", "image", "caption", "give", "the", "circle", "red"]
    choices = ["choice", "choiced", "cedd", "icedddd", "re", "ge s", "t"]
    return json.dumps([
        {"id": f"train-{record:06}", "img_path": "i", "prompt": "p", "caption": "c", "element": "e",
         "question": f"{words[number]} {words[(number + record) % len(words)]}?", "choices": choices, "answer": answer}
        for record in range(36) for number, answer in enumerate(choices[:6])
    ])


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, a little at a time."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": blob(data),
                 "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} if len(data) > 1000 else None}
                for name, data in HUB.items()
            ]
            return self.say(json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        data = HUB.get(path.split(f"/resolve/{COMMIT}/")[-1])
        if data is None:
            return self.send_error(404)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.say(data[start:], 206 if start else 200, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {})

    def say(self, data: bytes, status: int = 200, headers: dict = {}):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for at in range(0, len(data), 100_000):
                self.wfile.write(data[at:at + 100_000])
                time.sleep(0.005)
        except OSError:
            pass  # its reader was killed

    def log_message(self, *_):
        pass


def blob(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def works(address: str) -> dict:
    """Each kind of work: its command."""
    small = ["data.scenes.records=8", "imagine.images=4", "train.steps=6", "train.warmup_steps=2", "iterations=2",
             "train.checkpoint_every=2", "data.chunk=4"]
    of = {}
    for dtype in ["f32", "bf16"]:
        of[f"run-{dtype}"] = ["run", "run.yaml", f"model.dtype={dtype}"]
        of[f"eval-{dtype}"] = ["eval", "run.yaml", "--prompts", "96", "--out", "report.json", f"model.dtype={dtype}"]
        of[f"demo-{dtype}"] = ["demo", "--out", "demo", "--quick", *small, f"model.dtype={dtype}"]
    of["import"] = ["import", "shard.tar", "--to", "root"]
    of["convert"] = ["convert", "model/showo", "converted", "--format", "bin"]
    of["pretrain"] = ["pretrain", "pretrain.yaml", "--export", "exported"]
    of["fetch"] = ["fetch", "org/tiny"]
    return of


def materials(program: str, folder: pathlib.Path):
    """What the commands need, made once."""
    folder.mkdir()
    (folder / "run.yaml").write_text(RUN)
    (folder / "pretrain.yaml").write_text(PRETRAINING)
    (folder / "questions.json").write_text(questions())
    quiet = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([program, "random-model", "model"], **quiet)
    subprocess.run([program, "scenes", "run.yaml", "data.root=drawn", "data.scenes.records=150"], **quiet)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for record in json.loads((folder / "drawn/initial_data.json").read_text()):
            picture = (folder / "drawn" / record["img_path"]).read_bytes()
            for ending, data in [("png", picture), ("txt", record["caption"].encode())]:
                member = tarfile.TarInfo(f"{record['id']}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    shutil.rmtree(folder / "drawn")


def tree(folder: pathlib.Path) -> dict:
    """Every file and link below a folder with what it holds, and every empty folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = "link to " + os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[name] = "an empty folder"
    return found


def differences(found: dict, expected: dict) -> list:
    """In what a tree differs from the expected one, the first dozen."""
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    of = lambda name: "missing" if name not in found else "left behind" if name not in expected else "other bytes"
    return [f"{name}: {of(name)}" for name in differing[:12]]


class Campaign:
    def __init__(self, program: str, top: pathlib.Path, address: str, draw: random.Random):
        self.program, self.top, self.draw = program, top, draw
        # One path for all runs: where a model lies is part of what it is called in caches.
        self.work = top / "work"
        self.environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower() and not name.startswith("HF_")},
            "HF_ENDPOINT": address, "HF_HUB_CACHE": str(self.work / "hub"), "HOME": str(top / "home"),
        }

    def fresh(self):
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.top / "materials", self.work)

    def start(self, command: list) -> subprocess.Popen:
        log = open(self.top / "log.txt", "wb")
        return subprocess.Popen([self.program, *command], cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL,
                                stdout=log, stderr=log, start_new_session=True)

    def whole(self, command: list) -> float:
        """Runs to the end; the seconds that it took."""
        began = time.monotonic()
        process = self.start(command)
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} ends with {process.returncode}: {self.said()}")
        return time.monotonic() - began

    def said(self) -> str:
        return (self.top / "log.txt").read_text(errors="replace")[-2000:]

    def disturbed(self, command: list, seconds: float, expected: dict) -> tuple:
        """One run with some kills: how many hit, and what is wrong with its end, if anything."""
        self.fresh()
        hits = 0
        for _ in range(self.draw.randint(1, 6)):
            process = self.start(command)
            try:
                process.wait(self.draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                hits += process.wait() == -signal.SIGKILL
                continue
            if process.returncode != 0:
                break
        done = tree(self.work) == expected
        process = self.start(command)
        if process.wait() != 0 and not done:
            return hits, f"ends with {process.returncode}: {self.said()}"
        found = tree(self.work)
        return hits, "; ".join(differences(found, expected)) or None


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=40, help="kills of each kind of work")
    arguments.add_argument("--only", help="kinds of work, separated by commas")
    arguments.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    given = arguments.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    top = pathlib.Path(tempfile.mkdtemp(prefix="kills-"))
    materials(given.program, top / "materials")
    campaign = Campaign(given.program, top, address, random.Random(given.seed))
    kinds = works(address)
    chosen = given.only.split(",") if given.only else list(kinds)
    if unknown := [kind for kind in chosen if kind not in kinds]:
        arguments.error(f"{', '.join(unknown)}: none of {', '.join(kinds)}")
    deadline, all_kills, faults = time.monotonic() + given.minutes * 60, 0, 0
    for kind in chosen:
        command = kinds[kind]
        campaign.fresh()
        seconds = campaign.whole(command)
        expected = tree(campaign.work)
        campaign.fresh()
        seconds = min(seconds, campaign.whole(command))
        if tree(campaign.work) != expected:
            print(f"{kind}: two undisturbed runs differ", flush=True)
            faults += 1
            continue
        kills = runs = wrong = 0
        while kills < given.kills and time.monotonic() < deadline:
            hits, problem = campaign.disturbed(command, seconds, expected)
            kills, runs = kills + hits, runs + 1
            if problem:
                wrong += 1
                kept = top / f"{kind}-{runs}"
                shutil.copytree(campaign.work, kept, symlinks=True)
                print(f"{kind}: after {hits} kills: {problem}\n  kept in {kept}", flush=True)
        print(f"{kind}: {kills} kills in {runs} runs of {seconds:.2f} s; {wrong} ended otherwise", flush=True)
        all_kills, faults = all_kills + kills, faults + wrong
    print(f"{all_kills} kills, {faults} faults")
    if not faults:
        shutil.rmtree(top)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
