"""Times each stage here and in PyTorch as the original uses it, in turns, on an otherwise idle machine.

    hermesflow random-model FOLDER --size medium
    python benches/stages.py FOLDER [--dtype bf16] [--repeat 3] [--stages caption,train] [--json FILE]

FOLDER has showo/, vq/ and tokenizer.json. PyTorch does what the released scripts do, in f32: the whole sequence again for
every new token, texts padded to 129, the whole vocabulary at every row, four passes over padded rows in a step of
Pair-DPO, no cache. Its long stages repeat one thing many times (a token, a denoising step); that one thing is timed and
multiplied, at the middle length of a reply, and the table says so. Ours always does all of the work.

`hermesflow` is looked for in target/release, or given as --program.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

from full_size import ADDED, Magvit, Phi, load

ROOT = pathlib.Path(__file__).resolve().parent.parent
CAPTIONS, CAPTION_TOKENS, IMAGES, STEPS, QUESTIONS, ANSWER_TOKENS, PAIRS = 10, 100, 16, 50, 8, 20, 4
TEXT = 129


class Original:
    """The released code's way of doing each stage: seconds for all of its work, and what was multiplied."""

    def __init__(self, folder: pathlib.Path, work: argparse.Namespace):
        self.work = work
        self.config = json.loads((folder / "showo/config.json").read_text())
        phi_file = folder / "showo" / self.config.get("llm_model_path", "") / "config.json"
        self.phi_config = json.loads(phi_file.read_text()) if phi_file.exists() else {}
        self.weights = load(folder / "showo")
        self.phi = Phi(self.weights, self.phi_config)
        self.vq = Magvit(load(folder / "vq"), json.loads((folder / "vq/config.json").read_text()))
        self.tokens, self.words = self.config["num_vq_tokens"], self.config["llm_vocab_size"]
        self.special = {name: self.words + at for at, name in enumerate(ADDED)}
        self.trained = None

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
        started = time.perf_counter()
        logits = self.phi.logits(self.phi(ids, mask))[:, -1]
        torch.multinomial(F.softmax(logits, -1), 1)
        return time.perf_counter() - started

    def caption(self):
        count = self.work.captions * self.work.caption_tokens
        return self.next_token(self.work.caption_tokens // 2) * count, f"1 token × {count}"

    def answer(self):
        count = self.work.images * self.work.questions * self.work.answer_tokens
        return self.next_token(20 + self.work.answer_tokens // 2) * count, f"1 token × {count}"

    @torch.no_grad()
    def imagine(self):
        # The images of a prompt in batches that PyTorch's memory allows, conditional and unconditional together.
        batch = min(self.work.images, 4)
        ids, mask = self.imagining(2 * batch, 0.5)
        started = time.perf_counter()
        cond, uncond = self.phi.logits(self.phi(ids, mask)).chunk(2)
        first = self.words + len(ADDED)
        logits = (6 * cond - 5 * uncond)[:, TEXT + 1 : -1, first : first + self.config["codebook_size"]]
        probabilities = F.softmax(logits, -1)
        torch.multinomial(probabilities.reshape(-1, logits.shape[-1]), 1)
        seconds = time.perf_counter() - started
        count = self.work.steps * self.work.images // batch
        return seconds * count, f"1 step of {batch} images × {count}"

    @torch.no_grad()
    def encode(self):
        side = int(self.tokens**0.5) * 16
        image = torch.rand(1, 3, side, side)
        started = time.perf_counter()
        self.vq.encode(image)
        return time.perf_counter() - started, ""

    @torch.no_grad()
    def decode(self):
        side = int(self.tokens**0.5)
        features = torch.randint(2, (1, 13, side, side)) * 2.0 - 1
        started = time.perf_counter()
        self.vq.decode(features)
        return time.perf_counter() - started, ""

    def train(self):
        if self.trained is None:
            parameters = {name: value.clone().requires_grad_() for name, value in self.weights.items()}
            optimizer = torch.optim.AdamW(parameters.values(), lr=2e-5, weight_decay=0.01)
            self.trained = Phi(parameters, self.phi_config), optimizer
        policy, optimizer = self.trained
        pairs = self.work.pairs
        und, und_mask = self.understanding(2 * pairs, self.text(2 * pairs, TEXT))
        gen, gen_mask = self.imagining(2 * pairs, 0.64)
        labels = torch.zeros_like(gen, dtype=torch.bool)
        labels[:, TEXT + 1 : -1] = gen[:, TEXT + 1 : -1] == self.config["vocab_size"] - 1

        def understood(model):
            logits = model.logits(model(und, und_mask))[:, self.tokens + 3 + 20 : -1]
            picked = logits.log_softmax(-1).gather(-1, und[:, self.tokens + 3 + 21 :, None])[..., 0]
            return picked[:, :12].sum(-1)

        def imagined(model):
            logits = model.logits(model(gen, gen_mask))
            return (logits.log_softmax(-1).gather(-1, gen[..., None])[..., 0] * labels).sum(-1)

        started = time.perf_counter()
        loss = 0.0
        for log_probs in (understood, imagined):
            own = log_probs(policy)
            with torch.no_grad():
                reference = log_probs(self.phi)
            win, lose = (own - reference).chunk(2)
            loss = loss - F.logsigmoid(0.2 * (win - lose)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started, ""


class Ours:
    """`hermesflow bench --serve`."""

    def __init__(self, folder: pathlib.Path, work: argparse.Namespace, program: str, dtype: str):
        settings = folder / "bench.yaml"
        settings.write_text("pair: { similarity: lexical }\nask: { writer: template }\nanswer: { matcher: lexical }\n")
        names = ("captions", "caption_tokens", "images", "steps", "questions", "answer_tokens", "pairs")
        options = [f"--{name.replace('_', '-')}={getattr(work, name)}" for name in names]
        model = [f"model.{key}={folder / path}" for key, path in
                 (("showo", "showo"), ("vq", "vq"), ("tokenizer", "tokenizer.json"))]
        command = [program, "bench", str(settings), *model, f"model.dtype={dtype}", "--serve", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, stage):
        self.process.stdin.write(stage + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["peak"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--program", default=str(ROOT / "target/release/hermesflow"))
    parser.add_argument("--dtype", default="f32", help="how our matrices are held")
    parser.add_argument("--stages", default="encode,decode,caption,answer,imagine,train")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    for name, default in (("captions", CAPTIONS), ("caption-tokens", CAPTION_TOKENS), ("images", IMAGES),
                          ("steps", STEPS), ("questions", QUESTIONS), ("answer-tokens", ANSWER_TOKENS), ("pairs", PAIRS)):
        parser.add_argument(f"--{name}", type=int, default=default)
    work = parser.parse_args()
    torch.manual_seed(0)
    theirs, ours = Original(work.folder, work), Ours(work.folder, work, work.program, work.dtype)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; ours in {work.dtype}; medians of "
          f"{work.repeat} in turns\n")
    print("| stage | ours | PyTorch, as the original | ratio | PyTorch's time is | our peak |")
    print("|---|---|---|---|---|---|")
    rows = []
    for stage in work.stages.split(","):
        ours(stage), getattr(theirs, stage)()
        mine, other = [], []
        for _ in range(work.repeat):
            seconds, peak = ours(stage)
            mine.append(seconds)
            seconds, how = getattr(theirs, stage)()
            other.append(seconds)
        a, b = statistics.median(mine), statistics.median(other)
        print(f"| {stage} | {a:.2f} s | {b:.1f} s | {b / a:.1f}× | {how or 'measured'} | {(peak or 0) / 1e9:.1f} GB |",
              flush=True)
        rows.append({"stage": stage, "ours": mine, "pytorch": other, "ratio": b / a, "extrapolated": how, "peak": peak})
    if work.json:
        work.json.write_text(json.dumps({"dtype": work.dtype, "stages": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
