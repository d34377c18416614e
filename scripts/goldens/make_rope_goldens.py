#!/usr/bin/env python3
"""Makes tests/runtime/golden/rope_frequencies.json: RoPE frequencies and magnitudes as transformers 5 computes them.

Needs transformers and torch; the tests only read the file. Each case has keys of our config and what transformers gives
for them, in float32.
"""

import json
from pathlib import Path

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "runtime" / "golden" / "rope_frequencies.json"


def llama3(factor: float, low: float, high: float, original: int) -> dict:
    return {"type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position": original}


def yarn(factor: float, original: int, fast: float, slow: float, **more) -> dict:
    return {"type": "yarn", "factor": factor, "original_max_position": original, "beta_fast": fast,
            "beta_slow": slow, **more}


# Head size, theta, scaling. Linear: Gemma 3; llama3: Llama 3.1 and 3.2; yarn: Qwen 2.5 and OLMo 3.
CASES = [
    (256, 1000000.0, {"type": "linear", "factor": 8.0}),
    (10, 10000.0, {"type": "linear", "factor": 0.5}),
    (128, 500000.0, llama3(8.0, 1.0, 4.0, 8192)),
    (64, 500000.0, llama3(32.0, 1.0, 4.0, 8192)),
    (16, 500.0, llama3(3.0, 0.5, 7.5, 64)),
    (128, 1000000.0, yarn(4.0, 32768, 32.0, 1.0)),
    (128, 500000.0, yarn(8.0, 8192, 32.0, 1.0, attention_factor=1.2079441541679836)),
    (24, 1000.0, yarn(4.0, 64, 2.0, 0.25)),
    (16, 10000.0, yarn(16.0, 32, 1.0, 0.05, attention_factor=1.4)),
    (8, 10000.0, yarn(0.75, 64, 64.0, 32.0)),  # no turns: low and high are both 0
    (16, 500.0, llama3(3.0, 7.5, 0.5, 64)),  # bounds the other way round, and equal
    (16, 500.0, llama3(3.0, 2.5, 2.5, 64)),
    (24, 1000.0, yarn(4.0, 64, 0.25, 2.0)),
    (128, 1000000.0, yarn(4.0, 32768, 1.0, 32.0)),
    (24, 1000.0, yarn(4.0, 64, 2.0, 2.0)),
    (8, 1.5, yarn(4.0, 4096, 8.0, 1.0)),  # both pairs beyond the last: low is above high
]


def computed(head_dim: int, theta: float, scaling: dict) -> dict:
    """The case, with what transformers gives."""
    names = {"type": "rope_type", "original_max_position": "original_max_position_embeddings"}
    parameters = {names.get(key, key): value for key, value in scaling.items()}
    config = PretrainedConfig()
    config.hidden_size, config.num_attention_heads, config.head_dim = 4 * head_dim, 4, head_dim
    config.max_position_embeddings = 131072
    config.rope_parameters = {**parameters, "rope_theta": theta}
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[scaling["type"]](config, device="cpu")
    return {"head_dim": head_dim, "rope_theta": theta, "rope_scaling": scaling,
            "frequencies": [float(f"{value:.8g}") for value in frequencies.tolist()], "magnitude": float(magnitude)}


def main() -> None:
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(computed(*case)) for case in CASES)
    GOLDEN.write_text(f"[{lines}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
