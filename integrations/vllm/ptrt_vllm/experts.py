"""The experts of a rank's tracks in vLLM's fused kernels, where they take the model's sizes.

The model's router decides by itself (docs/SPEC.md: its cap, its ties, its weights), so vLLM's is given what was chosen. The
experts of all slots are experts of one layer: expert e of slot s is number s * experts + e, and row s * n + i is token i of
slot s.
"""

from itertools import count

import torch
from ptrt_torch.parts import TrackExperts
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.platforms import current_platform

logger = init_logger(f"vllm.{__name__}")  # with vLLM's handlers


def chosen_before(hidden_states, gating_output, topk: int, renormalize: bool):
    """vLLM's custom routing function. gating_output [rows, 2 * topk]: the shares, then the numbers of the experts as floats."""
    share, chosen = gating_output.split(topk, dim=-1)
    return share, chosen.to(torch.int32)


class FusedExperts(nn.Module):
    """As ptrt_torch.parts.TrackExperts."""

    def __init__(self, slots: int, experts: int, size: int, ffn_size: int, activation: str, top_k: int, name: str):
        super().__init__()
        self.layer = FusedMoEFactory(slots * experts, top_k, size, ffn_size, activation=activation, renormalize=False,
                                     custom_routing_function=chosen_before, reduce_results=False, tp_size=1, dp_size=1,
                                     pcp_size=1, router_logits_dtype=torch.float32, prefix=name)
        first = torch.arange(slots, device=torch.get_default_device()) * experts
        self.register_buffer("first", first[:, None, None], persistent=False)

    @property
    def w_gate_up(self):
        return self.layer.routed_experts.w13_weight

    @property
    def w_down(self):
        return self.layer.routed_experts.w2_weight

    def forward(self, x, share, chosen):
        routed = torch.cat((share.float(), (chosen + self.first).float()), dim=-1)
        return self.layer(x.flatten(0, 1), routed.flatten(0, 1)).view(x.shape)


class ExpertsMaker:
    """The hook `experts` of FoldedModel: fused kernels, or plain PyTorch where there are none for the sizes."""

    def __init__(self, config: dict, prefix: str):
        self.config, self.prefix, self.numbers = config, prefix, count()

    def __call__(self, slots: int, experts: int, size: int, ffn_size: int, activation: str):
        sizes = (slots, experts, size, ffn_size, activation)
        reason = self.obstacle(slots)
        if reason is None:
            try:
                name = f"{self.prefix}.mixtures.{next(self.numbers)}.experts"
                fused = FusedExperts(*sizes, self.config["moe"]["top_k"], name)
                logger.info_once("Experts run in vLLM's fused kernels")
                return fused
            except (NotImplementedError, ValueError) as error:
                reason = str(error).splitlines()[0]
        logger.warning_once("Experts run in plain PyTorch, which is slow: %s", reason)
        return TrackExperts(*sizes)

    @staticmethod
    def obstacle(slots: int) -> str | None:
        if slots > 1 and not current_platform.is_cpu():
            return "vLLM's buffers on this device are for one row a token, not for one a token and track"
        return None
