"""The parameters of scripts/pt_model.py in a model file, as numpy arrays [tracks, ...] or, where tracks share them, [...]."""

import numpy as np

from .errors import BadInput
from .layout import Tokenizer, stored_type
from .pt_checkpoint import held, name_in_module
from .pt_config import dataset_shapes, stored_config
from .ptrt_file import ModelWriter
from .ptrt_reader import FLOAT8, ModelReader
from .tensors import slices, to_float32


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


def read_config(path):
    with ModelReader(path) as reader:
        return reader.config


def read_state(path, tracks):
    """The arrays of these tracks, a slice, by the parameter's name, one after the other."""
    with ModelReader(path) as reader:
        for name, paths in _datasets(reader.config).items():
            values = []
            for at in (paths[tracks] if "." in name else paths):
                if (stored := reader.stored_type(at)) in ("int8", FLOAT8):
                    raise BadInput(f"{path}: dataset {at}: {stored} files are for running only")
                values.append(to_float32(*reader.tensor(at)))
            yield name, np.stack(values) if "." in name else values[0]
