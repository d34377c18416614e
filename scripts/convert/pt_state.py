"""The parameters of scripts/pt_model.py in a model file, as numpy arrays [tracks, ...] or, where tracks share them, [...]."""

import json

import h5py
import numpy as np

from .errors import BadInput
from .layout import Tokenizer, stored_type
from .pt_checkpoint import held, name_in_module
from .pt_config import check_config, dataset_shapes, stored_config
from .ptrt_file import ModelWriter
from .tensors import slices, to_float32

READABLE = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}


def _datasets(config):
    """The datasets of each parameter: one, or one a track in their order."""
    found = {}
    for path in dataset_shapes(config):
        found.setdefault(name_in_module(path)[0], []).append(path)
    return found


def write_state(path, config, state, dtype, tokenizer=None, split=False):
    """Writes a model file of float32 arrays; dtype: of matrices. tokenizer: None, "bytes" or a Tokenizer."""
    shapes = dataset_shapes(config)
    with ModelWriter(path, stored_config(config), split=split) as writer:
        for name, paths in _datasets(config).items():
            for at, values in zip(paths, state[name] if "." in name else [state[name]]):
                tensor = held(at, values)
                kind = stored_type([tensor], shapes[at], dtype)
                with writer.dataset(at, shapes[at], kind) as out:
                    for piece in slices(tensor, kind):
                        out.append(piece)
        if tokenizer:
            tokenizer = Tokenizer("bytes", None) if tokenizer == "bytes" else tokenizer
            writer.write_tokenizer(tokenizer.kind, tokenizer.model, tokenizer.chat_template)
        writer.commit()


def _read(file, path, at, shape):
    if at not in file:
        raise BadInput(f"{path}: dataset {at} is missing")
    dataset = file[at]
    if dataset.shape != shape or str(dataset.dtype) not in READABLE:
        raise BadInput(f"{path}: dataset {at}: expected float32, bfloat16 or float16 elements of shape {list(shape)}, found "
                       f"{dataset.dtype} of {list(dataset.shape)}; int8 and packed files are for running only")
    return to_float32(dataset[()], READABLE[str(dataset.dtype)])


def read_config(path):
    try:
        with h5py.File(path, "r") as file:
            return check_config(json.loads(file.attrs["config"]))
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(f"{path}: no model file: {error}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def read_state(path, config, tracks):
    """The arrays of these tracks, a slice, by the parameter's name, one after the other."""
    shapes = dataset_shapes(config)
    with h5py.File(path, "r") as file:
        for name, paths in _datasets(config).items():
            values = [_read(file, path, at, shapes[at]) for at in (paths[tracks] if "." in name else paths)]
            yield name, np.stack(values) if "." in name else values[0]
