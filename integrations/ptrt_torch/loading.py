"""Which parameter of a folded model a dataset fills, and where in it."""

from typing import NamedTuple

import torch

from .convert.errors import BadInput
from .convert.layout import layer_shapes

LARGEST_HALF = 65504


class Place(NamedTuple):
    """The part of a parameter [slots, ...] that begins at `first` in the dimension `dim`, which has `size` elements."""

    module: torch.nn.Module
    attribute: str
    dim: int = 0
    first: int = 0
    size: int | None = None  # None: the dataset's own


# Datasets of a layer that share a parameter: its module, and its parts in their order.
MERGED = {"wqkv": ("wq", "wk", "wv"), "w_gate_up": ("w_gate", "w_up")}
BIASES = {"wqkv": ("bq", "bk", "bv"), "wo": ("bo",)}


def layer_place(layer: torch.nn.Module, name: str, shapes: dict) -> Place:
    """shapes: those of the layer's datasets, by name."""
    folder, _, last = name.rpartition("/")
    owner = layer.experts if folder else layer
    if name == "router":
        return Place(layer, name)
    if name.endswith("norm"):
        return Place(getattr(layer, name), "weight")
    for module, parts in BIASES.items():
        if name in parts:
            sizes = [shapes["w" + part[1:]][0] for part in parts]
            at = parts.index(name)
            return Place(getattr(layer, module), "bias", 0, sum(sizes[:at]), sum(sizes))
    module, parts = next((entry for entry in MERGED.items() if last in entry[1]), (last, (last,)))
    dim = 1 if folder else 0  # of experts [experts, rows, ..]
    sizes = [shapes[f"{folder}/{part}" if folder else part][dim] for part in parts]
    at = parts.index(last)
    place = (owner, module) if folder else (getattr(layer, module), "weight")
    return Place(*place, dim, sum(sizes[:at]), sum(sizes))


def place_of(model: torch.nn.Module, name: str) -> Place:
    """name: a dataset's, e.g. /tracks/03/layers/000/wq."""
    parts = name.strip("/").split("/")
    if parts[0] == "shared":
        return Place(model.final_norm, "weight") if parts[1] == "final_norm" else Place(model, parts[1])
    if parts[2] == "blocks":
        return Place(getattr(model, parts[4])[int(parts[3])], "weight")
    return layer_place(model.layers[int(parts[3])], "/".join(parts[4:]), layer_shapes(model.config, int(parts[3])))


def check_range(values: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    """Raises BadInput where rounding a dataset to this type would make infinities of its values."""
    if dtype == torch.float16 and values.dtype != torch.float16 and values.abs().max() > LARGEST_HALF:
        raise BadInput(f"dataset {name} has values beyond {LARGEST_HALF}, the range of float16: take bfloat16 or float32")


def read_head(reader, dtype: torch.dtype) -> torch.Tensor:
    """The head [vocab_size, d] of an engine that holds it itself (FoldedModel(lm_head=False)), checked for this type."""
    name = "/shared/embedding" if reader.config["tie_embeddings"] else "/shared/lm_head"
    values = reader.tensor(name)
    check_range(values, dtype, name)
    return values


@torch.no_grad()
def fill(place: Place, slot: int, slots: int, values: torch.Tensor, name: str) -> torch.nn.Parameter:
    """Puts a dataset of one slot into its parameter."""
    parameter = getattr(place.module, place.attribute)
    check_range(values, parameter.dtype, name)
    shape = list(values.shape)
    shape[place.dim] = place.size or shape[place.dim]
    part = parameter.data.view(slots, *shape)[slot]
    part.narrow(place.dim, place.first, values.shape[place.dim]).copy_(values)
    return parameter


@torch.no_grad()
def load(model: torch.nn.Module, reader) -> set[str]:
    """Fills every parameter from a ShardReader; returns their names."""
    if reader.tracks != model.tracks or reader.config != model.config:
        raise ValueError(f"a reader of tracks {reader.tracks} cannot fill a model of tracks {model.tracks}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    empty = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for layer in model.layers:
        bias = getattr(layer.wqkv, "bias", None)
        if bias is not None:  # q, k or v may have none
            bias.zero_()
            empty[names[id(bias)]] = sum(len(model.tracks) * width for which, width in zip("qkv", layer.widths)
                                         if which in model.config["attention_bias"])
    for dataset in reader.names():
        if dataset == "/shared/lm_head" and not hasattr(model, "lm_head"):
            continue
        shared = dataset.startswith("/shared/")
        slot, slots = (0, 1) if shared else (int(dataset.split("/")[2]) - model.tracks.start, len(model.tracks))
        values = reader.tensor(dataset)
        empty[names[id(fill(place_of(model, dataset), slot, slots, values, dataset))]] -= values.numel()
    left = sorted(name for name, count in empty.items() if count)
    if left:
        raise BadInput(f"{len(left)} parameters are not filled by the model file, the first {left[0]}")
    return set(names.values())
