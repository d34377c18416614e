"""Writes model files (docs/MODEL_FILE.md) with h5py, a slice at a time.

A file has a temporary name beside its final one until it is whole. String attributes have a fixed length, metadata bear
checksums (the format of HDF5 1.8), and each dataset bears the CRC-32C of its bytes.
"""

import json
import math
import os
from pathlib import Path

import h5py
import numpy as np

from .crc32c import crc32c
from .errors import BadInput, ConvertError, unfinished
from .tensors import STORED


def _create_file(path: Path) -> h5py.File:
    """A new file without times in it, so that the same input gives the same bytes."""
    creation, access = h5py.h5p.create(h5py.h5p.FILE_CREATE), h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    creation.set_obj_track_times(False)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_sieve_buf_size(0)  # a write fails at once on a full disk, not when an object is closed
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access))


def _group(file: h5py.File, path: str) -> h5py.Group:
    """The group of this path, made where it is missing, without times too."""
    creation = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    creation.set_obj_track_times(False)
    group = file["/"]
    for name in path.strip("/").split("/"):
        if name not in group:
            h5py.h5g.create(group.id, name.encode(), gcpl=creation)
        group = group[name]
    return group


def set_text(holder, name: str, text: str) -> None:
    """A string attribute of fixed length."""
    data = text.encode("utf-8")
    holder.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", max(len(data), 1)))


class DatasetWriter:
    """Appends pieces to a dataset, from its first element to its last, and ends with its checksum."""

    def __init__(self, file: h5py.File, path: str, shape: tuple[int, ...], dtype: str):
        folder, name = path.rsplit("/", 1)
        self._dataset = _group(file, folder).create_dataset(name, shape, STORED[dtype])
        # The same elements as rows: a piece is a run of rows, and a matrix of experts has them one after the other.
        self._shape, self._next, self._crc = shape, 0, 0
        if dtype == "bfloat16":
            set_text(self._dataset, "dtype", "bfloat16")

    def append(self, piece: np.ndarray) -> None:
        """A piece holds whole rows of the last dimension."""
        piece = np.ascontiguousarray(piece)
        length = self._shape[-1]
        self._crc = crc32c(piece, self._crc)
        if len(self._shape) == 1:
            self._dataset[self._next:self._next + piece.size] = piece.reshape(-1)
            self._next += piece.size
            return
        rows = piece.reshape(-1, length)
        if len(self._shape) == 2:
            self._dataset[self._next:self._next + len(rows)] = rows
            self._next += len(rows)
            return
        while len(rows):  # [experts, rows, length]
            matrix, first = divmod(self._next, self._shape[1])
            fits = min(len(rows), self._shape[1] - first)
            self._dataset[matrix, first:first + fits] = rows[:fits]
            self._next += fits
            rows = rows[fits:]

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            whole = self._shape[0] if len(self._shape) == 1 else math.prod(self._shape[:-1])
            if self._next != whole:
                raise ConvertError(f"{self._dataset.name}: {self._next} of {whole} rows were written")
            self._dataset.attrs["crc32c"] = np.uint32(self._crc)


class PendingFile:
    """An HDF5 file that appears under its name by a rename."""

    def __init__(self, path: Path):
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        unfinished.add(self.temporary)
        try:
            self.file = _create_file(self.temporary)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise BadInput(f"{path}: cannot create: {reason}") from None

    def finish(self) -> None:
        self.file.flush()
        self.file.close()
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())

    def publish(self) -> None:
        os.replace(self.temporary, self.path)
        unfinished.discard(self.temporary)

    def discard(self, close: bool) -> None:
        """close: whether the library may write what it still has in memory."""
        if close:
            self.file.close()
        self.temporary.unlink(missing_ok=True)
        unfinished.discard(self.temporary)


def _check_output(path: Path, inputs: list[Path]) -> None:
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise BadInput(f"{path}: cannot create: it is {'a directory' if path.is_dir() else 'no regular file'}")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: cannot create: no folder {path.parent}")
    for source in inputs:
        if path.exists() and source.exists() and os.path.samefile(path, source):
            raise BadInput(f"{path}: the output would overwrite an input, {source}")


def _check_space(path: Path, needed: int) -> None:
    """A full disk is better found now than at the end."""
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < needed:
        raise ConvertError(f"{path}: the model has {needed / 2**20:.1f} MiB, but the disk has {free / 2**20:.1f} MiB "
                           "free")


class ModelWriter:
    """A model file, with split one more for each track. Nothing appears under its final name before commit()."""

    def __init__(self, path: str | Path, config: dict, inputs: list[Path] = (), split: bool = False, needed: int = 0):
        """inputs: files that must not be overwritten. needed: bytes that the disk must have."""
        main = Path(os.path.realpath(path))
        names = [main]
        if split:
            names += [main.with_name(f"{main.stem}.track{track:02d}.h5") for track in range(config["tracks"])]
        for name in names:
            _check_output(name, list(inputs))
        _check_space(main, needed)
        self._files: list[PendingFile] = []
        try:
            for name in names:
                self._files.append(PendingFile(name))
            root = self._files[0].file
            set_text(root, "format", "ptrt")
            root.attrs["format_version"] = 1
            set_text(root, "config", json.dumps(config))
            for track, name in enumerate(names[1:]):
                _group(root, "/tracks")
                root[f"/tracks/{track:02d}"] = h5py.ExternalLink(name.name, f"/tracks/{track:02d}")
        except BaseException:
            self.discard()
            raise

    def dataset(self, path: str, shape: tuple[int, ...], dtype: str) -> DatasetWriter:
        """path as in the contract, e.g. /tracks/00/layers/000/wq; dtype float32, float16 or bfloat16."""
        parts = path.split("/")
        at = 1 + int(parts[2]) if len(self._files) > 1 and parts[1] == "tracks" else 0
        return DatasetWriter(self._files[at].file, path, shape, dtype)

    def write_tokenizer(self, kind: str, model: bytes | None, chat_template: str | None = None) -> None:
        group = _group(self._files[0].file, "/tokenizer")
        set_text(group, "kind", kind)
        if chat_template:
            set_text(group, "chat_template", chat_template)
        if model is not None:
            data = np.frombuffer(model, np.uint8)
            group.create_dataset("model", data=data).attrs["crc32c"] = np.uint32(crc32c(data))

    def commit(self) -> None:
        for file in self._files:
            file.finish()
        while self._files:  # the main file last: it makes the others a model
            self._files[-1].publish()
            self._files.pop()

    def discard(self, close: bool = True) -> None:
        for file in self._files:
            file.discard(close)
        if close:
            self._files = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        # What the library could not write it would try to write again at each close, and complain at length: nothing is
        # closed, and the exception keeps all objects alive. run() then ends the process.
        broken = isinstance(error, (OSError, RuntimeError)) and not getattr(error, "filename", None)
        self.discard(close=not broken)
        if broken:
            raise ConvertError(f"the model could not be written: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the system said, of an error of the HDF5 library: its text has it between others."""
    number = getattr(error, "errno", None)
    if number:
        return os.strerror(number)
    text = str(error)
    start = text.find("error message = '")
    return text[start + 17:].split("'")[0] if start >= 0 else text.splitlines()[0][:200]
