"""Position encodings: the contract's keys out of transformers' configurations, and the angles that these keys mean.

transformers 4 has rope_theta, rope_scaling and rope_local_base_freq, 5 has rope_parameters.
"""

import math

import numpy as np

from .config_keys import Keys
from .errors import brief

LAYER_TYPES = ("full_attention", "sliding_attention")


def _yarn(keys: Keys, max_position: int, original) -> dict:
    original = keys.integer("original_max_position_embeddings", original or max_position)
    factor = keys.number("factor", None)
    if factor is None:
        factor = max_position / original
    attention_factor = keys.number("attention_factor", None)
    mscale, all_dim = keys.number("mscale", None), keys.number("mscale_all_dim", None)
    if attention_factor is None and mscale and all_dim:
        steepness = 0.1 * math.log(factor) if factor > 1 else 0.0
        attention_factor = (steepness * mscale + 1.0) / (steepness * all_dim + 1.0)
    if keys.raw("truncate", True) is not True:
        keys.fail("truncate", "only true is supported: yarn's bounds are rounded")
    return {"type": "yarn", "factor": factor, "original_max_position": original,
            "beta_fast": keys.number("beta_fast", None) or 32.0, "beta_slow": keys.number("beta_slow", None) or 1.0,
            "attention_factor": attention_factor}


def _scaling(keys: Keys, max_position: int, original):
    """The contract's rope_scaling of one object, or None. original: the value outside the object, or None."""
    kind, old = keys.raw("rope_type"), keys.raw("type")
    if kind is not None and old is not None and kind != old:
        keys.fail("type", f"{brief(old)} contradicts rope_type, which is {brief(kind)}")
    kind = kind if kind is not None else old if old is not None else "default"
    if keys.number("partial_rotary_factor", 1.0) != 1:
        keys.fail("partial_rotary_factor", "only 1 is supported: all of a head is rotated")
    inside = keys.raw("original_max_position_embeddings")
    if original and inside and original != inside:
        keys.fail("original_max_position_embeddings", f"{inside} contradicts the configuration's own, {original}")
    if kind == "yarn":
        return _yarn(keys, max_position, original)
    if kind == "linear":
        return {"type": "linear", "factor": keys.number("factor")}
    if kind == "llama3":
        low, high = keys.number("low_freq_factor"), keys.number("high_freq_factor")
        return {"type": "llama3", "factor": keys.number("factor"), "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position":
                    keys.integer("original_max_position_embeddings", original or max_position)}
    if kind != "default":
        name = "rope_type" if keys.raw("rope_type") is not None else "type"
        keys.fail(name, f"{brief(kind)} is not supported; default, linear, llama3 and yarn can be converted")
    return None


def _one(values, keys: Keys, name: str, theta, max_position: int, original):
    """theta and scaling of an object."""
    if not isinstance(values, dict):
        keys.fail(name, f"expected an object, found {brief(values)}")
    inner = Keys(values, f"{keys.where}: {name}")
    scaling = _scaling(inner, max_position, original)
    own = inner.number("rope_theta", None)
    if scaling is None:
        for key in ("factor", "original_max_position_embeddings"):  # of a type that does not use them
            inner.raw(key)
    inner.finish()
    return own or theta, scaling


def read_rope(keys: Keys, default_theta: float, max_position: int, default_local: float | None = None) -> dict:
    """The contract's keys rope_theta, rope_scaling and rope_theta_local.

    default_local: θ of sliding layers where the family has one of its own (Gemma 3), else None.
    """
    theta, local = keys.number("rope_theta", None), keys.number("rope_local_base_freq", None)
    original = keys.integer("original_max_position_embeddings", None)
    new, old = keys.raw("rope_parameters"), keys.raw("rope_scaling")
    if new and old and new != old:
        keys.fail("rope_scaling", "contradicts rope_parameters")
    nested = {}
    if isinstance(new, dict) and any(kind in new for kind in LAYER_TYPES):
        for kind in new:
            if kind not in LAYER_TYPES:
                keys.fail("rope_parameters", f"{brief(kind)} is not understood")
        nested = {kind: new[kind] or {} for kind in new}
        full, name = nested.get("full_attention", {}), "rope_parameters.full_attention"
    else:
        full, name = new or old or {}, "rope_parameters" if new else "rope_scaling"
    own_theta, scaling = _one(full, keys, name, None, max_position, original)
    if own_theta and theta and own_theta != theta:
        keys.fail("rope_theta", f"{theta:g} contradicts {name}, which says {own_theta:g}")
    found = {"rope_theta": own_theta or theta or default_theta, "rope_scaling": scaling}
    if "sliding_attention" in nested:
        where = "rope_parameters.sliding_attention"
        sliding_theta, sliding = _one(nested["sliding_attention"], keys, where, None, max_position, original)
        if local and sliding_theta and local != sliding_theta:
            keys.fail("rope_local_base_freq", f"{local:g} contradicts {where}, which says {sliding_theta:g}")
        sliding_theta = sliding_theta or local or default_local or found["rope_theta"]
        if sliding is not None and (sliding, sliding_theta) != (scaling, found["rope_theta"]):
            keys.fail("rope_parameters", "scaling of sliding_attention layers that differs from that of the others")
        if sliding is None and (scaling is not None or sliding_theta != found["rope_theta"]):
            found["rope_theta_local"] = sliding_theta
    elif local or default_local:
        found["rope_theta_local"] = local or default_local
    return found


def rope_keys(config: dict, local: bool) -> tuple[float, dict | None]:
    """theta and scaling of these layers. local: of local_rope ones, which may have a theta of their own."""
    if local and config["rope_theta_local"]:
        return config["rope_theta_local"], None
    return config["rope_theta"], config["rope_scaling"]


def rope_frequencies(config: dict, local: bool) -> tuple[np.ndarray, float]:
    """The angle by which one position turns each pair, float64 [head_dim / 2], and the factor on cos and sin.

    local: as for rope_keys.
    """
    theta, scaling = rope_keys(config, local)
    width = config["head_dim"]
    plain = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    if scaling is None:
        return plain, 1.0
    factor = scaling["factor"]
    if scaling["type"] == "linear":
        return plain / factor, 1.0
    original = scaling["original_max_position"]
    if scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * plain / (2 * math.pi)  # in the original context
        between = (turns >= low) & (turns < high)  # none where high is not above low
        kept = np.where(between, (turns - low) / (high - low if high != low else 1.0), turns >= low)
        return plain * (kept + (1 - kept) / factor), 1.0

    def pair_with(turns: float) -> float:  # whose frequency makes so many turns in the original context
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(scaling["beta_fast"])), 0)
    last = min(math.ceil(pair_with(scaling["beta_slow"])), width - 1)
    # last < first is no special case: the ramp then runs the other way, as in transformers.
    kept = 1 - ((np.arange(width // 2) - first) / (last - first if last != first else 0.001)).clip(0, 1)
    attention_factor = scaling["attention_factor"] or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return plain * (kept + (1 - kept) / factor), attention_factor
