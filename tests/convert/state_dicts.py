"""State dicts of scripts/pt_model.py's layout from random tensors of a model file, and safetensors files, by numpy."""

import json
import struct
from pathlib import Path

import numpy as np


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """float32 arrays as F32, uint16 arrays as BF16."""
    header, data = {}, b""
    for name, values in tensors.items():
        kind = {"float32": "F32", "uint16": "BF16"}[str(values.dtype)]
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += np.ascontiguousarray(values).tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def stacked(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The datasets of a model file as parameters of the module: those of all tracks in one."""
    parameters: dict[str, list[np.ndarray]] = {}
    shared = {}
    for path, values in tensors.items():
        parts = path.split("/")[1:]
        if parts[0] == "shared":
            shared[parts[1]] = values
        else:
            name = f"{parts[2]}.{int(parts[3])}.{'_'.join(parts[4:])}"
            parameters.setdefault(name, []).append(values)
    return shared | {name: np.stack(values) for name, values in parameters.items()}
