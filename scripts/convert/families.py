"""The families of Hugging Face checkpoints: what their config.json means in the contract, and how tensors are named."""

import math
from dataclasses import dataclass

from .config_keys import MOST_LAYERS, Keys
from .errors import BadInput, brief
from .rope import read_rope

_SILU = {"silu": "silu", "swish": "silu"}
_GELU = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class Family:
    """Defaults are those of transformers' configuration class: a config.json may leave them out."""

    model: str  # the class that is converted
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden_size / heads
    theta: float = 10000.0
    tied: bool = False
    bias: tuple[str, ...] = ()  # products that always have one
    bias_key: bool = True  # whether attention_bias is a key
    qk_norm: bool = False
    windows: str = "none"  # none, all (sliding_window), qwen (use_sliding_window), nope (SmolLM3), gemma
    experts: str = ""  # "", mixtral or qwen


FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", kv_heads=8, windows="all", bias_key=False),
    "mixtral": Family("MixtralForCausalLM", kv_heads=8, theta=1e6, windows="all", bias_key=False, experts="mixtral"),
    "qwen2": Family("Qwen2ForCausalLM", bias=("q", "k", "v"), bias_key=False, windows="qwen"),
    "qwen3": Family("Qwen3ForCausalLM", head_dim=128, qk_norm=True, windows="qwen"),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", kv_heads=4, qk_norm=True, windows="qwen", experts="qwen"),
    "smollm3": Family("SmolLM3ForCausalLM", kv_heads=4, theta=2e6, tied=True, windows="nope"),
    "gemma3_text": Family("Gemma3ForCausalLM", kv_heads=4, head_dim=256, theta=1e6, tied=True, qk_norm=True,
                          windows="gemma"),
}


def family_of(config: dict, where: str) -> Family:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise BadInput(f"{where}: model_type {brief(kind)} is not supported; {', '.join(FAMILIES)} can be converted")
    family = FAMILIES[kind]
    architectures = config.get("architectures") or [family.model]
    if architectures != [family.model]:
        raise BadInput(f"{where}: architectures {brief(architectures)} is not supported; of {kind} checkpoints "
                       f"{family.model} can be converted")
    return family


def shortest_pattern(kinds: list) -> list:
    """The shortest list that gives every layer its kind when repeated."""
    for length in range(1, len(kinds) + 1):
        if all(kind == kinds[i % length] for i, kind in enumerate(kinds)):
            return kinds[:length]
    return kinds


def _layer_types(keys: Keys, layers: int):
    types = keys.strings("layer_types", layers)
    for kind in types or []:
        if kind not in ("full_attention", "sliding_attention"):
            keys.fail("layer_types", f"{brief(kind)} is not supported")
    return types


def _local_layers(family: Family, keys: Keys, layers: int, roped: list[bool]) -> tuple[list[bool], int]:
    """Which layers have a window, and the window."""
    types = _layer_types(keys, layers)
    if family.windows == "none":
        if types and "sliding_attention" in types:
            keys.fail("layer_types", "sliding_attention is not known of this family")
        return [False] * layers, 0
    window = keys.integer("sliding_window", 4096 if family.windows == "gemma" else None)
    used = window is not None
    if family.windows in ("qwen", "nope"):
        used = keys.boolean("use_sliding_window", False) and used
    if family.windows == "gemma":
        period = keys.integer("sliding_window_pattern", keys.integer("_sliding_window_pattern", 6))
        local = [(i + 1) % period != 0 for i in range(layers)]
    elif family.experts == "qwen":
        # Versions of transformers disagree about max_window_layers here.
        if keys.integer("max_window_layers", 0, least=0) and used:
            keys.fail("max_window_layers", "not supported together with use_sliding_window in a qwen3_moe checkpoint")
        local = [True] * layers
    elif family.windows == "qwen":
        first = keys.integer("max_window_layers", 28, least=0)
        local = [i >= first for i in range(layers)]
    elif family.windows == "nope":
        keys.raw("max_window_layers")  # written, and used by no version of transformers
        local = [not rope for rope in roped]
    else:
        local = [True] * layers
    local = [used and is_local for is_local in local]
    if types is not None:
        named = [kind == "sliding_attention" for kind in types]
        if any(named) and not used:
            keys.fail("layer_types", "sliding_attention, but no sliding_window is in use")
        if family.windows == "all" or family.experts == "qwen":
            if named != local:
                keys.fail("layer_types", "a mixture of layers with and without a window is not known of this family")
        local = named
    return local, window if any(local) else 0


def _attention(family: Family, keys: Keys, config: dict) -> None:
    layers = config["layers"]
    roped = [True] * layers
    if family.windows == "nope":
        every = keys.integer("no_rope_layer_interval", 4)
        flags = keys.integers("no_rope_layers", None)
        flags = [int((i + 1) % every != 0) for i in range(layers)] if flags is None else flags
        if len(flags) < layers or any(flag not in (0, 1) for flag in flags):
            keys.fail("no_rope_layers", f"expected 0 or 1 for each of {layers} layers")
        roped = [flag == 1 for flag in flags[:layers]]
    local, window = _local_layers(family, keys, layers, roped)
    kinds = [("local_" if is_local else "global_") + ("rope" if has_rope else "nope")
             for is_local, has_rope in zip(local, roped)]
    config |= {"attention_pattern": shortest_pattern(kinds), "attention_window": window}


def _experts(family: Family, keys: Keys, config: dict) -> None:
    if family.experts == "mixtral":
        config["moe"] = {"experts": keys.integer("num_local_experts", keys.integer("num_experts", 8)),
                         "top_k": keys.integer("num_experts_per_tok", 2), "ffn_size": config["ffn_size"],
                         "router_logit_cap": None}
        config["ffn_pattern"] = ["moe"]
        return
    experts = keys.integer("num_experts", keys.integer("num_local_experts", 128), least=0)
    step = keys.integer("decoder_sparse_step", 1)
    dense = set(keys.integers("mlp_only_layers", []))
    kinds = ["moe" if experts and i not in dense and (i + 1) % step == 0 else "dense" for i in range(config["layers"])]
    moe = {"experts": experts, "top_k": keys.integer("num_experts_per_tok", 8),
           "ffn_size": keys.integer("moe_intermediate_size", 768), "router_logit_cap": None}
    if not keys.boolean("norm_topk_prob", False):
        moe["normalize_top_k"] = False
    config |= {"ffn_pattern": shortest_pattern(kinds), "moe": moe if "moe" in kinds else None}


def _gemma(keys: Keys, config: dict) -> None:
    config["norm_placement"] = ["pre", "output"]
    config["ffn_activation"] = keys.choice("hidden_activation", _GELU, keys.raw("hidden_act", "gelu_pytorch_tanh"))
    config["embedding_scale"] = math.sqrt(config["hidden_size"])
    scale = keys.number("query_pre_attn_scalar", 256.0)
    if scale != config["head_dim"]:
        config["attention_scale"] = scale ** -0.5


def read_config(raw: dict, family: Family, name: str, where: str, ignored: set[str]) -> dict:
    """The contract's configuration, but for bos_token_id and eos_token_ids."""
    keys = Keys(raw, where, ignored)
    hidden, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    layers, max_position = keys.integer("num_hidden_layers", most=MOST_LAYERS), keys.integer("max_position_embeddings")
    head_dim = keys.integer("head_dim", family.head_dim)
    if head_dim is None:
        if hidden % heads:
            keys.fail("num_attention_heads", f"{heads} does not divide hidden_size, {hidden}")
        head_dim = hidden // heads
    gemma = family.windows == "gemma"
    config = {
        "name": name, "tracks": 1, "layers": layers, "sync_layers": [layers],
        "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False},
        "hidden_size": hidden, "heads": heads,
        "kv_heads": keys.integer("num_key_value_heads", family.kv_heads) or heads,
        "head_dim": head_dim, "ffn_size": keys.integer("intermediate_size"), "vocab_size": keys.integer("vocab_size"),
        "max_context": max_position, "norm_eps": keys.number("rms_norm_eps", 1e-6), "norm_placement": ["pre"],
        "qk_norm": family.qk_norm, "attention_pattern": [], "attention_window": 0, "rope_theta": 0.0,
        "ffn_pattern": ["dense"], "moe": None,
        "tie_embeddings": keys.boolean("tie_word_embeddings", family.tied), "bos_token_id": None, "eos_token_ids": [],
    }
    _attention(family, keys, config)
    config |= read_rope(keys, family.theta, max_position, 10000.0 if gemma else None)
    config = {key: value for key, value in config.items() if value is not None or key in ("moe", "bos_token_id")}
    scaling = config.get("rope_scaling")
    if scaling and scaling["type"] == "yarn":  # max_position_embeddings may be that of the training
        config["max_context"] = max(max_position, round(scaling["factor"] * scaling["original_max_position"]))
    bias = ("q", "k", "v", "o") if family.bias_key and keys.boolean("attention_bias", False) else family.bias
    if bias:
        config["attention_bias"] = list(bias)
    if family.experts:
        _experts(family, keys, config)
    if gemma:
        _gemma(keys, config)
    else:
        keys.choice("hidden_act", _SILU, "silu")
    keys.finish()
    return config


def tensor_names(family: Family, dataset: str) -> str:
    """The checkpoint's name of a layer's dataset, below model.layers.N; {} stands for the number of an expert."""
    moe, (gate, up, down) = "mlp", ("gate_proj", "up_proj", "down_proj")
    if family.experts == "mixtral":
        moe, (gate, up, down) = "block_sparse_moe", ("w1", "w3", "w2")
    names = {
        "attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
        "q_norm": "self_attn.q_norm.weight", "k_norm": "self_attn.k_norm.weight",
        "w_gate": "mlp.gate_proj.weight", "w_up": "mlp.up_proj.weight", "w_down": "mlp.down_proj.weight",
        "router": f"{moe}.gate.weight", "experts/w_gate": f"{moe}.experts.{{}}.{gate}.weight",
        "experts/w_up": f"{moe}.experts.{{}}.{up}.weight", "experts/w_down": f"{moe}.experts.{{}}.{down}.weight",
    }
    for which in "qkvo":
        names[f"w{which}"] = f"self_attn.{which}_proj.weight"
        names[f"b{which}"] = f"self_attn.{which}_proj.bias"
    if family.windows == "gemma":
        names |= {"attn_output_norm": "post_attention_layernorm.weight",
                  "ffn_norm": "pre_feedforward_layernorm.weight",
                  "ffn_output_norm": "post_feedforward_layernorm.weight"}
    return names[dataset]
