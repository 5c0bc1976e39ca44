"""Our judges of captions and replies against the same models in PyTorch, record by record in one run.

    cargo build --release -p hermesflow-score --example judge_times
    python benches/judges.py MINILM [--records 8] [--threads 2] [--json FILE]

Needs torch and transformers; MINILM is a folder of all-MiniLM-L6-v2 (its vocabulary serves all models). Two models of the
published sizes are made with random weights: a BERT-large and an MPNet-base. A record is

- similarity: a true caption and 10 candidates;
- matching: the replies to 8 questions about 16 images.

PyTorch does each in two ways: `one by one`, as the released scripts do (each pair of captions, each question on its own),
and `batched` (all distinct texts of a record in padded batches, sorted by length), as a careful user would. Ours packs the
distinct texts without padding and remembers embeddings by text from record to record. The order of the three changes
with every record; figures are medians. Leave the machine alone meanwhile.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, MPNetConfig, MPNetModel, MPNetTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "brown", "grey"]
THINGS = ["dog", "cat", "car", "tree", "house", "boat", "bird", "chair", "lamp", "horse", "bench", "kite"]


def make_models(minilm: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    torch.manual_seed(0)
    bert, mpnet = folder / "bert-large", folder / "mpnet-base"
    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    BertModel(config).save_pretrained(bert)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(bert)
    words = sorted(AutoTokenizer.from_pretrained(minilm).get_vocab().items(), key=lambda item: item[1])
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["<s>", "<pad>", "</s>", "<unk>", *(word for word, _ in words), "<mask>"]))
    tokenizer = MPNetTokenizerFast(vocab_file=str(vocabulary), unk_token="[UNK]")
    MPNetModel(MPNetConfig(vocab_size=len(tokenizer))).save_pretrained(mpnet)
    tokenizer.save_pretrained(mpnet)
    return bert, mpnet


def caption_records(count: int) -> list[dict]:
    lines = (ROOT / "crates/hermesflow-score/tests/template/captions.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    chosen = random.Random(1)
    return [{"reference": (all := chosen.sample(captions, 11))[0], "candidates": all[1:]} for _ in range(count)]


def reply_records(count: int) -> list[dict]:
    """Replies of one model to 8 questions about 16 images: mostly the choice alone, else a sentence around it. Greedy
    replies to one question repeat, and words such as yes, two or red come back in every record."""
    chosen = random.Random(2)
    records = []
    for _ in range(count):
        replies = []
        for _ in range(8):
            words, thing = chosen.choice([COLOURS, THINGS]), chosen.choice(THINGS)
            sentence = f"The {thing} in the picture, next to a {chosen.choice(COLOURS)} {chosen.choice(THINGS)}, is "
            choices = chosen.choice([["yes", "no"], chosen.sample(words, 4)])
            for _ in range(16):
                meant = chosen.choice(choices)
                replies.append([meant if chosen.random() < 0.7 else sentence + meant, choices])
        chosen.shuffle(replies)
        records.append({"replies": replies})
    return records


class Torch:
    def __init__(self, folder: pathlib.Path, first: bool):
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        self.first = first

    @torch.no_grad()
    def embed(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=384, return_tensors="pt")
        states = self.model(**ids).last_hidden_state
        if self.first:
            return states[:, 0]
        mask = ids["attention_mask"].unsqueeze(-1).float()
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def embed_all(self, texts: list[str], batch: int = 32) -> dict[str, torch.Tensor]:
        distinct = sorted(set(texts), key=len)
        found = {}
        for start in range(0, len(distinct), batch):
            part = distinct[start : start + batch]
            found.update(zip(part, self.embed(part)))
        return found


def similarity_one_by_one(model: Torch, record: dict) -> list[float]:
    pairs = ((record["reference"], candidate) for candidate in record["candidates"])
    return [torch.cosine_similarity(model.embed([a]), model.embed([b])).item() for a, b in pairs]


def similarity_batched(model: Torch, record: dict) -> list[float]:
    found = model.embed_all([record["reference"], *record["candidates"]])
    return [torch.cosine_similarity(found[record["reference"]], found[c], dim=0).item() for c in record["candidates"]]


def matching_one_by_one(model: Torch, record: dict) -> list[int]:
    return [int((model.embed(choices) @ model.embed([reply])[0]).argmax()) for reply, choices in record["replies"]]


def matching_batched(model: Torch, record: dict) -> list[int]:
    found = model.embed_all([text for reply, choices in record["replies"] for text in (reply, *choices)])
    return [int(torch.stack([found[c] @ found[reply] for c in choices]).argmax()) for reply, choices in record["replies"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm")
    parser.add_argument("--records", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        folders = make_models(arguments.minilm, pathlib.Path(folder))
        bert, mpnet = Torch(folders[0], first=True), Torch(folders[1], first=False)
        ours = subprocess.Popen(
            [ROOT / "target/release/examples/judge_times", *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # As the program sets them for itself.
            env={
                "RAYON_NUM_THREADS": str(arguments.threads),
                "CANDLE_NUM_THREADS": "1",
                "MIMALLOC_PURGE_DELAY": "5000",
            },
        )
        assert ours.stdout.readline().strip() == "ready"

        def ask(record: dict) -> tuple[float, list]:
            ours.stdin.write(json.dumps(record) + "\n")
            ours.stdin.flush()
            answer = json.loads(ours.stdout.readline())
            return answer["seconds"], answer["said"]

        def timed(work, *inputs) -> tuple[float, list]:
            start = time.perf_counter()
            said = work(*inputs)
            return time.perf_counter() - start, said

        result = {}
        stages = [
            ("similarity", bert, similarity_one_by_one, similarity_batched, caption_records),
            ("matching", mpnet, matching_one_by_one, matching_batched, reply_records),
        ]
        for name, model, one_by_one, batched, records in stages:
            ways = {
                "ours": ask,
                "one by one": lambda record, work=one_by_one, model=model: timed(work, model, record),
                "batched": lambda record, work=batched, model=model: timed(work, model, record),
            }
            seconds, largest, differing = {way: [] for way in ways}, 0.0, 0
            for number, record in enumerate(records(arguments.records + 1)):
                order = list(ways)[number % 3 :] + list(ways)[: number % 3]
                took, said = {}, {}
                for way in order:
                    took[way], said[way] = ways[way](record)
                for other in ("one by one", "batched"):
                    if name == "similarity":
                        largest = max(largest, *(abs(a - b) for a, b in zip(said["ours"], said[other])))
                    else:
                        differing += sum(a != b for a, b in zip(said["ours"], said[other]))
                if number > 0:  # the first record warms up
                    for way in ways:
                        seconds[way].append(took[way])
            medians = {way: statistics.median(values) for way, values in seconds.items()}
            result[name] = {"seconds": medians, "largest difference": largest, "choices that differ": differing}
            print(f"{name}: ours {medians['ours'] * 1e3:.0f} ms a record; PyTorch", end=" ")
            others = (f"{way} {medians[way] * 1e3:.0f} ms ({medians[way] / medians['ours']:.2f}x)" for way in ("one by one", "batched"))
            print(", ".join(others), f"; differences {largest:.1e}, {differing} choices")
        ours.stdin.close()
        ours.wait()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
