"""Records what plain PyTorch makes of a checkpoint, for `hermesflow verify` to compare with.

    hermesflow random-model FOLDER --size full --resolution 512 --format sharded
    python benches/full_size.py FOLDER
    hermesflow verify FOLDER

FOLDER has showo/ and vq/ in the published layout, in any of the file formats. Written into it: logits.safetensors with

- t2i.ids [1, n] (text left-padded to 129, then the image), t2i.rows (rows of the image's segment), t2i.logits;
- mmu.ids [1, n], mmu.rows, mmu.logits;
- vq.{R}.image [1, 3, R, R], vq.{R}.encoder_out, vq.{R}.decoded (of the encoder's own signs), for R 256 and 512.

Everything in f32, with the whole sequence and a mask as the original does it. Needs torch and safetensors, and memory
for the model once.
"""

import json
import pathlib
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ADDED = ["[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"]
NAMES = ["pytorch_model", "model", "diffusion_pytorch_model"]


def load(folder: pathlib.Path) -> dict:
    """The tensors of a checkpoint folder."""
    for name in NAMES:
        for ending, read in [("safetensors", load_file), ("bin", lambda f: torch.load(f, weights_only=True))]:
            whole, index = folder / f"{name}.{ending}", folder / f"{name}.{ending}.index.json"
            if whole.exists():
                return read(str(whole))
            if index.exists():
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                return {key: value for shard in shards for key, value in read(str(folder / shard)).items()}
    raise SystemExit(f"{folder}: no weights")


class Phi:
    """Phi-1.5 with LayerNorm on queries and keys per head: attention and MLP side by side on one LayerNorm."""

    def __init__(self, weights: dict, config: dict):
        self.w = weights
        self.hidden = config.get("hidden_size", 2048)
        self.heads = config.get("num_attention_heads", 32)
        self.layers = config.get("num_hidden_layers", 24)
        self.eps = config.get("layer_norm_eps", 1e-5)
        head = self.hidden // self.heads
        self.rotary = int(head * config.get("partial_rotary_factor", 0.5))
        exponent = torch.arange(0, self.rotary, 2).float() / self.rotary
        self.frequencies = 1.0 / config.get("rope_theta", 10000.0) ** exponent

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x, name):
        weight = self.w[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.w[f"{name}.bias"], self.eps)

    def rotate(self, x, cos, sin):
        turned, rest = x[..., : self.rotary], x[..., self.rotary :]
        first, second = turned.chunk(2, -1)
        return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    def __call__(self, ids, mask):
        b, n = ids.shape
        x = F.embedding(ids, self.w["showo.model.embed_tokens.weight"])
        angles = torch.arange(n).float()[:, None] * self.frequencies[None]
        cos, sin = (turn(torch.cat([angles, angles], -1)).to(x.dtype) for turn in (torch.cos, torch.sin))
        for layer in range(self.layers):
            at = f"showo.model.layers.{layer}"
            h = self.norm(x, f"{at}.input_layernorm")
            split = lambda name: self.linear(h, f"{at}.self_attn.{name}").view(b, n, self.heads, -1).transpose(1, 2)
            q = self.rotate(self.norm(split("q_proj"), f"{at}.self_attn.q_layernorm"), cos, sin)
            k = self.rotate(self.norm(split("k_proj"), f"{at}.self_attn.k_layernorm"), cos, sin)
            seen = F.scaled_dot_product_attention(q, k, split("v_proj"), attn_mask=mask)
            seen = self.linear(seen.transpose(1, 2).reshape(b, n, -1), f"{at}.self_attn.dense")
            mlp = F.gelu(self.linear(h, f"{at}.mlp.fc1"), approximate="tanh")
            x = x + seen + self.linear(mlp, f"{at}.mlp.fc2")
        return self.norm(x, "showo.model.final_layernorm")

    def logits(self, hidden):
        return self.linear(hidden, "showo.lm_head")


class Magvit:
    """MAGVIT-v2's encoder and decoder, without its quantizer."""

    def __init__(self, weights: dict, config: dict):
        self.w = weights
        self.groups = config.get("norm_groups", 32)

    def has(self, name):
        return f"{name}.weight" in self.w

    def conv(self, x, name, stride=1):
        weight = self.w[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if stride == 1 else 0
        return F.conv2d(x, weight, self.w[f"{name}.bias"], stride, padding)

    def norm(self, x, name):
        return F.group_norm(x, self.groups, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def block(self, x, name):
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        return (self.conv(x, f"{name}.nin_shortcut") if self.has(f"{name}.nin_shortcut") else x) + h

    def attention(self, x, name):
        b, c, height, width = x.shape
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2).transpose(1, 2) for part in "qkv")
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c, height, width)
        return x + self.conv(h, f"{name}.proj_out")

    def middle(self, x, name):
        return self.block(self.attention(self.block(x, f"{name}.block_1"), f"{name}.attn_1"), f"{name}.block_2")

    def blocks(self, x, name):
        number = 0
        while self.has(f"{name}.block.{number}.norm1"):
            x = self.block(x, f"{name}.block.{number}")
            number += 1
        return x

    def encode(self, x):
        x, level = self.conv(x, "encoder.conv_in"), 0
        while self.has(f"encoder.down.{level}.block.0.norm1"):
            x = self.blocks(x, f"encoder.down.{level}")
            if self.has(f"encoder.down.{level}.downsample.conv"):
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
            level += 1
        x = F.silu(self.norm(self.middle(x, "encoder.mid"), "encoder.norm_out"))
        return self.conv(self.conv(x, "encoder.conv_out"), "encoder.quant_conv")

    def decode(self, x):
        x = self.conv(self.conv(x, "decoder.post_quant_conv"), "decoder.conv_in")
        x, level = self.middle(x, "decoder.mid"), 0
        while self.has(f"decoder.up.{level}.block.0.norm1"):
            level += 1
        for level in reversed(range(level)):
            x = self.blocks(x, f"decoder.up.{level}")
            if self.has(f"decoder.up.{level}.upsample.conv"):
                x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), f"decoder.up.{level}.upsample.conv")
        return self.conv(F.silu(self.norm(x, "decoder.norm_out")), "decoder.conv_out")


def sequences(config: dict) -> dict:
    """An imagine and an understanding sequence with their masks, as the original lays them out."""
    words, tokens = config["llm_vocab_size"], config["num_vq_tokens"]
    special = {name: words + at for at, name in enumerate(ADDED)}
    image = words + len(ADDED) + torch.randint(config["codebook_size"], (tokens,))
    mask_token = config.get("mask_token_id") or config["vocab_size"] - 1
    text = torch.randint(words, (40,)).tolist()
    end, pad = words - 1, special["[PAD]"]

    body = [special["<|t2i|>"], end, *text, end]
    masked = torch.where(torch.rand(tokens) < 0.6, mask_token, image).tolist()
    t2i = [pad] * (129 - len(body)) + body + [special["<|soi|>"], *masked, special["<|eoi|>"]]
    n, padding, start = len(t2i), 129 - len(body), 129
    sees = torch.ones(n, n).tril().bool()
    sees[start:, start:] = True
    sees[:, :padding] = False
    sees[:padding, :padding] = torch.eye(padding).bool()

    block = [special["<|mmu|>"], special["<|soi|>"], *image.tolist(), special["<|eoi|>"]]
    mmu = [*block, end, *text]
    reads = torch.ones(len(mmu), len(mmu)).tril().bool()
    reads[:, : len(block)] = True
    rows = torch.arange(0, tokens + 2, 64)
    behind = torch.tensor([0, 5, len(block) - 1, *range(len(block), len(mmu), 5)])
    return {"t2i": (t2i, sees, rows + start, rows), "mmu": (mmu, reads, behind, behind)}


@torch.no_grad()
def main(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    config = json.loads((folder / "showo/config.json").read_text())
    phi_file = folder / "showo" / config.get("llm_model_path", "") / "config.json"
    phi_config = json.loads(phi_file.read_text()) if phi_file.exists() else {}
    out = {}

    vq = Magvit(load(folder / "vq"), json.loads((folder / "vq/config.json").read_text()))
    for side in (256, 512):
        # Blobs rather than noise: what a tokenizer sees.
        image = F.interpolate(torch.rand(1, 3, 9, 9), size=(side, side), mode="bicubic").clamp(0, 1) * 2 - 1
        started = time.time()
        encoded = vq.encode(image)
        between = time.time()
        decoded = vq.decode(torch.where(encoded > 0, 1.0, -1.0))
        print(f"vq {side}²: encode {between - started:.1f} s, decode {time.time() - between:.1f} s", flush=True)
        out |= {f"vq.{side}.image": image, f"vq.{side}.encoder_out": encoded, f"vq.{side}.decoded": decoded}
    del vq

    phi = Phi(load(folder / "showo"), phi_config)
    for name, (ids, mask, picked, rows) in sequences(config).items():
        started = time.time()
        ids = torch.tensor([ids])
        logits = phi.logits(phi(ids, mask[None, None])[0, picked])
        print(f"{name}: {ids.shape[1]} tokens in {time.time() - started:.1f} s", flush=True)
        out |= {f"{name}.ids": ids, f"{name}.rows": rows[None].clone(), f"{name}.logits": logits}
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "logits.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(pathlib.Path(sys.argv[1]))
