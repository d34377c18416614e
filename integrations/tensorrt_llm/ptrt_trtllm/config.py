"""A model file's config as TensorRT-LLM asks for it."""

import math

import torch
from ptrt_torch.hf_config import hf_fields
from transformers import AutoConfig, PretrainedConfig

ARCHITECTURE = "PTForCausalLM"
MODEL_TYPE = "parallel_track"
FORMAT = "PTRT"  # of checkpoints
MODEL_FILE = "model.h5"  # in a checkpoint's folder
# Widths of heads that every attention kernel of TensorRT-LLM takes. Narrower heads are padded with zeros.
HEAD_WIDTHS = (64, 128, 256)


def head_width(head_dim: int) -> int:
    """The width of a head in the KV cache."""
    fitting = [width for width in HEAD_WIDTHS if width >= head_dim]
    if not fitting:
        raise ValueError(f"head_dim {head_dim}: TensorRT-LLM's attention kernels go up to {HEAD_WIDTHS[-1]}")
    return fitting[0]


class PTConfig(PretrainedConfig):
    """`pt` holds the config of docs/SPEC.md, checked and complete; the rest is what TensorRT-LLM reads of any model.

    A KV cache holds num_key_value_heads / tp_size heads a layer, those of the rank's tracks. tie_word_embeddings is false
    always: each rank has the whole embedding, and its rows of the head.
    """

    model_type = MODEL_TYPE

    def __init__(self, pt: dict | None = None, **kwargs):
        self.pt = pt
        if pt is not None:
            kwargs = {"torch_dtype": torch.bfloat16, **hf_fields(pt), **kwargs, "head_dim": head_width(pt["head_dim"])}
        super().__init__(**{**kwargs, "tie_word_embeddings": False})


def q_scaling(pt: dict) -> float:
    """TensorRT-LLM's scores are q·k / (sqrt(width of a head) · q_scaling)."""
    return 1 / (pt["attention_scale"] * math.sqrt(head_width(pt["head_dim"])))


def attention_windows(pt: dict) -> list[int]:
    """KvCacheConfig.max_attention_window, a layer each: so local layers keep no more tokens than they see."""
    kinds = pt["attention_pattern"]
    return [pt["attention_window"] if kinds[i % len(kinds)].startswith("local_") else pt["max_context"]
            for i in range(pt["layers"])]


AutoConfig.register(MODEL_TYPE, PTConfig, exist_ok=True)
