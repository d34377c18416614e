"""The configuration of a Parallel Track model (docs/SPEC.md, The file), checked, and the datasets that it asks for.

The bounds are those of the program (model_io/config/model_config.cpp): what it refuses is refused here, and nothing else.
"""

import math
import struct

from .errors import BadInput, brief
from .layout import ffn_kind, layer_shapes

FUSION_OPS = ("mean", "sum", "delta_sum")
ATTENTION_KINDS = ("global_rope", "global_nope", "local_rope", "local_nope")
PLACEMENTS = ("pre", "output", "post")
# norm_placement: the norms of attention and of the FFN that it adds to a layer.
NORM_NAMES = {"pre": ("attn_norm", "ffn_norm"), "output": ("attn_output_norm", "ffn_output_norm"),
              "post": ("attn_post_norm", "ffn_post_norm")}
OPTIONAL = {"attention_bias": [], "qk_norm_order": "before_rope", "pre_scale_norms": [], "rope_scaling": None,
            "rope_theta_local": None, "attention_scale": None, "ffn_activation": "silu", "embedding_scale": 1.0}
NULLABLE = {"name": "", "attention_window": 0, "moe": None, "bos_token_id": None}
SCALING_FIELDS = {"linear": ("factor",),
                  "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position"),
                  "yarn": ("factor", "original_max_position", "beta_fast", "beta_slow")}
# Paths in the file give two digits to tracks and blocks and three to layers; token ids and positions are int32.
MOST_TRACKS, MOST_BLOCKS, MOST_LAYERS, LARGEST = 100, 100, 1000, 2**31 - 1
MOST_WEIGHTS, MOST_CONTEXT = 2.0**48, 2.0**56  # of a model, and keys and values of one full context


def _as_float32(value):
    """What the program's kernels get; infinity where float32 ends."""
    try:
        return struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return math.inf


class _Object:
    """One JSON object, read key by key; every message names the key by its path."""

    def __init__(self, values, path, known):
        self.path = path
        if not isinstance(values, dict):
            raise BadInput(f"config key \"{path[:-1]}\": expected an object, found {brief(values)}" if path else
                           "the config is not a JSON object")
        for key in values:
            if key not in known:
                raise BadInput(f"unknown config key \"{path}{key}\"")
        self.values = values

    def fail(self, key, expected):
        raise BadInput(f"config key \"{self.path}{key}\": expected {expected}, found {brief(self.values[key])}")

    def get(self, key):
        if key not in self.values:
            raise BadInput(f"config key \"{self.path}{key}\" is missing")
        return self.values[key]

    def is_set(self, key):
        return self.values.get(key) is not None

    def integer(self, key, least=1, most=LARGEST):
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.fail(key, f"an integer from {least} to {most}")
        return value

    def positive(self, key):
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < _as_float32(value) < math.inf:
            self.fail(key, "a positive number in the range of float32")
        return float(value)

    def string(self, key):
        value = self.get(key)
        try:
            value.encode()
        except (AttributeError, UnicodeEncodeError):  # no string, or half of a surrogate pair
            self.fail(key, "a string")
        return value

    def boolean(self, key):
        if not isinstance(self.get(key), bool):
            self.fail(key, "true or false")
        return self.values[key]

    def choice(self, key, choices):
        if self.get(key) not in choices:
            self.fail(key, "one of " + ", ".join(f'"{choice}"' for choice in choices))
        return self.values[key]

    def choices(self, key, choices, repeated=False):
        values = self.get(key)
        if not isinstance(values, list) or any(value not in choices for value in values):
            self.fail(key, "a list of " + ", ".join(f'"{choice}"' for choice in choices))
        if not repeated and len(set(values)) < len(values):
            self.fail(key, "no value twice")
        return values

    def integers(self, key):
        values = self.get(key)
        if not isinstance(values, list) or any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in values):
            self.fail(key, "a list of integers")
        return values


def _rope_scaling(values):
    kind = values.get("type") if isinstance(values, dict) else None
    reader = _Object(values, "rope_scaling.", ("type", *SCALING_FIELDS.get(kind, ()), *["attention_factor"] * (kind == "yarn")))
    reader.choice("type", tuple(SCALING_FIELDS))
    result = {"type": kind, **{name: reader.positive(name) for name in SCALING_FIELDS[kind]}}
    if "original_max_position" in result:
        result["original_max_position"] = reader.integer("original_max_position")
    if kind == "yarn":
        result["attention_factor"] = reader.positive("attention_factor") if reader.is_set("attention_factor") else None
    return result


def _moe(values):
    reader = _Object(values, "moe.", ("experts", "top_k", "ffn_size", "router_logit_cap", "normalize_top_k"))
    result = {key: reader.integer(key) for key in ("experts", "top_k", "ffn_size")}
    if result["top_k"] > result["experts"]:
        reader.fail("top_k", "at most as many as experts")
    result["router_logit_cap"] = reader.positive("router_logit_cap") if reader.is_set("router_logit_cap") else None
    result["normalize_top_k"] = reader.boolean("normalize_top_k") if reader.is_set("normalize_top_k") else True
    return result


def _check_layers(reader, config):
    """Keys that matter where some layer uses them."""
    attention = {config["attention_pattern"][i % len(config["attention_pattern"])] for i in range(config["layers"])}
    ffn = {ffn_kind(config, i) for i in range(config["layers"])}
    if config["head_dim"] % 2 and any(kind.endswith("_rope") for kind in attention):
        reader.fail("head_dim", "an even number, as layers have RoPE")
    if any(kind.startswith("local_") for kind in attention) and config["attention_window"] < 1:
        raise BadInput("config key \"attention_window\": local layers need a window of at least 1")
    if "dense" in ffn and config["ffn_size"] < 1:
        reader.fail("ffn_size", "at least 1, as layers are dense")
    if "moe" in ffn and config["moe"] is None:
        raise BadInput("config key \"moe\": \"ffn_pattern\" has moe layers")
    d, layers = config["hidden_size"], config["tracks"] * config["layers"]
    widths = [config["ffn_size"]] * ("dense" in ffn)
    widths += [config["moe"]["ffn_size"] * config["moe"]["experts"]] if "moe" in ffn else []
    attends = 2 * d * (config["heads"] + config["kv_heads"]) * config["head_dim"]
    weights = 2 * d * config["vocab_size"] + layers * (attends + 3 * d * max(widths))
    if weights > MOST_WEIGHTS:
        raise BadInput(f"the config asks for about {weights:.1e} weights; the most is {MOST_WEIGHTS:.1e}")
    if layers * 2 * config["kv_heads"] * config["head_dim"] * config["max_context"] > MOST_CONTEXT:
        reader.fail("max_context", f"at most {MOST_CONTEXT:.1e} keys and values")


def _check_sizes(reader, config):
    """Conditions between keys."""
    syncs, layers = config["sync_layers"], config["layers"]
    if not syncs or syncs[-1] != layers or any(b <= a for a, b in zip([0, *syncs], syncs)):
        reader.fail("sync_layers", f"increasing layer numbers from 1 that end with {layers}")
    if len(syncs) > MOST_BLOCKS:
        reader.fail("sync_layers", f"at most {MOST_BLOCKS}")
    if config["heads"] % config["kv_heads"]:
        reader.fail("kv_heads", f"a divisor of the {config['heads']} heads")
    if config["rope_theta"] == 1 and (config["rope_scaling"] or {}).get("type") == "yarn":
        reader.fail("rope_theta", "other than 1, as rope_scaling is yarn")
    for key in ("attention_pattern", "ffn_pattern"):
        if not config[key]:
            reader.fail(key, "at least one entry")
    _check_layers(reader, config)
    for key, tokens in (("eos_token_ids", config["eos_token_ids"]), ("bos_token_id", [config["bos_token_id"] or 0])):
        if any(token >= config["vocab_size"] for token in tokens):
            reader.fail(key, f"below \"vocab_size\" {config['vocab_size']}")


def check_config(values):
    """The config with every optional key; a BadInput names a key that is unknown, missing or wrong."""
    bounds = {"tracks": (1, MOST_TRACKS), "layers": (1, MOST_LAYERS), "ffn_size": (0, LARGEST)}
    sizes = ("tracks", "layers", "hidden_size", "heads", "kv_heads", "head_dim", "ffn_size", "vocab_size", "max_context")
    others = ("sync_layers", "fusion", "norm_eps", "norm_placement", "qk_norm", "attention_pattern", "rope_theta",
              "ffn_pattern", "tie_embeddings", "eos_token_ids")
    reader = _Object(values, "", (*sizes, *others, *NULLABLE, *OPTIONAL))
    fusion = _Object(reader.get("fusion"), "fusion.", ("op", "dispatch_norm", "combine_norm"))
    config = {
        "name": "", **{key: reader.integer(key, *bounds.get(key, ())) for key in sizes},
        "sync_layers": reader.integers("sync_layers"),
        "fusion": {"op": fusion.choice("op", FUSION_OPS), "dispatch_norm": fusion.boolean("dispatch_norm"),
                   "combine_norm": fusion.boolean("combine_norm")},
        "norm_eps": reader.positive("norm_eps"), "norm_placement": reader.choices("norm_placement", PLACEMENTS),
        "qk_norm": reader.boolean("qk_norm"),
        "attention_pattern": reader.choices("attention_pattern", ATTENTION_KINDS, repeated=True),
        "rope_theta": reader.positive("rope_theta"),
        "ffn_pattern": reader.choices("ffn_pattern", ("dense", "moe"), repeated=True),
        "tie_embeddings": reader.boolean("tie_embeddings"), "eos_token_ids": reader.integers("eos_token_ids"),
        **NULLABLE, **OPTIONAL}
    readers = {
        "name": reader.string, "attention_window": lambda key: reader.integer(key, 0),
        "moe": lambda key: _moe(values[key]), "bos_token_id": lambda key: reader.integer(key, 0),
        "attention_bias": lambda key: reader.choices(key, ("q", "k", "v", "o")),
        "qk_norm_order": lambda key: reader.choice(key, ("before_rope", "after_rope")),
        "pre_scale_norms": lambda key: reader.choices(key, (*PLACEMENTS, "dispatch", "combine")),
        "rope_scaling": lambda key: _rope_scaling(values[key]),
        "ffn_activation": lambda key: reader.choice(key, ("silu", "gelu_tanh")),
        **dict.fromkeys(("rope_theta_local", "attention_scale", "embedding_scale"), reader.positive)}
    for key in (*NULLABLE, *OPTIONAL):
        if reader.is_set(key):
            config[key] = readers[key](key)
    if config["attention_scale"] is None:
        config["attention_scale"] = config["head_dim"] ** -0.5
    _check_sizes(reader, config)
    return config


def stored_config(config):
    """The config as a file holds it: optional keys only where they are not the default."""
    defaults = {**OPTIONAL, "attention_scale": config["head_dim"] ** -0.5}
    stored = {key: value for key, value in config.items() if key not in defaults or value not in (None, defaults[key])}
    if stored["moe"]:
        stored["moe"] = {key: value for key, value in stored["moe"].items() if (key, value) != ("normalize_top_k", True)}
    return stored


def block_norms(config):
    """The norms of a track block."""
    return [name for name in ("dispatch_norm", "combine_norm") if config["fusion"][name]]


def shared_shapes(config):
    """What the tracks share, by name."""
    table = (config["vocab_size"], config["hidden_size"])
    return {"embedding": table, "final_norm": table[1:], **({} if config["tie_embeddings"] else {"lm_head": table})}


def dataset_shapes(config):
    """Every dataset that the config needs, by path; tracks one after the other."""
    shapes = {f"/shared/{name}": shape for name, shape in shared_shapes(config).items()}
    for track in range(config["tracks"]):
        for block in range(len(config["sync_layers"])):
            shapes |= {f"/tracks/{track:02d}/blocks/{block:02d}/{name}": (config["hidden_size"],)
                       for name in block_norms(config)}
        for layer in range(config["layers"]):
            shapes |= {f"/tracks/{track:02d}/layers/{layer:03d}/{name}": shape
                       for name, shape in layer_shapes(config, layer).items()}
    return shapes
