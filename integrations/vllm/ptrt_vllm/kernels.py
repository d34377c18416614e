"""vLLM's own kernels as the parts of a folded model. On CPU these are oneDNN's products of packed matrices, which its own models
take too, and norms and RoPE in one call each.

Shapes: S slots, the tracks of this rank; n tokens. Under Inductor the norms and RoPE are the plain ones, which it fuses; vLLM's
compilation_config.custom_ops ("+rms_norm", "+rotary_embedding") decides, as for its own layers.
"""

import torch
from ptrt_torch.parts import Rotation, TrackLinear, TrackNorm
from torch import nn
from vllm import _custom_ops as ops
from vllm.logger import init_logger
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

logger = init_logger(f"vllm.{__name__}")  # with vLLM's handlers

NORM_STEP = 16  # elements: vLLM's norms on CPU take whole vectors


def has_kernels() -> bool:
    return current_platform.is_cpu() or current_platform.is_cuda_alike()


def linear(slots: int, outputs: int, inputs: int, bias: bool) -> nn.Module:
    if slots == 1:
        return ReplicatedLinear(inputs, outputs, bias=bias, return_bias=False, disable_tp=True)
    return SlotLinear(slots, outputs, inputs, bias)


def slot_products(x: torch.Tensor, handlers: torch.Tensor, outputs: int) -> torch.Tensor:
    """x [S, n, inputs], handlers [S] of oneDNN products -> [S, n, outputs]."""
    y = x.new_empty(*x.shape[:2], outputs)
    for slot, handler in enumerate(handlers):
        torch.ops._C.onednn_mm(y[slot], x[slot], None, handler)
    return y


def slot_products_fake(x: torch.Tensor, handlers: torch.Tensor, outputs: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:2], outputs)


# One op for all slots, so that no compiler rearranges the slots' products.
direct_register_custom_op(op_name="ptrt_slot_products", op_func=slot_products, fake_impl=slot_products_fake)


class SlotMethod(QuantizeMethodBase):
    """On CPU: packs each slot's matrix for oneDNN once it is loaded, and drops the plain one."""

    def create_weights(self, layer, *args, **kwargs):
        """SlotLinear has them."""

    def process_weights_after_loading(self, layer):
        if not current_platform.is_cpu() or not ops._supports_onednn:
            return
        try:
            products = [ops.create_onednn_mm(matrix.t(), 32) for matrix in layer.weight.data]
        except RuntimeError as error:  # oneDNN has none for the type on this CPU, as for float16 without AVX512-FP16
            logger.warning_once("Products run in plain PyTorch: oneDNN has none for %s here (%s)", layer.weight.dtype, str(error))
            return
        layer.products, layer.handlers = products, torch.stack([product.handler_tensor for product in products])
        layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)

    def apply(self, layer, x):
        y = torch.ops.vllm.ptrt_slot_products(x, layer.handlers, layer.outputs)
        return y if layer.bias is None else y + layer.bias[:, None]


class SlotLinear(TrackLinear):

    def __init__(self, slots: int, outputs: int, inputs: int, bias: bool):
        super().__init__(slots, outputs, inputs, bias)
        self.outputs, self.quant_method = outputs, SlotMethod()
        self.products, self.handlers = None, None

    def forward(self, x):
        return super().forward(x) if self.handlers is None else self.quant_method.apply(self, x)


class NormMethod(QuantizeMethodBase):
    """Once it is loaded, a norm is left to the kernel if its weights have the same values in the type of the model."""

    def create_weights(self, layer, *args, **kwargs):
        """KernelNorm has them."""

    def process_weights_after_loading(self, layer):
        rounded = layer.weight.to(layer.dtype)
        layer.by_kernel = torch.equal(rounded.to(layer.weight.dtype), layer.weight)
        if layer.by_kernel:
            layer.weight = nn.Parameter(rounded, requires_grad=False)

    def apply(self, layer, *args):
        return layer(*args)


class KernelNorm(TrackNorm):
    """RMSNorm by vLLM's kernels, which take weights of the type of the model; the plain one where these would be rounded."""

    def __init__(self, slots: int, size: int, eps: float, scale_first: bool):
        super().__init__(slots, size, eps, scale_first)
        self.dtype, self.by_kernel = torch.get_default_dtype(), False
        if has_kernels() and RMSNorm.enabled() and not scale_first and size % NORM_STEP == 0:
            self.quant_method = NormMethod()

    def forward(self, x, residual=None):
        if not self.by_kernel:
            return super().forward(x, residual)
        x = x.contiguous()
        if residual is not None:
            for slot, scale in enumerate(self.weight):
                ops.fused_add_rms_norm(x[slot], residual[slot], scale, self.eps)
            return x, residual
        y = torch.empty_like(x)
        for slot, scale in enumerate(self.weight):
            ops.rms_norm(y[slot], x[slot], scale, self.eps)
        return y


class KernelRotation(Rotation):
    """RoPE by vLLM's kernel, or its plain form where that is off; the table has the type of the model, as in vLLM's own."""

    def __init__(self, config: dict, local: bool):
        super().__init__(config, local)
        table = torch.cat((self.cos, self.sin), dim=-1).to(torch.get_default_dtype())
        del self.cos, self.sin
        self.register_buffer("cos_sin", table, persistent=False)
        self.by_kernel = has_kernels() and RotaryEmbedding.enabled()

    def forward(self, positions, q, k):
        if not self.by_kernel:
            return RotaryEmbedding.forward_static(positions, q, k, self.head_dim, self.head_dim, self.cos_sin, True)
        ops.rotary_embedding(positions, q, k, self.head_dim, self.cos_sin, True)
        return q, k
