"""Records what PyTorch makes of sentences, for the test that compares our sentence encoder with real weights.

    python tools/record/minilm.py FOLDER

FOLDER is all-MiniLM-L6-v2 as published (sentence-transformers). Needs torch, transformers and safetensors. Reads
crates/hermesflow-score/tests/minilm/sentences.json, writes embeddings.safetensors beside it: `embeddings` [n, 384],
f32: mean of the last states over the tokens (at most 256), divided by its length.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

LONGEST = 256


def main(folder: str) -> None:
    here = pathlib.Path(__file__).resolve().parents[2] / "crates/hermesflow-score/tests/minilm"
    sentences = json.loads((here / "sentences.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.no_grad():
        # One by one: no padding, so nothing depends on what stands in the same batch.
        for sentence in sentences:
            ids = tokenizer(sentence.strip(), truncation=True, max_length=LONGEST, return_tensors="pt")
            states = model(**ids).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(states.mean(0), dim=0))
    save_file({"embeddings": torch.stack(rows)}, here / "embeddings.safetensors")
    print(f"{len(rows)} sentences, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
