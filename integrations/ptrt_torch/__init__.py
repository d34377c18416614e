"""Parallel Track models for inference engines built on PyTorch: a rank's weights, and what is around attention.

    config = read_config("model.h5")
    tracks = tracks_of_rank(config, ranks, rank)
    model = FoldedModel(config, tracks, attention=..., all_reduce=...)
    with ShardReader("model.h5", tracks) as reader:
        model.load(reader)
    hidden = model(tokens, positions)

docs/SPEC.md defines the model and its file. `hf_tokenizer` (module tokenizer) needs transformers; the rest torch, numpy and
h5py. Bad input raises BadInput, whose message names the file and what is wrong in it.
"""

from .config import main_type, read_config, tracks_of_rank
from .convert.errors import BadInput
from .folded import FoldedModel
from .shard import ShardReader

__all__ = ["BadInput", "FoldedModel", "ShardReader", "main_type", "read_config", "tracks_of_rank"]
