"""A model's stages in PyTorch, as the released scripts run them; `stages.py` sets it beside `hermesflow bench`.

    python benches/released.py FOLDER STAGE [--device cuda] [--torch bf16] [--images 16 …]

loads FOLDER (showo/ and vq/ in the published layout, or a Janus-Pro: released_janus.py) and does STAGE (or the one that the
line names) once for every line on stdin, answering with a line of JSON: seconds, the peak of memory meanwhile, and what was
multiplied.

Show-o, in plain PyTorch, everything as the released code does it: the whole sequence again for every new token, texts padded to 129, the whole
vocabulary at every row, four passes over padded rows in a step of Pair-DPO, no cache. The long stages repeat one thing many
times (a token, a denoising step); that one thing is timed and multiplied, at the middle length of a reply. Work that does
not fit the GPU's memory is halved until it does, and multiplied too.

--torch f32 is what the released scripts for images and replies run (on a GPU without TF32 in products, with it in
convolutions, as PyTorch comes). --torch bf16 is what a careful user would do with the same algorithm: weights in bf16;
training under autocast, with master weights in f32 and the reference in bf16. Attention is scaled_dot_product_attention in
both.
"""

import argparse
import json
import pathlib

import torch
import torch.nn.functional as F

from full_size import ADDED, Magvit, Phi, load
from released_stages import Stages, serve

TEXT = 129


class Released(Stages):
    """Show-o."""

    def __init__(self, folder: pathlib.Path, work: argparse.Namespace):
        super().__init__(work)
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
        return super().train()

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


def released(folder: pathlib.Path, work: argparse.Namespace) -> Stages:
    """The model of a folder, whichever it is."""
    if not (folder / "config.json").exists():
        return Released(folder, work)
    from released_janus import Janus  # which needs transformers

    return Janus(folder, work)


if __name__ == "__main__":
    serve(__doc__, released)
