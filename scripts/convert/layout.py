"""The contract's datasets of a dense model: T = 1 track. Names, shapes, and the writing of a whole model."""

import math
import sys
import time
from dataclasses import dataclass, field

from .errors import BadInput
from .ptrt_file import ModelWriter
from .tensors import STORED, Tensor, slices

TRACK = "/tracks/00"


@dataclass
class Tokenizer:
    kind: str  # "huggingface" or "sentencepiece"
    model: bytes
    chat_template: str | None = None


@dataclass
class Dataset:
    """A dataset of the model file, made of one tensor, or of one for each expert."""

    path: str
    shape: tuple[int, ...]
    parts: list[Tensor] = field(default_factory=list)


def layer_path(layer: int, name: str) -> str:
    return f"{TRACK}/layers/{layer:03d}/{name}"


def ffn_kind(config: dict, layer: int) -> str:
    return config["ffn_pattern"][layer % len(config["ffn_pattern"])]


def layer_shapes(config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    """Datasets of a layer by name."""
    d, c = config["hidden_size"], config["head_dim"]
    q, kv = config["heads"] * c, config["kv_heads"] * c
    shapes: dict[str, tuple[int, ...]] = {}
    for place, infix in (("pre", ""), ("output", "output_"), ("post", "post_")):
        if place in config["norm_placement"]:
            shapes |= {f"attn_{infix}norm": (d,), f"ffn_{infix}norm": (d,)}
    shapes |= {"wq": (q, d), "wk": (kv, d), "wv": (kv, d), "wo": (d, q)}
    sizes = {"q": q, "k": kv, "v": kv, "o": d}
    shapes |= {f"b{which}": (sizes[which],) for which in config.get("attention_bias", [])}
    if config["qk_norm"]:
        shapes |= {"q_norm": (c,), "k_norm": (c,)}
    if ffn_kind(config, layer) == "dense":
        f = config["ffn_size"]
        return shapes | {"w_gate": (f, d), "w_up": (f, d), "w_down": (d, f)}
    e, f = config["moe"]["experts"], config["moe"]["ffn_size"]
    return shapes | {"router": (e, d), "experts/w_gate": (e, f, d), "experts/w_up": (e, f, d),
                     "experts/w_down": (e, d, f)}


def datasets(config: dict) -> list[Dataset]:
    """Every dataset that the config needs, in the order in which they are written."""
    d, vocab = config["hidden_size"], config["vocab_size"]
    found = [Dataset("/shared/embedding", (vocab, d))]
    if not config["tie_embeddings"]:
        found.append(Dataset("/shared/lm_head", (vocab, d)))
    found.append(Dataset("/shared/final_norm", (d,)))
    for layer in range(config["layers"]):
        found += [Dataset(layer_path(layer, name), shape) for name, shape in layer_shapes(config, layer).items()]
    return found


def check_parts(dataset: Dataset, where: str) -> None:
    """Refuses tensors that do not have the shapes that the config asks for."""
    wanted = dataset.shape if len(dataset.parts) == 1 else dataset.shape[1:]
    for part in dataset.parts:
        if part.shape != wanted:
            raise BadInput(f"{where}: tensor {part.name}: expected shape {list(wanted)}, as the configuration says, "
                           f"found {list(part.shape)}")


def stored_type(parts: list[Tensor], shape: tuple[int, ...], wanted: str) -> str:
    """The element type of a dataset. Norms and biases are never rounded: they cost nothing."""
    own = "float32" if any(part.dtype != parts[0].dtype for part in parts) else parts[0].dtype
    own = "float32" if own == "float64" else own
    if wanted == "float32" or (wanted != "keep" and len(shape) > 1):
        return wanted
    return own


def stored_bytes(wanted: list[Dataset], dtype: str) -> int:
    """Bytes of all datasets."""
    return sum(math.prod(each.shape) * STORED[stored_type(each.parts, each.shape, dtype)].itemsize for each in wanted)


class Progress:
    """One line on a terminal; nothing elsewhere."""

    def __init__(self, total: int):
        self._shown = sys.stderr.isatty()
        self._total, self._done, self._next = max(total, 1), 0, 0.0

    def add(self, elements: int) -> None:
        self._done += elements
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            print(f"\rConverting: {100 * self._done // self._total}% Completed", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def write_model(writer: ModelWriter, wanted: list[Dataset], dtype: str, tokenizer: Tokenizer | None) -> None:
    """Writes all datasets and the tokenizer."""
    progress = Progress(sum(math.prod(dataset.shape) for dataset in wanted))
    try:
        for dataset in wanted:
            kind = stored_type(dataset.parts, dataset.shape, dtype)
            with writer.dataset(dataset.path, dataset.shape, kind) as out:
                for part in dataset.parts:
                    for piece in slices(part, kind):
                        out.append(piece)
                        progress.add(piece.size)
        if tokenizer:
            writer.write_tokenizer(tokenizer.kind, tokenizer.model, tokenizer.chat_template)
    finally:
        progress.end()
