"""How the benches call `hermesflow bench`."""

import pathlib

# The judges that need no weights: a bench asks none of them.
SETTINGS = "pair: { similarity: lexical }\nask: { writer: template }\nanswer: { matcher: lexical }\n"


def model_settings(folder: pathlib.Path, device: str, dtype: str) -> list[str]:
    """The keys of a model in a folder with showo/, vq/ and tokenizer.json."""
    paths = {"showo": "showo", "vq": "vq", "tokenizer": "tokenizer.json"}
    return [*(f"model.{key}={folder / path}" for key, path in paths.items()), f"model.device={device}", f"model.dtype={dtype}"]
