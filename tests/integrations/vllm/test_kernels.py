"""vLLM's kernels as parts of a folded model, against ptrt_torch's plain parts."""

import shutil
import tempfile
import unittest
from itertools import product
from unittest import mock

import torch
from ptrt_torch.config import read_config
from ptrt_torch.parts import Rotation, TrackLinear, TrackNorm
from ptrt_vllm.kernels import KernelNorm, KernelRotation, SlotLinear, linear
from vllm import _custom_ops as ops
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (cleanup_dist_env_and_memory, ensure_model_parallel_initialized,
                              init_distributed_environment)
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.platforms import current_platform

import engines

TYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def settings(*custom_ops: str):
    config = VllmConfig()
    config.compilation_config.custom_ops = list(custom_ops)
    return set_current_vllm_config(config)


def setUpModule() -> None:
    """vLLM's linear layers ask for the group of ranks, of one here."""
    folder = tempfile.mkdtemp()
    unittest.addModuleCleanup(shutil.rmtree, folder)
    with settings("all"):
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
    unittest.addModuleCleanup(cleanup_dist_env_and_memory)


def randomize(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.normal_()


class Kernels(unittest.TestCase):

    def setUp(self) -> None:
        torch.manual_seed(1)
        before = torch.get_default_dtype()
        self.addCleanup(torch.set_default_dtype, before)

    def check(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        self.assertEqual(found.dtype, wanted.dtype)
        limit = TOLERANCE[wanted.dtype]
        torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)

    def test_linear(self) -> None:
        for dtype in TYPES:
            torch.set_default_dtype(dtype)
            for slots, bias in ((1, False), (1, True), (3, False), (3, True)):
                with settings("all"):
                    ours = linear(slots, 48, 64, bias)
                plain = TrackLinear(slots, 48, 64, bias)
                randomize(plain)
                self.assertIsInstance(ours, ReplicatedLinear if slots == 1 else SlotLinear)
                for name, parameter in plain.named_parameters():
                    getattr(ours, name).data.copy_(parameter.view_as(getattr(ours, name)))
                ours.quant_method.process_weights_after_loading(ours)
                if current_platform.is_cpu() and dtype != torch.float16:  # for which few CPUs have products
                    self.assertEqual(ours.weight.numel(), 0, "the plain matrix is kept beside the packed one")
                for rows in (1, 5, 40):
                    x = torch.randn(slots, rows, 64)
                    apart = torch.randn(rows, slots, 64).transpose(0, 1)  # as attention gives it
                    for given in (x, apart):
                        self.check(ours(given) / 8, plain(given) / 8)

    def test_linear_without_onednn(self) -> None:
        """As on a CPU for whose type oneDNN has no product."""
        with settings("all"):
            ours = linear(3, 48, 64, True)
        plain = TrackLinear(3, 48, 64, True)
        randomize(plain)
        ours.load_state_dict(plain.state_dict())
        with mock.patch.object(ops, "create_onednn_mm", side_effect=RuntimeError("no primitive")):
            ours.quant_method.process_weights_after_loading(ours)
        x = torch.randn(3, 5, 64)
        torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)

    def test_linear_compiled(self) -> None:
        """A chain of products under Inductor, whose fusions have mixed up independent tracks before."""
        torch.set_default_dtype(torch.float32)
        with settings("none"):
            layers = [linear(4, 64, 64, False) for _ in range(3)]
        for layer in layers:
            layer.weight.data.normal_(std=0.125)
            layer.quant_method.process_weights_after_loading(layer)

        def chain(x):
            for layer in layers:
                x = x + torch.nn.functional.silu(layer(x))
            return x.sum(0)

        compiled = torch.compile(chain, dynamic=True)
        for rows in (7, 3):
            x = torch.randn(4, rows, 64)
            self.check(compiled(x), chain(x))

    def test_norm(self) -> None:
        for dtype in TYPES:
            torch.set_default_dtype(dtype)
            for custom, by_kernel in (("all", True), ("none", False)):
                cases = ((1, 64, False), (3, 48, False), (3, 64, True), (2, 20, False))
                for (slots, size, scale_first), exact in product(cases, (True, False)):
                    with settings(custom):
                        ours = KernelNorm(slots, size, 1e-5, scale_first)
                    plain = TrackNorm(slots, size, 1e-5, scale_first)
                    randomize(plain)
                    if exact:  # as in a file of the model's type
                        plain.weight.data.copy_(plain.weight.to(dtype))
                    ours.load_state_dict(plain.state_dict())
                    if hasattr(ours, "quant_method"):  # which vLLM looks for after it loads
                        ours.quant_method.process_weights_after_loading(ours)
                    self.assertEqual(ours.by_kernel, by_kernel and not scale_first and size != 20 and
                                     (exact or dtype == torch.float32))
                    x, residual = torch.randn(slots, 5, size), torch.randn(slots, 5, size)
                    heads = torch.randn(5, slots, 2, size).transpose(0, 1)
                    self.check(ours(x), plain(x))
                    self.check(ours(heads), plain(heads))
                    wanted = plain(x, residual)
                    for found, want in zip(ours(x.clone(), residual.clone()), wanted):
                        self.check(found, want)

    def test_rotation(self) -> None:
        config = read_config(engines.DEMO)
        for dtype in TYPES:
            torch.set_default_dtype(dtype)
            for custom, by_kernel in (("all", True), ("none", False)):
                with settings(custom):
                    ours = KernelRotation(config, False)
                self.assertEqual(ours.by_kernel, by_kernel)
                size = config["head_dim"]
                whole = torch.randn(9, 6 * size)
                q, k = whole.split((4 * size, 2 * size), dim=-1)  # views, as products give them
                places = torch.tensor([0, 1, 2, 300, 17, 3, 3, 511, 64])
                for found, want in zip(ours(places, q.clone(), k.clone()), Rotation(config, False)(places, q, k)):
                    self.check(found, want)
                wanted = [y.clone() for y in Rotation(config, False)(places, q, k)]
                for found, want in zip(ours(places, q, k), wanted):
                    self.check(found, want)


if __name__ == "__main__":
    unittest.main(verbosity=1)
