"""Records what PyTorch makes of the CLIP variant of Show-o, for the test that compares ours with it.

    python tools/record/clip.py

Needs torch, transformers, tokenizers, safetensors and Pillow. Writes crates/hermesflow-models/tests/clip/: a tiny
checkpoint with random weights (showo/, clip/, tokenizer.json), a picture, and trace.safetensors with

    square       [56, 56, 3]   the picture as CLIPImageProcessor resizes and crops it, u8
    features     [16, 24]      hidden_states[-2][:, 1:] of transformers' vision tower
    projected    [16, 32]      those through mm_projector
    ids          [rows]        the sequence; -1 where features stand
    logits       [rows, vocabulary]
    reply        [tokens]      the greedy reply, every token from a full pass under the original's mask
    log_prob     [1]           the sum of its tokens' log-probabilities

The vision tower and the preprocessing are transformers', the decoder is written out here, the sequence and its mask
are those of inference_mmu.py and create_attention_mask_for_mmu_vit (showlab/Show-o): `<|mmu|> system <|soi|> features
<|eoi|> USER: question ASSISTANT:`, in which every row sees all columns before `<|eoi|>` and its own past.
"""

import json
import math
import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, decoders, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

HERE = pathlib.Path(__file__).resolve().parents[2] / "crates/hermesflow-models/tests/clip"
SIDE, PATCH, WIDTH = 56, 14, 24
HIDDEN, HEADS, MLP, LAYERS = 32, 2, 64, 2
CODES, TOKENS = 64, 16
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "Give a caption for this image."
ADDED = ["[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>"]
LONGEST = 12


def write_json(path: pathlib.Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def tokenizer() -> tuple[Tokenizer, int]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=299, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([SYSTEM, f"USER: {QUESTION} ASSISTANT:"] * 4, trainer)
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    words = made.get_vocab_size()
    made.save(str(HERE / "tokenizer.json"))
    made.add_special_tokens([AddedToken("[PAD]", special=True)])
    made.add_tokens([AddedToken(token) for token in ADDED[1:]])
    return made, words


def picture() -> Image.Image:
    # Wider than high by a margin of which torchvision's crop and transformers' begin at different columns.
    y, x = np.mgrid[0:64, 0:77]
    noise = np.random.default_rng(7).integers(0, 60, (64, 77, 3))
    planes = [120 + 90 * np.sin(x / 5), 120 + 90 * np.cos(y / 7 + x / 11), (x * 3 + y * 2) % 180]
    return Image.fromarray((np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8))


def vision_tower() -> CLIPModel:
    vision = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=3)
    vision |= dict(image_size=SIDE, patch_size=PATCH)
    text = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    text |= dict(max_position_embeddings=8)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.2)
    model.save_pretrained(HERE / "clip")
    return model


def decoder(vocabulary: int) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}

    def pair(name: str, *shape: int) -> None:
        norm = len(shape) == 1
        weights[f"{name}.weight"] = torch.randn(shape) * (0.2 if norm else 1.2 / math.sqrt(shape[-1])) + float(norm)
        weights[f"{name}.bias"] = torch.randn(shape[0]) * 0.2

    weights["showo.model.embed_tokens.weight"] = torch.randn(vocabulary, HIDDEN)
    for layer in range(LAYERS):
        base = f"showo.model.layers.{layer}"
        pair(f"{base}.input_layernorm", HIDDEN)
        for name in ("q_proj", "k_proj", "v_proj", "dense"):
            pair(f"{base}.self_attn.{name}", HIDDEN, HIDDEN)
        pair(f"{base}.self_attn.q_layernorm", HIDDEN // HEADS)
        pair(f"{base}.self_attn.k_layernorm", HIDDEN // HEADS)
        pair(f"{base}.mlp.fc1", MLP, HIDDEN)
        pair(f"{base}.mlp.fc2", HIDDEN, MLP)
    pair("showo.model.final_layernorm", HIDDEN)
    pair("showo.lm_head", vocabulary, HIDDEN)
    pair("mm_projector.0", HIDDEN, WIDTH)
    pair("mm_projector.2", HIDDEN, HIDDEN)
    return weights


def run(weights: dict[str, torch.Tensor], xs: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Logits `[rows, vocabulary]` of embeddings `[rows, hidden]`."""

    def linear(name: str, xs: torch.Tensor) -> torch.Tensor:
        return F.linear(xs, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, xs: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(xs, xs.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    rows, width = xs.shape[0], HIDDEN // HEADS
    rotated = width // 2
    angles = torch.arange(rows)[:, None] / 10000.0 ** (torch.arange(0, rotated, 2) / rotated)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotary(xs: torch.Tensor) -> torch.Tensor:
        turning, rest = xs[..., :rotated], xs[..., rotated:]
        first, second = turning.chunk(2, -1)
        return torch.cat([turning * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)
    for layer in range(LAYERS):
        base = f"showo.model.layers.{layer}"
        normed = norm(f"{base}.input_layernorm", xs)
        heads = {
            name: linear(f"{base}.self_attn.{name}_proj", normed).view(rows, HEADS, width).transpose(0, 1)
            for name in "qkv"
        }
        q = rotary(norm(f"{base}.self_attn.q_layernorm", heads["q"]))
        k = rotary(norm(f"{base}.self_attn.k_layernorm", heads["k"]))
        seen = ((q @ k.mT / math.sqrt(width) + mask).softmax(-1) @ heads["v"]).transpose(0, 1).reshape(rows, HIDDEN)
        mlp = linear(f"{base}.mlp.fc2", F.gelu(linear(f"{base}.mlp.fc1", normed), approximate="tanh"))
        xs = xs + linear(f"{base}.self_attn.dense", seen) + mlp
    return linear("showo.lm_head", norm("showo.model.final_layernorm", xs))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(3)
    HERE.mkdir(parents=True, exist_ok=True)
    text, words = tokenizer()
    vocabulary = words + len(ADDED) + CODES + 1
    weights = decoder(vocabulary)
    showo = dict(_class_name="Showo", vocab_size=vocabulary, llm_vocab_size=words, codebook_size=CODES)
    showo |= dict(num_vq_tokens=TOKENS, mask_token_id=vocabulary - 1, w_clip_vit=True, llm_model_path="phi")
    write_json(HERE / "showo/config.json", showo)
    phi = dict(hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    write_json(HERE / "showo/phi/config.json", phi)
    save_file(weights, HERE / "showo/model.safetensors")

    image = picture()
    image.save(HERE / "picture.png")
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    square = processor.preprocess(image, do_rescale=False, do_normalize=False, data_format="channels_last")
    pixels = processor.preprocess(image, return_tensors="pt")["pixel_values"]
    states = vision_tower().vision_model(pixels, output_hidden_states=True).hidden_states
    features = states[-2][0, 1:]
    inner = F.gelu(F.linear(features, weights["mm_projector.0.weight"], weights["mm_projector.0.bias"]))
    projected = F.linear(inner, weights["mm_projector.2.weight"], weights["mm_projector.2.bias"])

    special = {token: text.token_to_id(token) for token in ADDED + ["<|endoftext|>"]}
    system = text.encode(SYSTEM).ids
    before = [special["<|mmu|>"], *system, special["<|soi|>"]]
    after = [special["<|eoi|>"], *text.encode(f"USER: {QUESTION} ASSISTANT:").ids]
    block = 1 + len(system) + 1 + features.shape[0]
    table = weights["showo.model.embed_tokens.weight"]

    def logits(reply: list[int]) -> torch.Tensor:
        xs = torch.cat([table[before], projected, table[after + reply]])
        visible = torch.ones(len(xs), len(xs)).tril().bool()
        visible[:, :block] = True
        return run(weights, xs, visible)

    reply: list[int] = []
    log_prob = torch.zeros(1)
    first = logits([])
    while len(reply) < LONGEST:
        last = logits(reply)[-1]
        token = int(last.argmax())
        log_prob += last.log_softmax(-1)[token]
        if token == special["<|endoftext|>"]:
            break
        reply.append(token)
    trace = {
        "square": torch.from_numpy(np.array(square["pixel_values"][0])),
        "features": features,
        "projected": projected,
        "ids": torch.tensor(before + [-1] * features.shape[0] + after),
        "logits": first,
        "reply": torch.tensor(reply),
        "log_prob": log_prob,
    }
    save_file({name: tensor.contiguous() for name, tensor in trace.items()}, HERE / "trace.safetensors")
    print(f"{len(before)} + {features.shape[0]} + {len(after)} rows, torch {torch.__version__}")
    print(repr(text.decode(reply)), float(log_prob))


if __name__ == "__main__":
    main()
