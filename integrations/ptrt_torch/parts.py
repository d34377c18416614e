"""Parts of a folded model, in plain PyTorch: what an engine may replace by kernels of its own (folded.py says how).

Shapes: S slots, the tracks of this rank; n tokens; d hidden_size. Parameters have the slots as first dimension, the default
type of torch, and no gradient; norms and the router are at least float32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .convert.pt_math import activate, rms_norm, rotate, wide
from .convert.rope import rope_frequencies


def weight(*shape: int, exact: bool = False) -> nn.Parameter:
    """exact: at least float32."""
    dtype = torch.get_default_dtype()
    return nn.Parameter(torch.empty(shape, dtype=torch.promote_types(dtype, torch.float32) if exact else dtype),
                        requires_grad=False)


def widen_heads(x, head_dim: int, width: int):
    """[n, heads * head_dim] -> [n, heads * width], with zeros: no product of q and k and no output column changes."""
    return x if width == head_dim else F.pad(x.unflatten(-1, (-1, head_dim)), (0, width - head_dim)).flatten(1)


def narrow_heads(x, head_dim: int, width: int):
    """Takes the zeros away again."""
    return x if width == head_dim else x.unflatten(-1, (-1, width))[..., :head_dim].flatten(1)


class TrackNorm(nn.Module):
    """RMSNorm with a weight a slot. scale_first: the weight multiplies before the norm (pre_scale_norms)."""

    def __init__(self, slots: int, size: int, eps: float, scale_first: bool):
        super().__init__()
        self.weight, self.eps, self.scale_first = weight(slots, size, exact=True), eps, scale_first

    def forward(self, x, residual=None):
        """x [S, ..., size] -> norm(x); with a residual -> norm(x + residual), x + residual."""
        if residual is not None:
            x = residual = x + residual
        scale = self.weight.view(self.weight.shape[0], *[1] * (x.dim() - 2), -1)
        y = rms_norm(x, scale, self.eps, self.scale_first).to(x.dtype)
        return y if residual is None else (y, residual)


class TrackLinear(nn.Module):
    """x [S, n, inputs] -> [S, n, outputs]: each slot's own matrix."""

    def __init__(self, slots: int, outputs: int, inputs: int, bias: bool):
        super().__init__()
        self.weight = weight(slots, outputs, inputs)
        self.bias = weight(slots, outputs) if bias else None

    def forward(self, x):
        if self.weight.shape[0] == 1:
            return F.linear(x, self.weight[0], None if self.bias is None else self.bias[0])
        y = torch.bmm(x, self.weight.mT)
        return y if self.bias is None else y + self.bias[:, None]


class Rotation(nn.Module):
    """RoPE of q and k [n, heads * head_dim] by tables of all positions below max_context.

    local: of local_rope layers.
    """

    def __init__(self, config: dict, local: bool):
        super().__init__()
        self.head_dim = config["head_dim"]
        frequency, factor = rope_frequencies(config, local)
        place = torch.arange(config["max_context"], dtype=torch.float64, device="cpu")
        angle = place[:, None] * torch.from_numpy(frequency)
        as_weights = {"dtype": torch.promote_types(torch.get_default_dtype(), torch.float32),
                      "device": torch.get_default_device()}
        self.register_buffer("cos", (angle.cos() * factor).to(**as_weights), persistent=False)
        self.register_buffer("sin", (angle.sin() * factor).to(**as_weights), persistent=False)

    def forward(self, positions, q, k):
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]  # for every head
        return tuple(rotate(wide(x.unflatten(-1, (-1, self.head_dim))), cos, sin).flatten(1).to(x.dtype) for x in (q, k))


class Gate(nn.Module):
    """The product of the activated first half of the last dimension and its second half."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation

    def forward(self, x):
        gate, up = x.chunk(2, dim=-1)
        return activate(gate, self.activation) * up


class TrackExperts(nn.Module):
    """The experts of every slot: x [S, n, d], shares and indices of chosen ones [S, n, top_k] -> [S, n, d].

    Two forms give the same up to rounding. Under torch.compile, in a CUDA graph and where `static` is set, every expert sees
    every token, and no shape depends on data. Else each expert sees the tokens that chose it.
    """

    static = False

    def __init__(self, slots: int, experts: int, size: int, ffn_size: int, activation: str):
        super().__init__()
        self.w_gate_up = weight(slots, experts, 2 * ffn_size, size)
        self.w_down = weight(slots, experts, size, ffn_size)
        self.gate = Gate(activation)

    def forward(self, x, share, chosen):
        if self.static or torch.compiler.is_compiling() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            return self.all_experts(x, share, chosen)
        return self.chosen_experts(x, share, chosen)

    def all_experts(self, x, share, chosen):
        spread = share.new_zeros(*x.shape[:2], self.w_down.shape[1]).scatter(-1, chosen, share)  # [S, n, experts]
        y = self.gate(torch.matmul(x[:, None], self.w_gate_up.mT))  # [S, experts, n, ffn_size]
        y = wide(torch.matmul(y, self.w_down.mT))
        return (y * spread.mT[..., None]).sum(1).to(x.dtype)

    def chosen_experts(self, x, share, chosen):
        sums = torch.zeros_like(x, dtype=share.dtype)
        for slot, expert in torch.cartesian_prod(*map(torch.arange, self.w_down.shape[:2])).tolist():
            token, choice = (chosen[slot] == expert).nonzero(as_tuple=True)
            if len(token):
                y = F.linear(self.gate(F.linear(x[slot, token], self.w_gate_up[slot, expert])), self.w_down[slot, expert])
                sums[slot].index_add_(0, token, wide(y) * share[slot, token, choice, None])
        return sums.to(x.dtype)
