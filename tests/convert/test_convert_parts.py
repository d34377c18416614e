#!/usr/bin/python3
"""The parts of the converters: checksums, types of elements, order of rows, RoPE keys, patterns of layers."""

import json
import unittest

import conversions  # noqa: F401: puts scripts/ into the path
import h5py
import numpy as np

from convert.config_keys import Keys
from convert.crc32c import crc32c
from convert.families import family_of, read_config, shortest_pattern
from convert.ptrt_file import ModelWriter
from convert.rope import read_rope, rope_frequencies
from convert.tensors import Tensor, converted, slices, to_bfloat16, with_halves
from conversions import ROOT, ConvertTest, attribute

import sys
sys.path.insert(0, str(ROOT / "tests" / "reference"))
import pt_reference as ref  # noqa: E402
from crc32c import crc32c as reference_crc32c  # noqa: E402


def tensor(values: np.ndarray, dtype: str = "float32") -> Tensor:
    rows = values.reshape(-1, values.shape[-1])
    return Tensor("t", values.shape, dtype, lambda a, b: rows[a:b])


class Checksums(unittest.TestCase):
    def test_known(self):
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)
        self.assertEqual(crc32c(b""), 0)
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)

    def test_lengths_and_pieces(self):
        """Lengths around those where the folding begins and changes its blocks; pieces give the same."""
        data = np.random.default_rng(1).integers(0, 256, 1_600_000, dtype=np.uint8)
        for length in (1, 7, 8, 2319, 2320, 2327, 2328, 5000, 45_479, 45_488, 45_489, 727_680, 727_688, 1_600_000):
            whole = crc32c(data[:length])
            self.assertEqual(whole, reference_crc32c(data[:length].tobytes()), length)
            for cut in (1, length // 3, length - 1):
                self.assertEqual(crc32c(data[cut:length], crc32c(data[:cut])), whole)


class Elements(unittest.TestCase):
    def test_bfloat16_is_rounded_to_nearest(self):
        cases = {0x3F808000: 0x3F80, 0x3F818000: 0x3F82, 0x3F808001: 0x3F81, 0x7F7FFFFF: 0x7F80, 0xFF800000: 0xFF80,
                 0x80000001: 0x8000}
        bits = to_bfloat16(np.array(list(cases), np.uint32).view(np.float32))
        self.assertEqual(bits.tolist(), list(cases.values()))
        strange = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)
        self.assertTrue(np.isnan((to_bfloat16(strange).astype(np.uint32) << 16).view(np.float32)).all())

    def test_conversions(self):
        wide = np.random.default_rng(2).standard_normal((5, 7)).astype(np.float32)
        for dtype, stored in (("float16", wide.astype(np.float16)), ("bfloat16", to_bfloat16(wide)),
                              ("float64", wide.astype(np.float64))):
            back = converted(stored, dtype, "float32", "t")
            self.assertEqual(back.dtype, np.float32)
            np.testing.assert_allclose(back, wide, rtol=4e-3)
            if dtype != "float64":
                np.testing.assert_array_equal(converted(back, "float32", dtype, "t"), stored)

    def test_rows_of_heads(self):
        """llama.cpp has rows 0, 4, 1, 5, 2, 6, 3, 7 of a head of eight."""
        heads, size, columns = 3, 8, 5
        wanted = np.arange(heads * size * columns, dtype=np.float32).reshape(heads * size, columns)
        order = [head * size + row for head in range(heads) for row in (0, 4, 1, 5, 2, 6, 3, 7)]
        back = with_halves(tensor(wanted[order]), heads)
        np.testing.assert_array_equal(back.read(0, heads * size), wanted)
        for first in range(heads * size):  # any slice
            for last in range(first, heads * size + 1):
                np.testing.assert_array_equal(back.read(first, last), wanted[first:last])
        np.testing.assert_array_equal(with_halves(tensor(wanted[order, 0]), heads).read(0, 1)[0], wanted[:, 0])


class Writer(ConvertTest):
    def test_pieces(self):
        """Slices of any size give the whole, for experts too, with the checksum of all bytes."""
        for shape in ((9,), (40, 6), (3, 10, 4)):
            values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
            for step in (1, 7, 1000):
                path = self.fresh(".h5")
                with ModelWriter(path, {"tracks": 1}) as writer:
                    with writer.dataset("/tracks/00/layers/000/experts/w", shape, "float32") as out:
                        rows = values.reshape(-1, shape[-1])
                        for first in range(0, len(rows), step):
                            out.append(rows[first:first + step])
                    writer.commit()
                with h5py.File(path) as file:
                    found = file["/tracks/00/layers/000/experts/w"]
                    np.testing.assert_array_equal(found[()], values)
                    self.assertEqual(found.attrs["crc32c"], reference_crc32c(values.tobytes()))
                    self.assertEqual(attribute(file, "format"), "ptrt")

    def test_incomplete(self):
        path = self.fresh(".h5")
        with self.assertRaisesRegex(Exception, "1 of 2 rows"):
            with ModelWriter(path, {"tracks": 1}) as writer, writer.dataset("/shared/x", (2, 3), "float32") as out:
                out.append(np.zeros((1, 3), np.float32))
        self.assertFalse(path.exists())

    def test_slices_are_small(self):
        """A tensor of 400 MB comes in slices of at most 16 MiB."""
        rows = 100_000
        big = Tensor("t", (rows, 1000), "float32", lambda a, b: np.broadcast_to(np.float32(1), (b - a, 1000)))
        lengths = [len(piece) for piece in slices(big, "float32")]
        self.assertEqual(sum(lengths), rows)
        self.assertLessEqual(max(lengths) * 4000, 16 << 20)


class Rope(unittest.TestCase):
    """Both ways of writing the same."""

    def rope(self, config: dict, **more) -> dict:
        return read_rope(Keys(json.loads(json.dumps(config)), "config.json"), 10000.0, 4096, **more)

    def test_versions(self):
        yarn = {"factor": 4.0, "original_max_position_embeddings": 1024}
        old = self.rope({"rope_theta": 7.0, "rope_scaling": {"type": "yarn"} | yarn})
        new = self.rope({"rope_parameters": {"rope_type": "yarn", "rope_theta": 7.0} | yarn})
        self.assertEqual(old, new)
        self.assertEqual(self.rope({"rope_theta": 7.0, "rope_scaling": {"type": "yarn", "factor": 4.0},
                                    "original_max_position_embeddings": 1024}), new)
        self.assertEqual(self.rope({}), {"rope_theta": 10000.0, "rope_scaling": None})
        self.assertEqual(self.rope({"rope_scaling": {"rope_type": "default"}}), self.rope({}))

    def test_attention_factor(self):
        yarn = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 1024}
        factors = [self.rope({"rope_scaling": yarn | more})["rope_scaling"]["attention_factor"] for more in (
            {}, {"mscale": 1.0}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.707, "mscale_all_dim": 1.0},
            {"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 1.0})]
        log = 0.1 * np.log(40)
        self.assertEqual(factors[:2], [None, None])
        np.testing.assert_allclose(factors[2:], [1.0, (0.707 * log + 1) / (log + 1), 1.5], rtol=1e-12)

    def test_frequencies_are_those_of_transformers_and_the_reference(self):
        """Bounds of llama3 and yarn in both orders, and equal ones: the cases of the program's own test."""
        cases = json.loads((ROOT / "tests" / "runtime" / "golden" / "rope_frequencies.json").read_text())
        orders = {(scaling["type"], np.sign(scaling[high] - scaling[low])) for scaling in (case["rope_scaling"] for case in cases)
                  for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")) if low in scaling}
        self.assertEqual(len(orders), 6)
        for case in cases:
            with self.subTest(case["rope_scaling"]):
                config = case | {"rope_theta_local": None, "rope_scaling": {"attention_factor": None} | case["rope_scaling"]}
                frequencies, factor = rope_frequencies(config, False)
                np.testing.assert_allclose(frequencies, case["frequencies"], rtol=1e-6)
                self.assertAlmostEqual(factor, case["magnitude"], 12)
                want, magnitude = ref.rope_frequencies(config, "global_rope")
                np.testing.assert_allclose(frequencies, want, rtol=1e-14)
                self.assertEqual(factor, magnitude)

    def test_local_theta(self):
        nested = {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5.0},
                                      "sliding_attention": {"rope_type": "default", "rope_theta": 3.0}}}
        old = {"rope_theta": 5.0, "rope_local_base_freq": 3.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
        self.assertEqual(self.rope(nested, default_local=9.0), self.rope(old, default_local=9.0))
        self.assertEqual(self.rope(nested)["rope_theta_local"], 3.0)
        self.assertEqual(self.rope({}, default_local=9.0)["rope_theta_local"], 9.0)


# Keys of well-known models' config.json, as published, without those that say sizes.
PUBLISHED = {
    "Llama-3.2-1B": ({"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
                      "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "initializer_range": 0.02,
                      "mlp_bias": False, "pretraining_tp": 1, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
                      "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                                       "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                      "tie_word_embeddings": True, "transformers_version": "4.45.0.dev0", "use_cache": True},
                     {"rope_theta": 500000.0, "tie_embeddings": True, "attention_pattern": ["global_rope"]}),
    "SmolLM2-135M": ({"model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
                      "rope_theta": 100000, "tie_word_embeddings": True, "transformers.js_config": {"dtype": "q4"}},
                     {"rope_theta": 100000.0}),
    "Qwen2.5-0.5B": ({"model_type": "qwen2", "max_window_layers": 24, "sliding_window": 32768,
                      "use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 1000000.0},
                     {"attention_bias": ["q", "k", "v"], "attention_pattern": ["global_rope"], "attention_window": 0}),
    "Qwen3-30B-A3B": ({"model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
                       "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
                       "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8, "rope_scaling": None,
                       "output_router_logits": False, "router_aux_loss_coef": 0.001, "sliding_window": None,
                       "use_sliding_window": False},
                      {"ffn_pattern": ["moe"], "qk_norm": True,
                       "moe": {"experts": 128, "top_k": 8, "ffn_size": 768, "router_logit_cap": None}}),
    "SmolLM3-3B": ({"model_type": "smollm3", "layer_types": ["full_attention"] * 12, "max_window_layers": 28,
                    "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 3,
                    "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
                    "use_sliding_window": False},
                   {"attention_pattern": ["global_rope"] * 3 + ["global_nope"], "tie_embeddings": True}),
    "gemma-3-1b-it": ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
                       "attn_logit_softcapping": None, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
                       "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
                       "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000, "rope_scaling": None,
                       "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6},
                      {"attention_pattern": ["local_rope"] * 5 + ["global_rope"], "attention_window": 512,
                       "rope_theta_local": 10000.0, "norm_placement": ["pre", "output"], "embedding_scale": 8.0,
                       "ffn_activation": "gelu_tanh"}),
}


class Published(unittest.TestCase):
    def test_configurations(self):
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 12,
                 "intermediate_size": 64, "vocab_size": 99, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6}
        for name, (config, wanted) in PUBLISHED.items():
            with self.subTest(name):
                found = read_config(sizes | config, family_of(config, "x"), name, "x", set())
                self.assertEqual({key: found.get(key) for key in wanted}, wanted)
                optional = {"attention_bias", "attention_scale", "embedding_scale", "ffn_activation", "rope_scaling",
                            "rope_theta_local"}
                self.assertLessEqual(optional & found.keys(), wanted.keys() | {"rope_scaling"})


class Patterns(unittest.TestCase):
    def test_shortest(self):
        for kinds, wanted in (("aaaa", "a"), ("aabaab", "aab"), ("aabaa", "aab"), ("abc", "abc"), ("aab", "aab"),
                              ("abab", "ab"), ("baaa", "baaa")):
            self.assertEqual("".join(shortest_pattern(list(kinds))), wanted)


if __name__ == "__main__":
    unittest.main(verbosity=1)
