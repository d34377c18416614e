"""What the PyTorch modules compute alike (docs/SPEC.md, The model): norms, rotation, gates and routing.

Sums that must not be rounded are computed at least in float32, whatever type the weights have.
"""

import torch
import torch.nn.functional as F


def wide(x):
    """At least float32, in which norms, router and sums over tracks are computed."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x, weight, eps, scale_first=False):
    """weight has the shape of x's last dimensions, or ones that broadcast to it."""
    x = wide(x) * weight if scale_first else wide(x)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if scale_first else x * weight


def rotate(x, cos, sin):
    """Rotary position encoding of x [.., head_dim], half-split pairing; cos and sin [.., head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def activate(x, activation):
    """activation: the config's ffn_activation."""
    return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")


def route(logits, moe):
    """The experts that each row of logits [.., experts] chooses: shares, indices, both [.., top_k], and all chances.

    moe: the config's. Of equal logits the lower index is chosen first.
    """
    if moe["router_logit_cap"]:
        logits = moe["router_logit_cap"] * torch.tanh(logits / moe["router_logit_cap"])
    ranked, chosen = logits.sort(dim=-1, descending=True, stable=True)
    chosen, chance = chosen[..., :moe["top_k"]], logits.softmax(-1)
    share = ranked[..., :moe["top_k"]].softmax(-1) if moe["normalize_top_k"] else chance.gather(-1, chosen)
    return share, chosen, chance
