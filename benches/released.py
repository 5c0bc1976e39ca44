"""Show-o's stages in plain PyTorch, as the released scripts run them; `stages.py` sets it beside `hermesflow bench`.

    python benches/released.py FOLDER STAGE [--device cuda] [--torch bf16] [--images 16 …]

loads FOLDER (showo/ and vq/ in the published layout) and does STAGE (or the one that the line names) once for every line on
stdin, answering with a line of JSON: seconds, the peak of memory meanwhile, and what was multiplied.

Everything as the released code does it: the whole sequence again for every new token, texts padded to 129, the whole
vocabulary at every row, four passes over padded rows in a step of Pair-DPO, no cache. The long stages repeat one thing many
times (a token, a denoising step); that one thing is timed and multiplied, at the middle length of a reply. Work that does
not fit the GPU's memory is halved until it does, and multiplied too.

--torch f32 is what the released scripts for images and replies run (on a GPU without TF32 in products, with it in
convolutions, as PyTorch comes). --torch bf16 is what a careful user would do with the same algorithm: weights in bf16;
training under autocast, with master weights in f32 and the reference in bf16. Attention is scaled_dot_product_attention in
both.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import time

import torch
import torch.nn.functional as F

from full_size import ADDED, Magvit, Phi, load

TEXT = 129
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


class Released:
    """Seconds for all of a stage's work, and what was multiplied."""

    def __init__(self, folder: pathlib.Path, work: argparse.Namespace):
        self.work, self.device, self.dtype = work, torch.device(work.device), DTYPES[work.torch]
        if self.device.type != "cpu":
            torch.set_default_device(self.device)
        self.config = json.loads((folder / "showo/config.json").read_text())
        phi_file = folder / "showo" / self.config.get("llm_model_path", "") / "config.json"
        self.phi_config = json.loads(phi_file.read_text()) if phi_file.exists() else {}
        self.weights = self.loaded(folder / "showo")
        self.phi = Phi(self.weights, self.phi_config)
        vq = json.loads((folder / "vq/config.json").read_text())
        self.vq = Magvit(self.loaded(folder / "vq"), vq)
        self.bits = self.vq.w["decoder.post_quant_conv.weight"].shape[1]
        self.reduction = 2 ** sum(name.endswith("downsample.conv.weight") for name in self.vq.w)
        self.tokens, self.words = self.config["num_vq_tokens"], self.config["llm_vocab_size"]
        self.special = {name: self.words + at for at, name in enumerate(ADDED)}
        self.trained = None

    def loaded(self, folder):
        return {name: value.to(self.device, self.dtype) for name, value in load(folder).items()}

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

    def codes(self, count):
        return self.words + len(ADDED) + torch.randint(self.config["codebook_size"], (count, self.tokens))

    def text(self, count, length):
        return torch.randint(self.words, (count, length))

    def token(self, name, count):
        return torch.full((count, 1), self.special[name])

    def understanding(self, rows, behind):
        """`<|mmu|> <|soi|> image <|eoi|>` and what stands behind it, with its mask."""
        block = [self.token("<|mmu|>", rows), self.token("<|soi|>", rows), self.codes(rows), self.token("<|eoi|>", rows)]
        ids = torch.cat([*block, behind], 1)
        mask = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        mask[:, : self.tokens + 3] = True
        return ids, mask[None, None]

    def imagining(self, rows, masked):
        """A text of twenty tokens padded to 129 on the left, and the image, with its mask."""
        image = torch.where(torch.rand(rows, self.tokens) < masked, self.config["vocab_size"] - 1, self.codes(rows))
        used = 23
        text = torch.cat([self.token("[PAD]", rows).expand(rows, TEXT - used), self.text(rows, used)], 1)
        ids = torch.cat([text, self.token("<|soi|>", rows), image, self.token("<|eoi|>", rows)], 1)
        n = ids.shape[1]
        mask = torch.ones(n, n).tril().bool()
        mask[TEXT:, TEXT:] = True
        mask[:, : TEXT - used] = False
        mask[: TEXT - used, : TEXT - used] = torch.eye(TEXT - used).bool()
        return ids, mask[None, None]

    @torch.no_grad()
    def next_token(self, written):
        ids, mask = self.understanding(1, self.text(1, 20 + written))
        started = self.now()
        logits = self.phi.logits(self.phi(ids, mask))[:, -1].float()
        torch.multinomial(F.softmax(logits, -1), 1)
        return self.now() - started

    def caption(self):
        count = self.work.captions * self.work.caption_tokens
        return self.next_token(self.work.caption_tokens // 2) * count, f"1 token × {count}"

    def answer(self):
        count = self.work.images * self.work.questions * self.work.answer_tokens
        return self.next_token(20 + self.work.answer_tokens // 2) * count, f"1 token × {count}"

    def imagine(self):
        # The images of a prompt in batches that PyTorch's memory allows, conditional and unconditional together.
        seconds, batch = self.fitting(min(self.work.images, 4), self.denoise)
        count = self.work.steps * self.work.images // batch
        return seconds * count, f"1 step of {batch} images × {count}"

    @torch.no_grad()
    def denoise(self, batch):
        ids, mask = self.imagining(2 * batch, 0.5)
        started = self.now()
        cond, uncond = self.phi.logits(self.phi(ids, mask)).chunk(2)
        first = self.words + len(ADDED)
        logits = (6 * cond - 5 * uncond)[:, TEXT + 1 : -1, first : first + self.config["codebook_size"]].float()
        probabilities = F.softmax(logits, -1)
        torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1)
        return self.now() - started

    @torch.no_grad()
    def encode(self):
        side = self.work.picture or int(self.tokens**0.5) * self.reduction
        image = torch.rand(1, 3, side, side, dtype=self.dtype)
        started = self.now()
        self.vq.encode(image)
        return self.now() - started, ""

    @torch.no_grad()
    def decode(self):
        side = self.work.picture // self.reduction or int(self.tokens**0.5)
        features = (torch.randint(2, (1, self.bits, side, side)) * 2.0 - 1).to(self.dtype)
        started = self.now()
        self.vq.decode(features)
        return self.now() - started, ""

    def train(self):
        if self.trained is None:
            parameters = {name: value.float().clone().requires_grad_() for name, value in self.weights.items()}
            optimizer = torch.optim.AdamW(parameters.values(), lr=2e-5, weight_decay=0.01)
            self.trained = Phi(parameters, self.phi_config), optimizer
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

    def step(self, pairs):
        policy, optimizer = self.trained
        optimizer.zero_grad(set_to_none=True)
        und, und_mask = self.understanding(2 * pairs, self.text(2 * pairs, TEXT))
        gen, gen_mask = self.imagining(2 * pairs, 0.64)
        labels = torch.zeros_like(gen, dtype=torch.bool)
        labels[:, TEXT + 1 : -1] = gen[:, TEXT + 1 : -1] == self.config["vocab_size"] - 1

        def understood(model):
            logits = model.logits(model(und, und_mask))[:, self.tokens + 3 + 20 : -1].float()
            picked = logits.log_softmax(-1).gather(-1, und[:, self.tokens + 3 + 21 :, None])[..., 0]
            return picked[:, :12].sum(-1)

        def imagined(model):
            logits = model.logits(model(gen, gen_mask)).float()
            return (logits.log_softmax(-1).gather(-1, gen[..., None])[..., 0] * labels).sum(-1)

        started = self.now()
        loss = 0.0
        for log_probs in (understood, imagined):
            with self.products():
                own = log_probs(policy)
                with torch.no_grad():
                    reference = log_probs(self.phi)
            win, lose = (own - reference).chunk(2)
            loss = loss - F.logsigmoid(0.2 * (win - lose)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return self.now() - started

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("stage")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--torch", default="f32", choices=DTYPES)
    add_work(parser)
    parser.set_defaults(**WORK)
    work = parser.parse_args()
    torch.manual_seed(0)
    released = Released(work.folder, work)
    on_gpu = released.device.type == "cuda"
    where = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    print(json.dumps({"ready": f"PyTorch {torch.__version__} in {work.torch}, {where}"}), flush=True)
    for line in sys.stdin:
        peak(reset=True)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, how = getattr(released, line.strip() or work.stage)()
        most = torch.cuda.max_memory_allocated() if on_gpu else None
        print(json.dumps({"seconds": seconds, "how": how, "peak": peak(reset=False), "gpu_peak": most}), flush=True)


if __name__ == "__main__":
    main()
