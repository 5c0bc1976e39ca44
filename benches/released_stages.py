"""What the stages of every released model share in PyTorch: the amounts of work, types, clocks, memory and ceilings."""

import argparse
import contextlib
import json
import pathlib
import sys
import time

import torch
import torch.nn.functional as F

WORK = {"captions": 10, "caption_tokens": 100, "images": 16, "steps": 50, "questions": 8, "answer_tokens": 20, "pairs": 4,
        "picture": 0}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def add_work(parser: argparse.ArgumentParser) -> None:
    for name in WORK:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)


def peak(reset: bool) -> int:
    """The most memory of this process since the last reset, in bytes."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Stages:
    """What is asked of a model: a method per stage, which gives seconds for all of its work, and what was multiplied."""

    def __init__(self, work: argparse.Namespace):
        self.work, self.device, self.dtype = work, torch.device(work.device), DTYPES[work.torch]
        if self.device.type != "cpu":
            torch.set_default_device(self.device)

    def now(self):
        """The time, when the GPU is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def fitting(self, count, work):
        """`work` of so many, or of half as many until the GPU's memory holds them: seconds of all, and of how many."""
        while True:
            try:
                return work(count), count
            except torch.cuda.OutOfMemoryError:
                if count == 1:
                    raise
            count = (count + 1) // 2
            torch.cuda.empty_cache()

    def train(self):
        """A step of Pair-DPO on as many pairs as are asked for, or as fit."""
        seconds, pairs = self.fitting(self.work.pairs, self.step)
        if pairs == self.work.pairs:
            return seconds, ""
        times = self.work.pairs / pairs
        return seconds * times, f"a step of {pairs} pairs × {times:g} (more did not fit)"

    def products(self):
        """What the products of training are in."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @torch.no_grad()
    def best(self, work):
        """The best of nine."""
        times = []
        for _ in range(10):
            started = self.now()
            work()
            times.append(self.now() - started)
        return min(times[1:]), ""

    def multiply(self, dtype=None):
        """A large product: the sizes are those of `hermesflow bench`."""
        rows, inner, out = (8192, 8192, 8192) if self.device.type == "cuda" else (1024, 2048, 4096)
        x, w = torch.randn(rows, inner).to(dtype or self.dtype), torch.randn(out, inner).to(dtype or self.dtype)
        return self.best(lambda: F.linear(x, w))

    def multiply_bf16(self):
        return self.multiply(torch.bfloat16)

    def copy(self):
        """A copy within the device's memory, of the size of `hermesflow bench`'s."""
        source = torch.zeros(1 << 29 if self.device.type == "cuda" else 1 << 26)
        target = torch.empty_like(source)
        return self.best(lambda: target.copy_(source))


def serve(doc: str, model) -> None:
    """Does a stage once for every line on stdin, on the model that `model(folder, work)` gives."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("stage")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--torch", default="f32", choices=DTYPES)
    add_work(parser)
    parser.set_defaults(**WORK)
    work = parser.parse_args()
    torch.manual_seed(0)
    stages = model(work.folder, work)
    on_gpu = stages.device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(json.dumps({"ready": f"PyTorch {torch.__version__} in {work.torch}, {where}"}), flush=True)
    for line in sys.stdin:
        peak(reset=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, how = getattr(stages, line.strip() or work.stage)()
        most = torch.cuda.max_memory_allocated() if on_gpu else None
        print(json.dumps({"seconds": seconds, "how": how, "peak": peak(reset=False), "gpu_peak": most}), flush=True)
