"""A Parallel Track model in TensorRT-LLM: the folded model of ptrt_torch with its attention backend, all-reduce and LM head.

A rank of tensor_parallel_size N holds T / N whole tracks. Ranks communicate at the sync layers and for the logits only.
Shapes: n tokens of a step, d hidden_size.
"""

import contextlib

import torch
from ptrt_torch import FoldedModel, tracks_of_rank
from ptrt_torch.loading import read_head
from ptrt_torch.parts import narrow_heads, widen_heads
from tensorrt_llm._torch.attention_backend.interface import AttentionMetadata, PredefinedAttentionMask
from tensorrt_llm._torch.attention_backend.utils import create_attention
from tensorrt_llm._torch.distributed import AllReduce
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.modeling_utils import DecoderModel, DecoderModelForCausalLM, register_auto_model

from .config import ARCHITECTURE, PTConfig, q_scaling


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    """Within it ptrt_torch makes weights of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check(model_config: ModelConfig) -> None:
    """Raises ValueError naming what was asked for and is not there."""
    mapping, quant = model_config.mapping, model_config.quant_config
    asked = {
        "pipeline_parallel_size": mapping.pp_size > 1, "context_parallel_size": mapping.cp_size > 1,
        "enable_attention_dp": mapping.enable_attention_dp, "quantization": quant.quant_algo is not None,
        "kv_cache_config.dtype": quant.kv_cache_quant_algo is not None, "lora_config": model_config.lora_config is not None,
        "speculative_config": model_config.spec_config is not None,
        "sparse_attention_config": model_config.sparse_attention_config is not None}
    refused = [name for name, is_asked in asked.items() if is_asked]
    if refused:
        raise ValueError(f"Parallel Track models do not support {', '.join(refused)}")


class Attention:
    """The attention of one layer: q, k, v [n, heads * head_dim] of all tracks side by side -> the same shape as q.

    The backend's metadata, which say what the rows of a step are, come with each step: PTModel puts them here.
    """

    def __init__(self, model_config: ModelConfig, layer: int, heads: int, kv_heads: int, head_dim: int, window: int | None):
        config = model_config.pretrained_config
        self.head_dim, self.width, self.window = head_dim, config.head_dim, window
        self.backend = create_attention(model_config.attn_backend, layer, heads, config.head_dim, kv_heads,
                                        quant_config=model_config.quant_config, q_scaling=q_scaling(config.pt))
        self.metadata: AttentionMetadata | None = None

    def __call__(self, q, k, v):
        q, k, v = (widen_heads(x, self.head_dim, self.width) for x in (q, k, v))
        if self.backend.support_fused_qkv():
            q, k, v = torch.cat((q, k, v), dim=-1), None, None
        out = self.backend.forward(q, k, v, self.metadata, attention_mask=PredefinedAttentionMask.CAUSAL,
                                   attention_window_size=self.window)
        return narrow_heads(out, self.head_dim, self.width)


class PTModel(DecoderModel):
    """Embedding to final norm: input_ids [n] or inputs_embeds [n, d], position_ids [1, n] or [n] -> [n, d]."""

    def __init__(self, model_config: ModelConfig[PTConfig]):
        super().__init__(model_config)
        check(model_config)
        config, mapping = model_config.pretrained_config, model_config.mapping
        self.attentions: list[Attention] = []
        self.all_reduce = AllReduce(mapping=mapping, strategy=model_config.allreduce_strategy,
                                    dtype=config.torch_dtype) if mapping.tp_size > 1 else None
        with default_dtype(config.torch_dtype):
            self.folded = FoldedModel(config.pt, tracks_of_rank(config.pt, mapping.tp_size, mapping.tp_rank),
                                      attention=self._attention, all_reduce=self.all_reduce, lm_head=False)

    def _attention(self, layer, heads, kv_heads, head_dim, scale, window):
        self.attentions.append(Attention(self.model_config, layer, heads, kv_heads, head_dim, window))
        return self.attentions[-1]

    def embed_tokens(self, input_ids):
        return self.folded.embed(input_ids)

    def forward(self, attn_metadata: AttentionMetadata, input_ids=None, position_ids=None, inputs_embeds=None,
                lora_params=None, spec_metadata=None, **kwargs):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected input_ids or inputs_embeds, and not both")
        if position_ids is None:
            raise ValueError("position_ids are missing")
        if lora_params or spec_metadata is not None:
            raise ValueError("Parallel Track models support neither LoRA nor speculative decoding here")
        for attention in self.attentions:
            attention.metadata = attn_metadata
        return self.folded(input_ids if inputs_embeds is None else inputs_embeds, position_ids.flatten())


@register_auto_model(ARCHITECTURE)
class PTForCausalLM(DecoderModelForCausalLM[PTModel, PTConfig]):

    def __init__(self, model_config: ModelConfig[PTConfig]):
        super().__init__(PTModel(model_config), config=model_config, hidden_size=model_config.pretrained_config.hidden_size,
                         vocab_size=model_config.pretrained_config.vocab_size)

    def load_weights(self, weights, weight_mapper=None, skip_modules=()):
        """weights: a checkpoint.ShardWeights of this rank's tracks, which is closed."""
        if skip_modules:
            raise ValueError(f"a Parallel Track model is loaded whole, not without {', '.join(skip_modules)}")
        with contextlib.closing(weights):
            self.model.folded.load(weights)
            self.lm_head.load_weights(weights=[{"weight": read_head(weights, self.config.torch_dtype)}])
