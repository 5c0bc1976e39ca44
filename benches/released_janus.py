"""Janus-Pro's stages in PyTorch, as the released code does them; `released.py` runs them.

The LLaMA is transformers', with its own key/value cache. As in the released inference code

- a reply is one `generate` for each picture and question (captions one by one, too): the prompt with the picture's 576
  features once, then a token at a time;
- all pictures of a prompt are drawn as one batch, with and without the prompt: 576 steps, each one pass of one token, the head
  over the codes, guidance, softmax and a draw, then the code's embedding.

No training code was released. A step of Pair-DPO is what public fine-tuning repositories write: rows padded to one length, one
forward pass of the policy and one of the reference for each side, the text head on every row, AdamW of PyTorch.

The vision tower's features are given on both sides, which neither counts. What is repeated many times (a reply, a step of
drawing with half of the codes in the cache) is timed once and multiplied.

--torch bf16 is what was released: weights and cache in bf16; training under autocast, with master weights in f32 and the
reference in bf16.
"""

import argparse
import json
import pathlib

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from full_size import load
from released_stages import Stages

SYSTEM = ("You are a helpful language and vision assistant. You are able to understand the visual content that the user "
          "provides, and assist the user with a variety of tasks using natural language.")
# The texts of `hermesflow bench`.
CAPTION_QUESTION = "Give a caption for this image."
QUESTION = "What is the colour of shape number {}? Choice: red, blue, green"
PROMPT = "a large red circle above three small blue squares on a grey background"
CAPTIONS = ("a large red circle above three small blue squares", "two green triangles left of a small yellow cross")
BEGIN, END, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
DRAWN = ("language_model.", "gen_embed.", "gen_aligner.", "gen_head.")
# Steps of drawing that are timed.
STEPS = 8


class Hand:
    """Codes as the LLaMA sees them, and the logits of the next code."""

    def __init__(self, weights: dict):
        self.w = weights

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def embed(self, codes):
        x, layer = F.embedding(codes, self.w["gen_embed.weight"]), 0
        while f"gen_aligner.layers.{layer}.weight" in self.w:
            x = self.linear(F.gelu(x) if layer else x, f"gen_aligner.layers.{layer}")
            layer += 2
        return x

    def logits(self, hidden):
        return self.linear(F.gelu(self.linear(hidden, "gen_head.output_mlp_projector")), "gen_head.vision_head")


class Janus(Stages):
    """Janus-Pro."""

    def __init__(self, folder: pathlib.Path, work: argparse.Namespace):
        super().__init__(work)
        config = json.loads((folder / "config.json").read_text())
        self.tokens = json.loads((folder / "processor_config.json").read_text())["num_image_tokens"]
        self.codebook = config["gen_vision_config"]["params"]["image_token_size"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.weights = {name: value.to(self.device, self.dtype) for name, value in load(folder).items() if name.startswith(DRAWN)}
        self.config = LlamaConfig(**config["language_config"])
        self.llama, self.hand = self.modules(self.weights)
        self.picture = torch.randn(1, self.tokens, self.config.hidden_size, dtype=self.dtype) * 0.02
        self.trained = None

    def modules(self, weights: dict):
        """The LLaMA and the hand over some weights."""
        with torch.device("meta"):
            llama = LlamaForCausalLM(self.config)
        root = "language_model."
        own = {name.removeprefix(root): value for name, value in weights.items() if name.startswith(root)}
        llama.load_state_dict(own, strict=True, assign=True)
        # Its table of angles is no weight.
        llama.model.rotary_emb = type(llama.model.rotary_emb)(self.config)
        return llama.eval(), Hand(weights)

    def special(self, spelling: str) -> int:
        return self.tokenizer.token_to_id(spelling)

    def ids(self, text: str, begins: bool = True) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.special(BEGIN)] * begins + ids

    def asked(self, question: str) -> list[int]:
        """A question about a picture, any id in the place of each feature."""
        before = self.ids(f"{SYSTEM}\n\n<|User|>: <begin_of_image>")
        behind = self.ids(f"<end_of_image>\n{question}\n\n<|Assistant|>:", begins=False)
        return before + [0] * self.tokens + behind

    def prompt(self) -> list[int]:
        return self.ids(f"<|User|>: {PROMPT}\n\n<|Assistant|>:<begin_of_image>")

    def with_picture(self, llama, ids):
        """Embeddings, a picture's in the place of the features."""
        embedded = llama.get_input_embeddings()(ids)
        first = len(self.ids(f"{SYSTEM}\n\n<|User|>: <begin_of_image>"))
        picture = self.picture.expand(ids.shape[0], -1, -1)
        return torch.cat([embedded[:, :first], picture, embedded[:, first + self.tokens:]], 1)

    @torch.no_grad()
    def reply(self, question: str, tokens: int, **sampling):
        ids = torch.tensor([self.asked(question)])
        embedded = self.with_picture(self.llama, ids)
        started = self.now()
        self.llama.generate(
            inputs_embeds=embedded, attention_mask=torch.ones_like(ids), pad_token_id=self.special(END),
            bos_token_id=self.special(BEGIN), eos_token_id=self.special(END), use_cache=True, max_new_tokens=tokens,
            min_new_tokens=tokens, **sampling)
        return self.now() - started

    def caption(self):
        sampling = {"do_sample": True, "top_k": 4, "temperature": 2.0}
        seconds = self.reply(CAPTION_QUESTION, self.work.caption_tokens, **sampling)
        return seconds * self.work.captions, f"1 caption × {self.work.captions}"

    def answer(self):
        count = self.work.images * self.work.questions
        return self.reply(QUESTION.format(3), self.work.answer_tokens, do_sample=False) * count, f"1 answer × {count}"

    @torch.no_grad()
    def imagine(self):
        seconds, batch = self.fitting(self.work.images, self.draw)
        times = self.work.images / batch
        return seconds * times, f"prompts and {STEPS} steps of {batch} pictures × {self.tokens // STEPS * times:g}"

    def draw(self, pictures):
        prompt = self.prompt()
        rows = torch.tensor([prompt]).repeat(2 * pictures, 1)
        rows[1::2, 1:-1] = self.special(PAD)
        embedded = self.llama.get_input_embeddings()(rows)
        started = self.now()
        outputs = self.llama.model(inputs_embeds=embedded, use_cache=True)
        first = self.now() - started
        # Half of the codes are in the cache: what a step takes grows evenly with them.
        cache = DynamicCache()
        heads, size = self.config.num_key_value_heads, self.config.hidden_size // self.config.num_attention_heads
        for layer in range(self.config.num_hidden_layers):
            shape = (2 * pictures, heads, len(prompt) + (self.tokens - STEPS) // 2, size)
            cache.update(*(torch.randn(shape, dtype=self.dtype) for _ in range(2)), layer)
        hidden = outputs.last_hidden_state
        del outputs
        started = self.now()
        for _ in range(STEPS):
            logits = self.hand.logits(hidden[:, -1])
            cond, uncond = logits[0::2], logits[1::2]
            probabilities = F.softmax(uncond + 5 * (cond - uncond), -1)
            code = torch.multinomial(probabilities, 1)
            code = torch.cat([code, code], 1).view(-1)
            hidden = self.llama.model(inputs_embeds=self.hand.embed(code)[:, None], use_cache=True,
                                      past_key_values=cache).last_hidden_state
        return first + (self.now() - started) * self.tokens / STEPS

    def train(self):
        if self.trained is None:
            parameters = {name: torch.nn.Parameter(value.float().clone()) for name, value in self.weights.items()}
            optimizer = torch.optim.AdamW(parameters.values(), lr=2e-5, weight_decay=0.01)
            self.trained = *self.modules(parameters), parameters, optimizer
        return super().train()

    def step(self, pairs):
        llama, hand, parameters, optimizer = self.trained
        optimizer.zero_grad(set_to_none=True)
        question, prompt = self.asked(CAPTION_QUESTION), self.prompt()
        replies = [self.ids(f" {caption}{END}", begins=False) for caption in CAPTIONS]
        longest = max(map(len, replies))
        said = torch.tensor([question + reply + [self.special(PAD)] * (longest - len(reply)) for reply in replies])
        said = said.repeat_interleave(pairs, 0)
        is_reply = torch.zeros(said.shape, dtype=torch.bool)
        for row, reply in enumerate(replies):
            is_reply[row * pairs:(row + 1) * pairs, len(question):len(question) + len(reply)] = True
        seen = torch.arange(said.shape[1])[None] < len(question) + is_reply.sum(1, keepdim=True)
        codes = torch.randint(self.codebook, (2 * pairs, self.tokens))
        prompts = torch.tensor([prompt]).repeat(2 * pairs, 1)
        started = self.now()

        def understood(llama, hand):
            logits = llama(inputs_embeds=self.with_picture(llama, said), attention_mask=seen.long(), use_cache=False).logits
            logits = logits[:, len(question) - 1:-1].float()
            picked = logits.log_softmax(-1).gather(-1, said[:, len(question):, None])[..., 0]
            return (picked * is_reply[:, len(question):]).sum(-1)

        def imagined(llama, hand):
            embedded = torch.cat([llama.get_input_embeddings()(prompts), hand.embed(codes[:, :-1])], 1)
            hidden = llama.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            logits = hand.logits(hidden[:, len(prompt) - 1:]).float()
            return logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0].sum(-1)

        loss = 0.0
        for log_probs in (understood, imagined):
            with self.products():
                own = log_probs(llama, hand)
                with torch.no_grad():
                    reference = log_probs(self.llama, self.hand)
            win, lose = (own - reference).chunk(2)
            loss = loss - F.logsigmoid(0.2 * (win - lose)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return self.now() - started
