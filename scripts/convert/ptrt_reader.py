"""Reads model files (docs/MODEL_FILE.md) with h5py: the config, tensors one by one, the tokenizer.

What is read is checked: format and version, config, shape, type and checksum. Matrices in panels, unknown types and links
out of the model's folder are refused by name. The HDF5 library itself may crash on a damaged file without checksums of its
metadata; `ptrt inspect --verify` looks at one in a process of its own.
"""

import contextlib
import json
import math
from pathlib import Path

import h5py
import numpy as np

from .crc32c import crc32c
from .errors import BadInput, brief
from .layout import Tokenizer
from .pt_config import check_config, dataset_shapes
from .ptrt_links import LinkedFiles

VERSION = 1
GROUP = 32  # int8 elements that share a scale
FLOAT8 = "float8_e4m3fn"
LARGEST_SCALE = 2.0 ** 119  # of float8: every element is then finite in float32
PANELS = "ptrt pack --layout rows makes a plain file of it"


def text(attributes, name: str) -> str | None:
    """A string attribute, or None where it is missing. Raises TypeError or ValueError for anything else."""
    value = attributes.get(name)
    if isinstance(value, bytes):  # h5py gives strings of fixed length so
        value = value.decode("utf-8")
    if value is not None and not isinstance(value, str):
        raise TypeError(f"attribute \"{name}\": expected a string, found {brief(value)}")
    return value


def _once(pairs: list) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def float8_values() -> np.ndarray:
    """What each code of float8 (e4m3) stands for: a sign, four bits of exponent, three of fraction; two codes are NaN."""
    code = np.arange(128)
    exponent, fraction = code >> 3, code & 7
    half = np.where(exponent == 0, fraction / 512, np.ldexp(1 + fraction / 8, exponent - 7))
    half[127] = np.nan
    return np.concatenate([half, -half]).astype(np.float32)


def may_be_narrow(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices of products, which may be int8 or float8; not norms, biases, the router and the embedding."""
    return len(shape) > 1 and name.rsplit("/", 1)[1] not in ("router", "embedding")


class ModelReader:
    """An open model file. config: checked, with every optional key.

    bytes_read and datasets_read count what was read of tensors, scales included.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._files = LinkedFiles(path)
        self.bytes_read = self.datasets_read = 0
        try:
            self.config = self._read_config()
            self.shapes = dataset_shapes(self.config)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    @property
    def files_opened(self) -> list[Path]:
        return self._files.opened

    @contextlib.contextmanager
    def _reading(self, what: str):
        """What the HDF5 library says of a damaged file is bad input; it has no error of its own for that."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{self.path}: {what} cannot be read: {error}") from None

    def _read_config(self) -> dict:
        with self._reading("its root attributes"):
            values = dict(self._files.main.attrs)
            format_name = text(values, "format")
        if format_name != "ptrt":
            raise BadInput(f"{self.path}: no model file: root attribute \"format\" is not \"ptrt\"")
        version = values.get("format_version")
        if not isinstance(version, (int, np.integer)) or version != VERSION:
            raise BadInput(f"{self.path}: root attribute \"format_version\": expected {VERSION}, found {version}")
        if "config" not in values:
            raise BadInput(f"{self.path}: no model file: root attribute \"config\" is missing")
        try:
            content = text(values, "config").removeprefix("\ufeff")  # a mark of the byte order, which the program skips too
            return check_config(json.loads(content, object_pairs_hook=_once))
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"{self.path}: config is no JSON object: {error}") from None
        except BadInput as error:
            raise BadInput(f"{self.path}: {error}") from None

    def _fail(self, name: str, message: str):
        raise BadInput(f"{self.path}: dataset {name}{message}")

    def _data(self, name: str, shape: tuple[int, ...]) -> tuple[h5py.Dataset, np.ndarray]:
        """A dataset and all of its elements, which are numbers, and whose shape and checksum are right."""
        with self._reading(f"dataset {name}"):
            return self._checked(name, shape)

    def _plain(self, name: str) -> h5py.Dataset:
        """The dataset of that name, if ptrt's own layouts do not hide its elements."""
        dataset = self._files.find(name)
        if dataset is None:
            self._fail(name, " is missing; the config asks for it")
        if not isinstance(dataset, h5py.Dataset):
            self._fail(name, ": it is a group")
        layout = text(dataset.attrs, "layout")
        if layout not in (None, "rows"):
            self._fail(name, f": layout {brief(layout)} is for ptrt alone: {PANELS}")
        return dataset

    def _checked(self, name: str, shape: tuple[int, ...]) -> tuple[h5py.Dataset, np.ndarray]:
        dataset = self._plain(name)
        if dataset.shape != shape:
            self._fail(name, f": expected shape {list(shape)}, found {list(dataset.shape or ())}")
        properties = dataset.id.get_create_plist()
        if properties.get_layout() == h5py.h5d.VIRTUAL or properties.get_external_count():
            self._fail(name, " has its data in other files, which are not read")
        if dataset.dtype.kind not in "fiu":
            self._fail(name, f": elements {dataset.dtype}, which are no numbers")
        values = dataset[()]
        self.bytes_read, self.datasets_read = self.bytes_read + values.nbytes, self.datasets_read + 1
        crc = dataset.attrs.get("crc32c")
        if crc is not None and not isinstance(crc, np.uint32):
            self._fail(name, f": attribute \"crc32c\": expected an unsigned 32-bit integer, found {crc!r}")
        if crc is not None and crc != crc32c(values):
            self._fail(name, " does not match its crc32c: the data is damaged")
        return dataset, values

    def tensor(self, name: str) -> tuple[np.ndarray, str]:
        """A dataset that the config asks for, and its type: float32, float16 or bfloat16, whose elements are uint16.

        int8 and float8 are given as the float32 values that they stand for.
        """
        dataset, values = self._data(name, self.shapes[name])
        stored = self._type(name, dataset)
        if stored == "int8":
            return self._widened_int8(name, values), "float32"
        if stored == FLOAT8:
            return self._widened_float8(name, values), "float32"
        return values.astype(values.dtype.newbyteorder("="), copy=False), stored

    def _type(self, name: str, dataset: h5py.Dataset) -> str:
        with self._reading(f"dataset {name}"):
            kind, dtype = dataset.dtype.newbyteorder("="), text(dataset.attrs, "dtype")
        narrow = may_be_narrow(name, self.shapes[name])
        if kind in (np.float32, np.float16) or (kind == np.int8 and narrow):
            return kind.name
        if (kind == np.uint16 and dtype == "bfloat16") or (kind == np.uint8 and dtype == FLOAT8 and narrow):
            return dtype
        self._fail(name, f": elements {kind} with dtype = {brief(dtype)}: expected float32, float16, bfloat16 as uint16"
                   f"{f', int8 or {FLOAT8} as uint8' if narrow else ''}")

    def _widened_int8(self, name: str, values: np.ndarray) -> np.ndarray:
        """int8 as float32, which holds each product of element and scale exactly."""
        width = values.shape[-1]
        dataset, scale = self._data(f"{name}.scale", (*values.shape[:-1], math.ceil(width / GROUP)))
        if dataset.dtype.newbyteorder("=") != np.float16:
            self._fail(f"{name}.scale", f": expected float16, found {dataset.dtype}")
        scale = scale.astype(np.float32)
        if not np.all(np.isfinite(scale) & (scale >= 0)):
            self._fail(f"{name}.scale", ": expected finite scales of 0 or more")
        wide = values.astype(np.float32)
        for group in range(scale.shape[-1]):
            wide[..., group * GROUP:(group + 1) * GROUP] *= scale[..., group:group + 1]
        return wide

    def _widened_float8(self, name: str, codes: np.ndarray) -> np.ndarray:
        """float8 as float32: exact where a scale is a power of two, else rounded."""
        if np.any(codes & 0x7F == 0x7F):
            self._fail(name, ": float8 elements that are NaN")
        dataset, scale = self._data(f"{name}.scale", codes.shape[:-1])
        if dataset.dtype.newbyteorder("=") != np.float32:
            self._fail(f"{name}.scale", f": expected float32, found {dataset.dtype}")
        scale = scale.astype(np.float32)
        if not np.all((scale >= 0) & ~np.signbit(scale) & (scale <= LARGEST_SCALE)):
            self._fail(f"{name}.scale", ": expected scales from 0 to 2^119")
        return float8_values()[codes] * scale[..., None]

    def stored_type(self, name: str) -> str:
        """The type of the elements of a dataset that the config asks for, as tensor() says, or "int8" or "float8_e4m3fn".

        Reads no data.
        """
        with self._reading(f"dataset {name}"):
            dataset = self._plain(name)
        return self._type(name, dataset)

    def tokenizer(self) -> Tokenizer | None:
        """kind "bytes" has no model. None where the file takes token ids only."""
        with self._reading("/tokenizer"):
            group = self._files.find("/tokenizer")
            if group is None:
                return None
            kind, chat_template = text(group.attrs, "kind"), text(group.attrs, "chat_template")
        if kind not in ("bytes", "sentencepiece", "huggingface"):
            raise BadInput(f"{self.path}: /tokenizer: expected kind \"bytes\", \"sentencepiece\" or \"huggingface\", "
                           f"found {brief(kind)}")
        model = None
        if kind != "bytes":
            with self._reading("/tokenizer/model"):
                dataset = self._files.find("/tokenizer/model")
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.uint8 or dataset.ndim != 1:
                self._fail("/tokenizer/model", ": expected uint8 of one dimension")
            model = self._data("/tokenizer/model", dataset.shape)[1].tobytes()
        return Tokenizer(kind, model, chat_template)
