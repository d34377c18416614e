"""Tensors that are read in slices, and the conversion of their elements.

A tensor is a list of rows: its last dimension is a row, and a vector is one row. Elements are float32, float16, float64
or, as uint16, bfloat16.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import BadInput

SLICE_BYTES = 16 << 20  # of a slice in memory, as float32
STORED = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
READ = {**STORED, "float64": np.dtype("<f8")}


@dataclass
class Tensor:
    """name is for messages. read(first, last) gives these rows as an array [rows, row length]."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], np.ndarray]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        return self.shape[-1]

    def part(self, first: int, shape: tuple[int, ...]) -> "Tensor":
        """The tensor of this shape that begins at a row."""
        return Tensor(self.name, shape, self.dtype, lambda a, b: self.read(first + a, first + b))


def mapped(path, offset: int, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor in a file. Each slice is mapped for itself, so that its pages go when it goes."""
    length = shape[-1]

    def read(first: int, last: int) -> np.ndarray:
        if first == last or length == 0:
            return np.empty((last - first, length), READ[dtype])
        return np.memmap(path, READ[dtype], "r", offset + first * length * READ[dtype].itemsize, (last - first, length))

    return Tensor(name, shape, dtype, read)


def plus_one(tensor: Tensor) -> Tensor:
    """1 + the tensor, in float32: bfloat16 would round it."""
    return Tensor(tensor.name, tensor.shape, "float32",
                  lambda a, b: np.float32(1) + to_float32(tensor.read(a, b), tensor.dtype))


def with_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs of neighbours (2j, 2j + 1) to halves (j, j + half), as the contract has them."""
    size = tensor.shape[0] // heads
    columns = math.prod(tensor.shape[1:])

    def all_rows(first: int, last: int) -> np.ndarray:
        """Rows of the tensor as [shape[0], columns]: a vector has a row for each element."""
        if len(tensor.shape) == 1:
            return tensor.read(0, 1).reshape(-1, 1)[first:last]
        return tensor.read(first, last)

    def read(first: int, last: int) -> np.ndarray:
        if len(tensor.shape) == 1:
            first, last, asked = 0, tensor.shape[0], (first, last)
        begin, end = first // size, -(-last // size)
        pairs = all_rows(begin * size, end * size).reshape(end - begin, size // 2, 2, columns)
        halves = pairs.swapaxes(1, 2).reshape(-1, columns)
        if len(tensor.shape) == 1:
            return halves.reshape(1, -1)[asked[0]:asked[1]]
        return halves[first - begin * size:last - begin * size]

    return Tensor(tensor.name, tensor.shape, tensor.dtype, read)


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even, as uint16; what is not a number stays so."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded.astype(np.uint16)


def converted(values: np.ndarray, dtype: str, wanted: str, name: str) -> np.ndarray:
    """Elements of one type as another; name is for messages."""
    if dtype == wanted:
        return values
    wide = to_float32(values, dtype)
    if wanted == "float32":
        return wide
    if wanted == "bfloat16":
        return to_bfloat16(wide)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    if np.any(np.isinf(narrow) & np.isfinite(wide)):
        raise BadInput(f"{name}: values beyond 65504, the range of float16; choose --dtype bfloat16 or float32")
    return narrow


def slices(tensor: Tensor, wanted: str) -> Iterator[np.ndarray]:
    """The tensor in the wanted type, a slice of its rows at a time."""
    step = max(1, SLICE_BYTES // max(1, 4 * tensor.row_length))
    for first in range(0, tensor.rows, step):
        last = min(first + step, tensor.rows)
        yield converted(tensor.read(first, last), tensor.dtype, wanted, tensor.name)
