"""A stand-in for the few parts of TensorRT-LLM 1.2 that integrations/tensorrt_llm uses, on the CPU. It is not TensorRT-LLM.

Names, signatures and the order of calls are those of the sources of 1.2 (release candidates 2 and 3; tensorrt_llm/ there,
paths below); the bodies are the plainest ones, with the checks that the real classes make. install() puts them in place of
the package. tensorrt_llm_executor.py has what calls them.
"""

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import stand_in_attention
import torch
from rank_threads import RankThreads
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TModel, TConfig = TypeVar("TModel"), TypeVar("TConfig")
THREADS = RankThreads(1)  # the ranks of the running test


# mapping.py
class Mapping:

    def __init__(self, world_size=1, rank=0, gpus_per_node=8, *, cp_size=1, tp_size=1, pp_size=1, enable_attention_dp=False):
        if world_size != tp_size * pp_size * cp_size:
            raise ValueError(f"world_size {world_size} is not {tp_size} * {pp_size} * {cp_size}")
        self.world_size, self.rank, self.tp_size, self.pp_size, self.cp_size = world_size, rank, tp_size, pp_size, cp_size
        self.tp_rank, self.pp_rank, self.enable_attention_dp = rank % tp_size, rank // (tp_size * cp_size), enable_attention_dp

    def has_pp(self) -> bool:
        return self.pp_size > 1

    def to_dict(self) -> dict:
        return {"world_size": self.world_size, "rank": self.rank, "tp_size": self.tp_size}


# models/modeling_utils.py
@dataclass
class QuantConfig:
    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None


# functional.py
class AllReduceStrategy(IntEnum):
    NCCL = 0
    AUTO = 3


# _torch/model_config.py
@dataclass(kw_only=True)
class ModelConfig(Generic[TConfig]):
    pretrained_config: TConfig | None = None
    mapping: Mapping = field(default_factory=Mapping)
    quant_config: QuantConfig = field(default_factory=QuantConfig)
    quant_config_dict: dict | None = None
    skip_create_weights_in_init: bool = False
    spec_config: Any = None
    lora_config: Any = None
    sparse_attention_config: Any = None
    is_generation: bool = True
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    moe_max_num_tokens: int | None = None
    moe_load_balancer: Any = None
    attn_backend: str = "TRTLLM"
    moe_backend: str = "CUTLASS"
    moe_disable_finalize_fusion: bool = False
    use_low_precision_moe_combine: bool = False
    allreduce_strategy: AllReduceStrategy = AllReduceStrategy.AUTO
    enable_min_latency: bool = False
    use_cuda_graph: bool = False
    force_dynamic_quantization: bool = False
    extra_attrs: dict = field(default_factory=dict, repr=False, init=False)
    _frozen: bool = field(default=False, init=False, repr=False)
    mm_encoder_only: bool = False

    def __setattr__(self, key, value):
        if getattr(self, "_frozen", False) and key not in ("_frozen", "extra_attrs", "pretrained_config", "quant_config"):
            raise AttributeError(f"Cannot modify ModelConfig.'{key}' - instance is frozen")
        super().__setattr__(key, value)

    def __post_init__(self):
        if isinstance(self.allreduce_strategy, str):
            self.allreduce_strategy = AllReduceStrategy[self.allreduce_strategy]


# _torch/attention_backend/interface.py
class PredefinedAttentionMask(str, Enum):
    CAUSAL = "causal"
    FULL = "full"


@dataclass(kw_only=True)
class AttentionMetadata:
    """rows: of each sequence in the step its name and how many tokens it has, as stand_in_attention.Step has them."""

    max_num_requests: int
    max_num_tokens: int
    kv_cache_manager: Any
    mapping: Mapping | None = None
    rows: list[tuple[str, int]]

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.rows)

    @property
    def seq_lens_cuda(self) -> torch.Tensor:
        return torch.tensor([count for _, count in self.rows])


class AttentionBackend:
    """A layer's attention. The KV cache's sizes are the manager's, which come from the config alone."""

    def __init__(self, layer_idx: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None,
                 quant_config: QuantConfig | None = None, q_scaling: float | None = None, pos_embd_params=None,
                 skip_create_weights_in_init: bool = False, **kwargs):
        assert pos_embd_params is None, "the model rotates q and k itself"
        self.layer_idx, self.num_heads, self.head_dim, self.num_kv_heads = layer_idx, num_heads, head_dim, num_kv_heads
        self.inner = stand_in_attention.Attention(None, layer_idx, num_heads, num_kv_heads, head_dim,
                                                  1 / (math.sqrt(head_dim) * (q_scaling or 1.0)), None)

    @classmethod
    def support_fused_qkv(cls) -> bool:
        return False

    def attend(self, q, k, v, metadata: AttentionMetadata, window: int | None):
        manager = metadata.kv_cache_manager
        assert (manager.num_kv_heads_per_layer[self.layer_idx], manager.head_dim) == (self.num_kv_heads, self.head_dim), \
            "the KV cache was made for other heads"
        self.inner.step, self.inner.window, self.inner.cache = metadata, window, manager.layers[self.layer_idx]
        return self.inner(q, k, v)


class FlashInferAttention(AttentionBackend):

    def forward(self, q, k, v, metadata, *, attention_window_size=None, attention_mask=PredefinedAttentionMask.CAUSAL,
                output=None, **kwargs):
        assert k is not None and v is not None and not kwargs and attention_mask == PredefinedAttentionMask.CAUSAL
        return self.attend(q, k, v, metadata, attention_window_size)


class TrtllmAttention(AttentionBackend):

    @classmethod
    def support_fused_qkv(cls) -> bool:
        return True

    def forward(self, q, k, v, metadata, out_scale=None, *, attention_mask=PredefinedAttentionMask.CAUSAL,
                attention_window_size=None, output=None, **kwargs):
        assert k is None and v is None and not kwargs and attention_mask == PredefinedAttentionMask.CAUSAL
        sizes = [heads * self.head_dim for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)]
        return self.attend(*q.split(sizes, dim=-1), metadata, attention_window_size)


class VanillaAttention(AttentionBackend):

    def forward(self, q, k, v, metadata, *, attention_mask=PredefinedAttentionMask.CAUSAL, attention_window_size=None, **kwargs):
        assert k is not None and v is not None and not kwargs and attention_mask == PredefinedAttentionMask.CAUSAL
        return self.attend(q, k, v, metadata, attention_window_size)


# _torch/attention_backend/utils.py
def create_attention(backend_name: str, layer_idx: int, num_heads: int, head_dim: int, num_kv_heads: int | None = None,
                     pos_embd_params=None, quant_config=None, q_scaling: float | None = None, is_mla_enable: bool = False,
                     q_lora_rank=None, kv_lora_rank=None, qk_rope_head_dim=None, qk_nope_head_dim=None, v_head_dim=None,
                     predicted_tokens_per_seq=1, skip_create_weights_in_init: bool = False,
                     attention_chunk_size: int | None = None, sparse_attention_config=None):
    assert head_dim in (64, 128, 256)
    kinds = {"VANILLA": VanillaAttention, "TRTLLM": TrtllmAttention, "FLASHINFER": FlashInferAttention}
    return kinds[backend_name](layer_idx, num_heads, head_dim, num_kv_heads, quant_config=quant_config, q_scaling=q_scaling,
                               pos_embd_params=pos_embd_params, skip_create_weights_in_init=skip_create_weights_in_init)


# _torch/distributed/ops.py
class AllReduce(nn.Module):

    def __init__(self, mapping: Mapping, strategy: AllReduceStrategy = AllReduceStrategy.AUTO, dtype=None):
        super().__init__()
        self.mapping, self.dtype = mapping, dtype

    def forward(self, input: torch.Tensor, *, all_reduce_params=None) -> torch.Tensor:
        assert input.dim() == 2 and input.dtype == self.dtype
        return sum(THREADS.exchange(self.mapping.tp_rank, input.contiguous()))


# _torch/modules/embedding.py, linear.py
class LMHead(nn.Module):
    """Rows of the vocabulary split over the ranks, padded; the logits gathered."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype=None, mapping: Mapping | None = None):
        super().__init__()
        self.mapping, self.num_embeddings = mapping, num_embeddings
        self.weight = nn.Parameter(torch.empty(math.ceil(num_embeddings / mapping.tp_size), embedding_dim, dtype=dtype))

    def load_weights(self, weights: list[dict]):
        (weight,) = weights
        rows, rank = len(self.weight), self.mapping.tp_rank
        own = weight["weight"][rank * rows:(rank + 1) * rows]
        self.weight.data.zero_()[:len(own)].copy_(own)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        logits = nn.functional.linear(input, self.weight)
        if self.mapping.tp_size > 1:
            logits = torch.cat(THREADS.exchange(self.mapping.tp_rank, logits), dim=-1)
        return logits[..., :self.num_embeddings]


# _torch/models/modeling_utils.py
REGISTERED: dict[str, dict] = {"model": {}, "mapper": {}, "weights": {}, "checkpoint": {}, "config": {}}


def _register(kind: str):
    def register(name: str):
        def decorator(cls):
            REGISTERED[kind][name] = cls
            return cls
        return decorator
    return register


def register_mapper(format: str, name: str | None = None):
    return _register("mapper")(f"{name}_{format}" if name is not None else format)


class MetaInitMode(TorchDispatchMode):
    """Within it empty tensors are meta ones, and nothing may compute with those."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default):
            return func(*args, **{**kwargs, "device": torch.device("meta")})
        if any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            raise RuntimeError(f"Meta tensor used in unsupported function: {func}")
        return func(*args, **kwargs)


class DecoderModel(nn.Module):

    def __init__(self, model_config: ModelConfig):
        super().__init__()
        self.dtype = model_config.pretrained_config.torch_dtype
        self.model_config = model_config


class DecoderModelForCausalLM(nn.Module, Generic[TModel, TConfig]):

    def __init__(self, model: TModel, *, config: ModelConfig[TConfig], hidden_size: int, vocab_size: int):
        super().__init__()
        self.model_config, self.model = config, model
        assert not config.pretrained_config.tie_word_embeddings, "the embedding would have to be split as the head is"
        self.lm_head = LMHead(vocab_size, hidden_size, dtype=config.pretrained_config.torch_dtype, mapping=config.mapping)

    @property
    def config(self):
        return self.model_config.pretrained_config

    def forward(self, attn_metadata, input_ids=None, position_ids=None, inputs_embeds=None, return_context_logits=False,
                spec_metadata=None, lora_params=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attn_metadata=attn_metadata, position_ids=position_ids,
                            inputs_embeds=inputs_embeds, spec_metadata=spec_metadata, lora_params=lora_params)
        if not return_context_logits:
            hidden = hidden[torch.cumsum(attn_metadata.seq_lens_cuda, dim=0, dtype=torch.long) - 1]
        return self.lm_head(hidden).float()


# _torch/models/checkpoints/
class BaseWeightLoader(ABC):

    @abstractmethod
    def load_weights(self, checkpoint_dir: str, mapping: Mapping) -> dict[str, Any]:
        ...

    def cleanup(self) -> None:
        pass


class BaseConfigLoader(ABC):

    @abstractmethod
    def load(self, checkpoint_dir: str, **kwargs) -> ModelConfig:
        ...

    def cleanup(self) -> None:
        pass


class BaseWeightMapper(ABC):

    def __init__(self):
        self._model = self._config = None

    def init_model_and_config(self, model, config: ModelConfig):
        self._model, self._config = model, config
        if not isinstance(getattr(model, "model_config", None), ModelConfig) or not hasattr(model, "config"):
            raise ValueError("model must have model_config and config")
        self.map_weights()

    def cleanup(self) -> None:
        self._model = self._config = None

    @abstractmethod
    def map_weights(self) -> None:
        ...

    @abstractmethod
    def apply_callbacks(self, module, module_name: str, module_names_breakdown: list[str], weights: dict) -> list[dict]:
        ...


class BaseCheckpointLoader(ABC):

    @abstractmethod
    def get_default_weight_loader(self) -> BaseWeightLoader:
        ...

    @abstractmethod
    def get_default_config_loader(self) -> BaseConfigLoader:
        ...

    @abstractmethod
    def cleanup(self) -> None:
        ...

    weight_loader = property(abstractmethod(lambda self: None))
    weight_mapper = property(abstractmethod(lambda self: None))
    config_loader = property(abstractmethod(lambda self: None))
    checkpoint_format = property(abstractmethod(lambda self: None))

    def load_config(self, checkpoint_dir: str, **kwargs) -> ModelConfig:
        return self.config_loader.load(checkpoint_dir, **kwargs)

    def load_weights(self, checkpoint_dir: str, mapping: Mapping, **kwargs) -> dict[str, Any]:
        return self.weight_loader.load_weights(checkpoint_dir, mapping=mapping, **kwargs)

    @classmethod
    def get(cls, checkpoint_format: str, **kwargs) -> "BaseCheckpointLoader":
        return REGISTERED["checkpoint"][checkpoint_format](**kwargs)

    def get_initialized_weight_mapper(self, model, config: ModelConfig) -> BaseWeightMapper:
        if self.weight_mapper is None:
            mappers, architecture = REGISTERED["mapper"], config.pretrained_config.architectures[0]
            name = f"{architecture}_{self.checkpoint_format}"
            self.weight_mapper = mappers.get(name, mappers.get(self.checkpoint_format))()
        self.weight_mapper.init_model_and_config(model, config)
        return self.weight_mapper


def install() -> None:
    """Puts these in place of the package, each where 1.2 has it."""
    def module(name: str, **values) -> None:
        made = sys.modules.setdefault(name, ModuleType(name))
        made.__path__ = []
        vars(made).update(values)

    for name in ("tensorrt_llm", "tensorrt_llm._torch", "tensorrt_llm._torch.models",
                 "tensorrt_llm._torch.models.checkpoints", "tensorrt_llm._torch.attention_backend"):
        module(name)
    module("tensorrt_llm.logger", logger=SimpleNamespace(info=lambda text: None))
    module("tensorrt_llm.mapping", Mapping=Mapping)
    module("tensorrt_llm._torch.model_config", ModelConfig=ModelConfig)
    module("tensorrt_llm._torch.distributed", AllReduce=AllReduce)
    module("tensorrt_llm._torch.attention_backend.interface", AttentionMetadata=AttentionMetadata,
           PredefinedAttentionMask=PredefinedAttentionMask)
    module("tensorrt_llm._torch.attention_backend.utils", create_attention=create_attention)
    module("tensorrt_llm._torch.models.modeling_utils", DecoderModel=DecoderModel,
           DecoderModelForCausalLM=DecoderModelForCausalLM, register_auto_model=_register("model"),
           register_mapper=register_mapper, register_checkpoint_weight_loader=_register("weights"),
           register_checkpoint_loader=_register("checkpoint"), register_config_loader=_register("config"))
    for file, cls in (("base_checkpoint_loader", BaseCheckpointLoader), ("base_config_loader", BaseConfigLoader),
                      ("base_weight_loader", BaseWeightLoader), ("base_weight_mapper", BaseWeightMapper)):
        module(f"tensorrt_llm._torch.models.checkpoints.{file}", **{cls.__name__: cls})
