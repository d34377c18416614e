"""A Parallel Track model in vLLM: the folded model of ptrt_torch with vLLM's attention, kernels, all-reduce and head.

A rank of tensor_parallel_size N holds T / N whole tracks. Ranks communicate at the sync layers and for the logits only.
Shapes: n tokens of a step, d hidden_size.
"""

from functools import partial

import torch
from ptrt_torch import FoldedModel, tracks_of_rank
from ptrt_torch.loading import read_head
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.utils import maybe_prefix

from .attention import TrackAttention
from .experts import ExpertsMaker
from .kernels import KernelNorm, KernelRotation, linear


def own_tracks(config: dict) -> range:
    """The tracks of this rank."""
    return tracks_of_rank(config, get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank())


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "inputs_embeds": 0})
class PTModel(nn.Module):
    """Embedding to final norm: input_ids [n] or inputs_embeds [n, d], positions [n] -> [n, d]."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config.pt
        tracks = own_tracks(config)
        all_reduce = tensor_model_parallel_all_reduce if len(tracks) < config["tracks"] else None
        self.folded = FoldedModel(config, tracks, attention=partial(self._attention, vllm_config.cache_config, prefix),
                                  all_reduce=all_reduce, experts=ExpertsMaker(config, prefix), linear=linear,
                                  norm=KernelNorm, rope=KernelRotation, lm_head=False)

    @staticmethod
    def _attention(cache_config, prefix, layer, heads, kv_heads, head_dim, scale, window):
        return TrackAttention(heads, kv_heads, head_dim, scale, window, cache_config, f"{prefix}.layers.{layer}.attention")

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        return self.folded(input_ids if inputs_embeds is None else inputs_embeds, positions)


class PTForCausalLM(nn.Module):

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        config = vllm_config.model_config.hf_config.pt
        longest = vllm_config.model_config.max_model_len
        if longest > config["max_context"]:  # the tables of RoPE end there, and kernels read on
            raise ValueError(f"{vllm_config.model_config.model}: max_model_len {longest} is beyond max_context "
                             f"{config['max_context']}")
        self.tracks = own_tracks(config)
        self.model = PTModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        # Rows split over the ranks. The embedding is whole on each: a split one would cost an all-reduce a step.
        self.lm_head = ParallelLMHead(config["vocab_size"], config["hidden_size"], prefix=maybe_prefix(prefix, "lm_head"))
        self.logits_processor = LogitsProcessor(config["vocab_size"])

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.folded.embed(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_from(self, reader) -> set[str]:
        """Fills the parameters from a ShardReader of the own tracks; returns their names."""
        folded = self.model.folded
        loaded = {f"model.folded.{name}" for name in folded.load(reader)}
        head = folded.embedding if reader.config["tie_embeddings"] else read_head(reader, self.lm_head.weight.dtype)
        self.lm_head.weight_loader(self.lm_head.weight, head)
        return loaded | {"lm_head.weight"}
