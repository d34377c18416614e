"""Loads and runs models as TensorRT-LLM 1.2 does: the order of calls of _torch/pyexecutor, on the stand-in's classes."""

import copy
import inspect
import math
from types import SimpleNamespace

import stand_in_attention
import torch
from tensorrt_llm_stand_in import REGISTERED, AttentionMetadata, BaseCheckpointLoader, Mapping, MetaInitMode


def load(checkpoint_dir: str, loader: BaseCheckpointLoader, mapping: Mapping, changes: dict | None = None, **llm_args):
    """As ModelLoader.load: the model of one rank. llm_args: fields of the config that differ from the defaults.
    changes: what the loader of the KV cache's type sets in quant_config."""
    config = loader.load_config(**{
        "checkpoint_dir": checkpoint_dir, "trust_remote_code": True, "mapping": mapping, "enable_min_latency": False,
        "use_cuda_graph": True, "force_dynamic_quantization": False, "spec_config": None, "sparse_attention_config": None,
        "max_num_tokens": 8192, "max_seq_len": None, "moe_max_num_tokens": None, "moe_load_balancer": None,
        "lora_config": None, "allreduce_strategy": "AUTO", "mm_encoder_only": False, "attn_backend": "TRTLLM",
        "moe_backend": "CUTLASS", "moe_disable_finalize_fusion": False, "use_low_precision_moe_combine": False, **llm_args})
    for name, value in (changes or {}).items():
        setattr(config.quant_config, name, value)
    config = copy.deepcopy(config)
    with MetaInitMode():
        model = REGISTERED["model"][config.pretrained_config.architectures[0]](config)
    made: dict = {}
    model._apply(lambda t: made.setdefault(t, torch.full_like(t, torch.nan, device="cpu")) if t.is_meta else t)
    weights = loader.load_weights(checkpoint_dir, mapping=mapping)
    mapper = loader.get_initialized_weight_mapper(model, config)
    names = inspect.getfullargspec(model.load_weights).args
    model.load_weights(weights, **({"weight_mapper": mapper} if "weight_mapper" in names else {}))
    return model


class Executor:
    """Steps of one rank's model, with a KV cache made from the config alone, as KVCacheManager is."""

    def __init__(self, model):
        self.model, config, mapping = model, model.config, model.model_config.mapping
        assert config.num_attention_heads % mapping.tp_size == 0
        heads = math.ceil(config.num_key_value_heads / mapping.tp_size)
        self.cache = SimpleNamespace(num_kv_heads_per_layer=[heads] * config.num_hidden_layers, head_dim=config.head_dim,
                                     layers=[{} for _ in range(config.num_hidden_layers)])

    @torch.inference_mode()
    def step(self, rows: dict[str, list[int]], **how) -> torch.Tensor:
        """The next tokens of some sequences -> logits of the last one of each, or of all with return_context_logits."""
        metadata = AttentionMetadata(max_num_requests=8, max_num_tokens=8192, kv_cache_manager=self.cache,
                                     mapping=self.model.model_config.mapping,
                                     rows=[(name, len(tokens)) for name, tokens in rows.items()])
        step = stand_in_attention.Step()
        step.rows = metadata.rows
        places = step.positions(self.cache.layers[0]).int()
        tokens = torch.tensor([token for part in rows.values() for token in part], dtype=torch.int32)
        return self.model(attn_metadata=metadata, input_ids=tokens, position_ids=places[None], spec_metadata=None, **how)
