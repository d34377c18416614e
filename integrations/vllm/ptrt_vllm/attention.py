"""vLLM's attention and KV cache for the heads of all tracks of a rank."""

from ptrt_torch.parts import narrow_heads, widen_heads
from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform

# Elsewhere than on CPU. FLASH_ATTN takes multiples of 8 up to 256, TRITON_ATTN all from 32 on, FLEX_ATTENTION all; vLLM passes
# over backends that do not take the width, as FLASHINFER does with all but 64, 128, 256 and 512.
_DEVICE_STEP = 32


def cached_head_dim(head_dim: int) -> int:
    """The width of a head that the backend has kernels for: head_dim, or the next one above."""
    if not current_platform.is_cpu():
        return -(-head_dim // _DEVICE_STEP) * _DEVICE_STEP
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    widths = CPUAttentionBackend.get_supported_head_sizes()
    fitting = [width for width in sorted(widths) if width >= head_dim]
    if not fitting:
        raise ValueError(f"head_dim {head_dim}: vLLM's attention on CPU has kernels up to {max(widths)}")
    return fitting[0]


class TrackAttention(nn.Module):
    """Causal attention of one layer: q, k, v [tokens, heads * head_dim] of all tracks side by side -> the same shape as q.

    Heads narrower than a kernel's are padded with zeros, which changes neither q·k nor the kept columns of the output.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, scale: float, window: int | None, cache_config, name: str):
        """name: of the layer's KV cache. It is unique in a rank, holds exactly one integer (vLLM sorts the caches by it), and
        is the same on all ranks (vLLM merges what they need), so it does not say which tracks these are."""
        super().__init__()
        self.head_dim, self.cached = head_dim, cached_head_dim(head_dim)
        self.attend = Attention(heads, self.cached, scale, num_kv_heads=kv_heads, cache_config=cache_config,
                                per_layer_sliding_window=window, prefix=name)

    def forward(self, q, k, v):
        q, k, v = (widen_heads(x, self.head_dim, self.cached) for x in (q, k, v))
        return narrow_heads(self.attend(q, k, v), self.head_dim, self.cached)
