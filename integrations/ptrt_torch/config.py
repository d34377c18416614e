"""The configuration of a model file, and which tracks a rank holds."""

from .convert.errors import BadInput
from .convert.ptrt_reader import ModelReader


def read_config(path) -> dict:
    """The config in a model file, checked, with every optional key (docs/SPEC.md, The file). Reads no weights."""
    with ModelReader(path) as reader:
        return reader.config


def main_type(path) -> str:
    """The type of a model file's embedding, "float32", "float16" or "bfloat16": that of most of its weights, int8 and float8 ones apart."""
    with ModelReader(path) as reader:
        return reader.stored_type("/shared/embedding")


def tracks_of_rank(config: dict, ranks: int, rank: int) -> range:
    """The tracks of one of `ranks` ranks: neighbours, equally many on each."""
    tracks = config["tracks"]
    if tracks % ranks:
        fits = ", ".join(str(number) for number in range(1, tracks + 1) if tracks % number == 0)
        raise BadInput(f"{tracks} tracks cannot be divided among {ranks} ranks; {fits} fit")
    return range(rank * tracks // ranks, (rank + 1) * tracks // ranks)
