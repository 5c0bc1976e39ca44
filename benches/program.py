"""How the benches call `hermesflow bench`."""

import pathlib

# The judges that need no weights: a bench asks none of them.
SETTINGS = "pair: { similarity: lexical }\nask: { writer: template }\nanswer: { matcher: lexical }\n"


def model_settings(folder: pathlib.Path, device: str, dtype: str) -> list[str]:
    """The keys of a model in a folder with showo/, vq/ and tokenizer.json, or in one whose config.json says what it is."""
    several = {"checkpoint": "showo", "vq": "vq", "tokenizer": "tokenizer.json"}
    paths = {"checkpoint": ""} if (folder / "config.json").exists() else several
    return [*(f"model.{key}={folder / path}" for key, path in paths.items()), f"model.device={device}", f"model.dtype={dtype}"]
