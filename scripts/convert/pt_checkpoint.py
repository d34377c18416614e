"""State dicts of PyTorch: .safetensors by numpy, .pt by torch; and the layout of scripts/pt_model.py."""

import re

import numpy as np

from .errors import BadInput, brief
from .safetensors import read_file
from .tensors import Tensor, to_float32


class Checkpoint:
    """The tensors of a file by name. Whoever takes one names its shape; what nobody took is an error."""

    def __init__(self, path):
        self.path = path
        self._tensors = read_file(path) if path.suffix == ".safetensors" else _read_torch(path)
        self._taken = set()

    def take(self, name, shape):
        if name not in self._tensors:
            raise BadInput(f"{self.path}: tensor {name} is missing, which the configuration asks for")
        tensor = self._tensors[name]
        if tensor.shape != tuple(shape):
            raise BadInput(f"{self.path}: tensor {name}: expected shape {list(shape)}, as the configuration says, "
                           f"found {list(tensor.shape)}")
        self._taken.add(name)
        return tensor

    def take_copy(self, name, original):
        """A tensor that may be there and must then equal another one, in which case nobody needs it."""
        if name not in self._tensors:
            return
        copy, tensor = self._tensors[name], self._tensors[original]
        step = max(1, (1 << 20) // max(1, tensor.row_length))
        rows = range(0, tensor.rows, step)
        if copy.shape != tensor.shape or not all(
                np.array_equal(to_float32(copy.read(a, min(a + step, tensor.rows)), copy.dtype),
                               to_float32(tensor.read(a, min(a + step, tensor.rows)), tensor.dtype)) for a in rows):
            raise BadInput(f"{self.path}: tensor {name} differs from {original}, to which it is tied")
        self._taken.add(name)

    def check_all_taken(self):
        left = sorted(self._tensors.keys() - self._taken)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise BadInput(f"{self.path}: tensor {left[0]}{more} has no place in the model that the configuration describes")


def held(name, values, dtype="float32"):
    """A tensor of an array in memory."""
    rows = values.reshape(-1, values.shape[-1])
    return Tensor(name, values.shape, dtype, lambda first, last: rows[first:last])


def _read_torch(path):
    """The tensors of a file of torch.save: a state dict, or a dict that has one under "model"."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        import torch
    except ImportError:
        raise BadInput(f"{path}: only PyTorch reads such files: install torch, or save as .safetensors") from None
    kinds = {torch.float32: "float32", torch.float16: "float16", torch.float64: "float64", torch.bfloat16: "bfloat16"}

    def tensor(name, values):
        if not isinstance(values, torch.Tensor) or values.dtype not in kinds:
            raise BadInput(f"{path}: {name}: expected a tensor of floating-point numbers, found {brief(values)}")
        raw = (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).contiguous().numpy()
        raw = raw.view(np.uint16) if values.dtype == torch.bfloat16 else raw
        return held(name, raw if values.dim() else raw.reshape(1), kinds[values.dtype])

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of whatever type torch's unpickler raises
        raise BadInput(f"{path}: torch cannot load it with weights_only: {brief(str(error).splitlines()[0])}") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not state:
        raise BadInput(f"{path}: no state dict")
    return {str(name): tensor(name, values) for name, values in state.items()}


def name_in_module(dataset):
    """The parameter of scripts/pt_model.py that holds a dataset, and the track, or None for what tracks share."""
    found = re.fullmatch(r"/tracks/(\d+)/(blocks|layers)/(\d+)/(.+)", dataset)
    if not found:
        return dataset.removeprefix("/shared/"), None
    track, group, number, name = found.groups()
    return f"{group}.{int(number)}.{name.replace('/', '_')}", int(track)


def module_parts(config, shapes, checkpoint):
    """The parts of every dataset, by its path."""
    parts = {}
    for path, shape in shapes.items():
        name, track = name_in_module(path)
        if track is None:
            parts[path] = [checkpoint.take(name, shape)]
        else:
            tensor = checkpoint.take(name, (config["tracks"], *shape))
            parts[path] = [tensor.part(track * (tensor.rows // config["tracks"]), shape)]
    return parts
