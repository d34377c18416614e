"""One rank's reading of a model file: shared datasets and those of its own tracks, as tensors."""

import numpy as np
import torch

from .convert.ptrt_reader import ModelReader


class ShardReader:
    """tensor() reads one dataset and checks its shape, type and crc32c; the file of a split track is opened with its first one.

    int8 and float8 matrices are given as the float32 values that they stand for: whoever takes them rounds them to the type
    it computes in, so they save disk, not memory. Matrices in panels (`ptrt pack`) are refused: their layout is that of
    ptrt's CPU products, and `ptrt pack --layout rows` writes a plain file.
    """

    def __init__(self, path, tracks: range):
        self._file = ModelReader(path)
        self.tracks = tracks
        if tracks.step != 1 or not 0 <= tracks.start < tracks.stop <= self.config["tracks"]:
            self.close()
            raise ValueError(f"{tracks} are not some of {self.config['tracks']} tracks")

    @property
    def config(self) -> dict:
        return self._file.config

    @property
    def bytes_read(self) -> int:
        """Of datasets, scales included."""
        return self._file.bytes_read

    @property
    def datasets_read(self) -> int:
        return self._file.datasets_read

    @property
    def files_opened(self) -> list:
        """Paths: the main file, and those of split tracks that were read."""
        return self._file.files_opened

    def names(self) -> list[str]:
        """What the config asks a rank with these tracks to read."""
        own = tuple(f"/tracks/{track:02d}/" for track in self.tracks)
        return [name for name in self._file.shapes if name.startswith(("/shared/", *own))]

    def tensor(self, name: str) -> torch.Tensor:
        """On the CPU, float32, float16 or bfloat16. Raises BadInput for bad data, ValueError for another rank's dataset."""
        if name.startswith("/tracks/") and int(name.split("/")[2]) not in self.tracks:
            raise ValueError(f"{name} belongs to another rank; this one has tracks {self.tracks}")
        values, dtype = self._file.tensor(name)
        if dtype == "bfloat16":
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values)

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()
