"""Checkpoints in the safetensors format, in one file or several: headers by json, data by numpy's memory map."""

import json
import math
import os
import struct
from pathlib import Path

from .errors import BadInput, brief
from .tensors import READ, Tensor, mapped

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_LARGEST_HEADER = 100_000_000  # bytes, as the format says


def load_json(path: Path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: no valid JSON: {error}") from None


def load_object(path: Path) -> dict:
    value = load_json(path)
    if not isinstance(value, dict):
        raise BadInput(f"{path}: expected a JSON object, found {brief(value)}")
    return value


def _entry(path: Path, name: str, entry, data: int, size: int) -> Tensor:
    where = f"{path}: tensor {name}"
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        plain = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        plain = False
    if not plain:
        raise BadInput(f"{where}: damaged header: {brief(entry)}")
    if kind not in _DTYPES:
        raise BadInput(f"{where}: elements of type {brief(kind)}; F32, F16, BF16 and F64 can be converted")
    dtype = _DTYPES[kind]
    if end - begin != math.prod(shape) * READ[dtype].itemsize:
        raise BadInput(f"{where}: {end - begin} bytes do not fit the shape {shape} of {kind}")
    if data + end > size:
        raise BadInput(f"{path}: truncated: {size} bytes, but tensor {name} ends at {data + end}")
    return mapped(path, data + begin, name, tuple(shape) or (1,), dtype)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LARGEST_HEADER:
            raise BadInput(f"{path}: no safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise BadInput(f"{path}: truncated: {size} bytes, but its header ends at {8 + length}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise BadInput(f"{path}: no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    return {name: _entry(path, name, entry, 8 + length, size) for name, entry in header.items()}


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of a checkpoint's folder by name, and its files."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            torch = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
            hint = f" ({torch[0]} is no safetensors: save the model again with transformers 5)" if torch else ""
            raise BadInput(f"{folder}: neither model.safetensors nor model.safetensors.index.json{hint}")
        return read_file(single), [single]
    weight_map = load_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BadInput(f"{index}: no weight_map")
    shards = {}
    for shard in sorted(set(weight_map.values())):
        if os.path.basename(shard) != shard:
            raise BadInput(f"{index}: shard {brief(shard)} lies in another folder")
        if not (folder / shard).is_file():
            raise BadInput(f"{folder / shard}: missing shard, named by {index.name}")
        shards[shard] = read_file(folder / shard)
    tensors = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise BadInput(f"{folder / shard}: tensor {name} is missing, which {index.name} says is there")
        tensors[name] = shards[shard][name]
    return tensors, [index, *(folder / shard for shard in shards)]
