#!/usr/bin/python3
"""Checks the reference itself: against sums by hand, by identities, and that the grid detects misreadings."""

import copy
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pt_reference as ref
from crc32c import crc32c, crc32c_bytewise
from model_grid import GRID, GridModel, prompts
from model_maker import (OPTIONAL, in_memory, is_matrix, make_config, quantize, quantize_float8, random_tensors,
                         table_config, table_tensors, to_bfloat16, to_float8, write_model, write_random)

TOKENS = [3, 200, 17, 17, 45, 3, 99, 250, 0, 3, 200, 17]


def attention_by_hand(model: ref.Model, layer: int, x: np.ndarray) -> list[list[float]]:
    """Attention of track 0 with every index written out, in the order of the definition."""
    cfg, c = model.config, model.config["head_dim"]
    kind = cfg["attention_pattern"][layer % len(cfg["attention_pattern"])]
    w = {name: model.track(0, layer, name) for name in ("wq", "wk", "wv", "wo")}
    local_theta = cfg.get("rope_theta_local") if kind == "local_rope" else None
    slower = 1 if local_theta else (cfg.get("rope_scaling") or {"factor": 1})["factor"]  # linear
    scale_of_scores = cfg.get("attention_scale") or 1 / math.sqrt(c)

    def bias(name: str, i: int) -> float:
        return model.track(0, layer, f"b{name[1]}")[i] if name[1] in cfg.get("attention_bias", []) else 0.0

    def normed(name: str, v: list[float]) -> list[float]:
        if not cfg["qk_norm"]:
            return v
        scale = 1 / math.sqrt(sum(e * e for e in v) / c + cfg["norm_eps"])
        weight = model.track(0, layer, {"wq": "q_norm", "wk": "k_norm"}[name])
        return [e * scale * weight[j] for j, e in enumerate(v)]

    def rotated(v: list[float], position: int) -> list[float]:
        if kind not in ("global_rope", "local_rope"):
            return v
        turned = list(v)
        for j in range(c // 2):
            a = position * (local_theta or cfg["rope_theta"]) ** (-2 * j / c) / slower
            turned[j] = v[j] * math.cos(a) - v[j + c // 2] * math.sin(a)
            turned[j + c // 2] = v[j + c // 2] * math.cos(a) + v[j] * math.sin(a)
        return turned

    def head_vector(name: str, head: int, position: int) -> list[float]:
        v = [sum(w[name][head * c + j, i] * x[position, i] for i in range(x.shape[1])) + bias(name, head * c + j)
             for j in range(c)]
        if name == "wv":
            return v
        if cfg.get("qk_norm_order") == "after_rope":
            return normed(name, rotated(v, position))
        return rotated(normed(name, v), position)

    out = []
    for p in range(len(x)):
        start = max(0, p - cfg["attention_window"] + 1) if kind.startswith("local") else 0
        row: list[float] = []
        for head in range(cfg["heads"]):
            kv_head = head // (cfg["heads"] // cfg["kv_heads"])
            q = head_vector("wq", head, p)
            scores = [sum(a * b for a, b in zip(q, head_vector("wk", kv_head, s))) * scale_of_scores
                      for s in range(start, p + 1)]
            total = sum(math.exp(s) for s in scores)
            values = [head_vector("wv", kv_head, s) for s in range(start, p + 1)]
            row += [sum(math.exp(s) / total * v[j] for s, v in zip(scores, values)) for j in range(c)]
        out.append([sum(w["wo"][i, j] * row[j] for j in range(len(row))) + bias("wo", i) for i in range(x.shape[1])])
    return out


class Checksums(unittest.TestCase):
    def test_known_values(self):
        self.assertEqual(crc32c(b"123456789"), 0xE3069283)
        self.assertEqual(crc32c(bytes(32)), 0x8A9136AA)

    def test_lanes_agree_with_bytes(self):
        rng = np.random.default_rng(0)
        for length in (0, 1, 3, 4, 255, 1023, 1024, 1025, 5000, 65536, 70001):
            data = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            self.assertEqual(crc32c(data), crc32c_bytewise(data), length)


class ElementTypes(unittest.TestCase):
    def test_bfloat16_rounds_to_nearest_even(self):
        for value, bits in ((1.0, 0x3F80), (1.0 + 2 ** -8, 0x3F80), (1.0 + 3 * 2 ** -8, 0x3F82),
                            (1.0 + 2 ** -8 + 2 ** -20, 0x3F81), (-2.0, 0xC000)):
            self.assertEqual(int(to_bfloat16(np.array([value]))[0]), bits, value)

    def test_int8_takes_groups_of_32(self):
        row = np.zeros(70, np.float32)
        row[[0, 1, 31, 32, 64]] = [127.0, -63.5, 2.5, -4.0, 1e-9]
        q, scale = quantize(row[None])
        self.assertEqual([int(q[0, i]) for i in (0, 1, 31, 32, 64)], [127, -64, 2, -127, 0])
        self.assertEqual(scale.tolist(), [[1.0, float(np.float16(4 / 127)), 0.0]])

    def test_float8_codes(self):
        values = ref.float8_values()
        for code, value in ((0x00, 0.0), (0x01, 2.0 ** -9), (0x07, 7 * 2.0 ** -9), (0x08, 2.0 ** -6), (0x38, 1.0),
                            (0x3C, 1.5), (0x7E, 448.0), (0xB8, -1.0), (0xFE, -448.0)):
            self.assertEqual(values[code], value, code)
            self.assertEqual(to_float8(np.array([value]))[0], code, value)
        self.assertTrue(math.isnan(values[0x7F]) and math.isnan(values[0xFF]))
        for value, code in ((17.0, 0x58), (19.0, 0x5A), (17.01, 0x59), (432.0, 0x7E), (2.0 ** -10, 0x00), (-0.0, 0x80)):
            self.assertEqual(to_float8(np.array([value]))[0], code, value)

    def test_float8_rows_have_powers_of_two(self):
        rows = np.array([[448.0, 1.0], [448.1, 1.0], [0.0, 0.0], [-1.75, 0.5], [1e-40, 0.0]])
        codes, scale = quantize_float8(rows)
        self.assertEqual(scale.tolist(), [1.0, 2.0, 1.0, 2.0 ** -8, 2.0 ** -117])
        self.assertEqual(codes[0].tolist(), [0x7E, 0x38])
        self.assertEqual(codes[3].tolist(), [0xFE, 0x70])

    def test_files_give_back_what_was_written(self):
        config = make_config(tracks=3, layers=2, sync_layers=[1, 2],
                             fusion={"op": "sum", "combine_norm": True})
        tensors = random_tensors(config, 5)
        with tempfile.TemporaryDirectory() as folder:
            bounds = (("float32", 0.0), ("float16", 2 ** -10), ("bfloat16", 2 ** -8), ("mixed", 2 ** -8))
            for dtype, bound in bounds:
                for split in (False, True):
                    path = Path(folder) / f"{dtype}{split}.h5"
                    write_model(path, config, tensors, dtype=dtype, split=split)
                    model = ref.load(path)
                    self.assertEqual(model.config, config)
                    self.assertEqual(set(model.tensors), set(tensors))
                    for name, values in tensors.items():
                        error = np.abs(model.tensors[name] - values) / np.maximum(np.abs(values), 1e-3)
                        self.assertLessEqual(np.max(error), bound, f"{dtype} {name}")


    def test_narrow_files_are_near_what_was_written(self):
        config = make_config(tracks=2, ffn_pattern=["dense", "moe"], tie_embeddings=False,
                             moe={"experts": 3, "top_k": 1, "ffn_size": 40, "router_logit_cap": None})
        tensors = random_tensors(config, 5)
        with tempfile.TemporaryDirectory() as folder:
            small = {dtype: ref.load(write_model(Path(folder) / f"{dtype}.h5", config, tensors, dtype=dtype, split=True))
                     for dtype in ("int8", "float8")}
        for dtype, model in small.items():
            self.assertEqual(set(model.tensors), set(tensors))
            for name, values in tensors.items():
                largest = np.abs(values).max()
                bound = {"int8": 0.51 * largest / 127, "float8": largest / 16}[dtype] if is_matrix(name, config) else 0.0
                error = np.abs(model.tensors[name] - values).max()
                self.assertLessEqual(error, bound, f"{dtype} {name}")
                self.assertEqual(error > 0, is_matrix(name, config), f"{dtype} {name}")


class Identities(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(1)

    def test_attention_by_hand(self):
        optional = {"attention_bias": ["q", "k", "v", "o"], "qk_norm_order": "after_rope", "rope_theta_local": 8.0,
                    "rope_scaling": {"type": "linear", "factor": 1.7}, "attention_scale": 0.8}
        for kind in ("global_rope", "global_nope", "local_rope", "local_nope"):
            for qk_norm, more in ((False, {}), (True, {}), (True, optional), (False, {"attention_bias": ["k", "o"]})):
                model = in_memory(make_config(hidden_size=6, heads=4, kv_heads=2, head_dim=4, ffn_size=4,
                                              attention_pattern=["global_rope", kind], attention_window=3,
                                              qk_norm=qk_norm, rope_theta=50.0, **more))
                x = self.rng.standard_normal((6, 6))
                got, want = ref.attention(model, 0, 1, x), attention_by_hand(model, 1, x)
                np.testing.assert_allclose(got, want, atol=1e-12)

    def test_frequencies_are_those_of_transformers(self):
        golden = json.loads((Path(__file__).parents[1] / "runtime" / "golden" / "rope_frequencies.json").read_text())
        self.assertEqual({case["rope_scaling"]["type"] for case in golden}, {"linear", "llama3", "yarn"})
        for case in golden:
            frequencies, magnitude = ref.rope_frequencies(case, "global_rope")
            np.testing.assert_allclose(frequencies, case["frequencies"], rtol=1e-6)
            self.assertAlmostEqual(magnitude, case["magnitude"], delta=1e-12)

    def test_norm_that_scales_first_by_hand(self):
        x, w = [1.0, -2.0, 3.0], [0.5, 2.0, -1.0]
        z = [a * b for a, b in zip(x, w)]
        size = math.sqrt(sum(e * e for e in z) / 3 + 0.1)
        np.testing.assert_allclose(ref.rms_norm(np.array(x), np.array(w), 0.1, True), [e / size for e in z], atol=1e-14)

    def test_gelu_by_hand(self):
        x = np.array([-3.0, -0.1, 0.0, 0.5, 2.0])
        want = [0.5 * v * (1 + math.tanh(0.7978845608028654 * (v + 0.044715 * v ** 3))) for v in x]
        np.testing.assert_allclose(ref.gelu_tanh(x), want, atol=1e-14)

    def test_mixture_by_hand(self):
        for normalize in (True, False):
            self.check_mixture({"experts": 4, "top_k": 2, "ffn_size": 5, "router_logit_cap": 1.5,
                                "normalize_top_k": normalize})

    def check_mixture(self, moe: dict):
        model = in_memory(make_config(hidden_size=8, ffn_pattern=["moe"], moe=moe))
        x = self.rng.standard_normal((9, 8))
        out = ref.mixture(model, 0, 0, x)
        for row, got in zip(x, out):
            logits = [1.5 * math.tanh(float(r @ row) / 1.5) for r in model.track(0, 0, "router")]
            chosen = sorted(range(4), key=lambda e: (-logits[e], e))[:2]
            total = sum(math.exp(logits[e]) for e in (chosen if moe["normalize_top_k"] else range(4)))
            want = np.zeros(8)
            for e in chosen:
                gate, up, down = (model.track(0, 0, f"experts/{n}")[e] for n in ("w_gate", "w_up", "w_down"))
                hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(gate @ row, up @ row)]
                want += math.exp(logits[e]) / total * (down @ np.array(hidden))
            np.testing.assert_allclose(got, want, atol=1e-12)

    def test_layer_by_hand(self):
        for places in ([], ["pre"], ["output"], ["post"], ["pre", "output", "post"]):
            config = make_config(norm_placement=places)
            model = in_memory(config)
            h = self.rng.standard_normal((4, 64))

            def norm(name: str, x: np.ndarray) -> np.ndarray:
                scale = np.sqrt((x ** 2).sum(axis=1) / 64 + 1e-5)
                return (x.T / scale).T * model.track(0, 1, name)

            a = ref.attention(model, 0, 1, norm("attn_norm", h) if "pre" in places else h)
            a = h + (norm("attn_output_norm", a) if "output" in places else a)
            a = norm("attn_post_norm", a) if "post" in places else a
            f = ref.ffn(model, 0, 1, norm("ffn_norm", a) if "pre" in places else a)
            f = a + (norm("ffn_output_norm", f) if "output" in places else f)
            f = norm("ffn_post_norm", f) if "post" in places else f
            np.testing.assert_allclose(ref.run_layer(model, 0, 1, h), f, atol=1e-12)

    def test_later_tokens_change_nothing_before_them(self):
        model = in_memory(GRID[1].config)
        whole = ref.log_probs(model, TOKENS)
        for length in (1, 5, len(TOKENS) - 1):
            np.testing.assert_allclose(ref.log_probs(model, TOKENS[:length]), whole[:length], atol=1e-9)

    def test_window_ends_where_it_should(self):
        model = in_memory(make_config(layers=1, attention_pattern=["local_rope"], attention_window=4))
        last = ref.log_probs(model, TOKENS)[-1]
        for back, differs in ((3, True), (4, False)):
            other = list(TOKENS)
            other[-1 - back] = 111
            delta = np.max(np.abs(ref.log_probs(model, other)[-1] - last))
            (self.assertGreater if differs else self.assertLess)(delta, 1e-6, f"{back} back")

    def test_equal_tracks_are_one_track(self):
        one = in_memory(make_config(layers=4, sync_layers=[2, 4]))
        three = ref.Model(make_config(layers=4, sync_layers=[2, 4], tracks=3), dict(one.tensors))
        for path, values in one.tensors.items():
            if path.startswith("/tracks/00"):
                for track in (1, 2):
                    three.tensors[path.replace("/tracks/00", f"/tracks/{track:02d}")] = values
        np.testing.assert_allclose(ref.logits(one, TOKENS), ref.logits(three, TOKENS), atol=1e-9)

    def test_fusion_by_hand(self):
        x, a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.array([0.0, 10.0])
        np.testing.assert_allclose(ref.fuse("mean", x, [a, b]), [1.5, 7.5])
        np.testing.assert_allclose(ref.fuse("sum", x, [a, b]), [3.0, 15.0])
        np.testing.assert_allclose(ref.fuse("delta_sum", x, [a, b]), [2.0, 13.0])

    def test_table_model_says_the_table(self):
        config = table_config(vocab=20)
        table = self.rng.standard_normal((20, 20)) * 3
        tensors = table_tensors(config, table)
        model = ref.Model(config, {path: t.astype(np.float64) for path, t in tensors.items()})
        tokens = [4, 0, 19, 7]
        np.testing.assert_allclose(ref.logits(model, tokens), table[tokens], atol=1e-4)


def mutations(grid_model: GridModel) -> list[tuple[str, dict]]:
    """Configs that misread one option each while every tensor they need is present."""
    config, found = grid_model.config, []

    def add(what: str, **changes) -> None:
        changed = copy.deepcopy(config)
        changed.update(changes)
        found.append((what, changed))

    fusion = config["fusion"]
    if config["tracks"] > 1:
        for op in {"mean", "sum", "delta_sum"} - {fusion["op"]}:
            add(f"fusion {op}", fusion={**fusion, "op": op})
    for norm in ("dispatch_norm", "combine_norm"):
        if fusion[norm]:
            add(f"no {norm}", fusion={**fusion, norm: False})
    if len(config["sync_layers"]) > 1 and config["tracks"] > 1:
        add("first sync late", sync_layers=[config["sync_layers"][0] + 1] + config["sync_layers"][2:]
            if config["sync_layers"][0] + 1 in config["sync_layers"]
            else [config["sync_layers"][0] + 1] + config["sync_layers"][1:])
    for place in config["norm_placement"]:
        add(f"no {place} norm", norm_placement=[p for p in config["norm_placement"] if p != place])
    if config["qk_norm"]:
        add("no qk norm", qk_norm=False)
    for index, kind in enumerate(config["attention_pattern"]):
        flips = [kind.replace("rope", "nope") if "rope" in kind else kind.replace("nope", "rope")]
        flips += [kind.replace("local", "global")] if "local" in kind else []
        for flip in flips:
            pattern = list(config["attention_pattern"])
            pattern[index] = flip
            # If a token sees only itself, rotations have no effect.
            if not (config["attention_window"] == 1 and flip == "local_nope"):
                add(f"{kind} as {flip}", attention_pattern=pattern)
    if any("local" in kind for kind in config["attention_pattern"]):
        add("window + 1", attention_window=config["attention_window"] + 1)
    if any("rope" in kind for kind in config["attention_pattern"]) and config["head_dim"] > 2 \
            and config["attention_window"] != 1:
        add("theta", rope_theta=config["rope_theta"] * 1.1)
    if config["moe"]:
        if config["moe"]["top_k"] > 1:
            add("top_k - 1", moe={**config["moe"], "top_k": config["moe"]["top_k"] - 1})
        if config["moe"]["router_logit_cap"]:
            add("no cap", moe={**config["moe"], "router_logit_cap": None})
        if config["moe"].get("normalize_top_k") is False:
            add("normalized", moe={**config["moe"], "normalize_top_k": True})
    if not config["tie_embeddings"]:
        add("tied", tie_embeddings=True)
    if config["norm_eps"] > 1e-3:
        add("small epsilon", norm_eps=1e-6)
    return found + optional_mutations(config)


def optional_mutations(config: dict) -> list[tuple[str, dict]]:
    """Configs without one of the optional keys, or without one entry of it."""
    found = []
    for key in OPTIONAL:
        value = config.get(key)
        if value in (None, [], "silu") or key == "rope_theta_local" and not uses(config, "local_rope"):
            continue
        found.append((f"no {key}", {**config, key: None}))
        if isinstance(value, list):
            found += [(f"{key} without {entry}", {**config, key: [e for e in value if e != entry]})
                      for entry in value]
    scaling = config.get("rope_scaling")
    if scaling and config.get("rope_theta_local") is not None and uses(config, "local_rope"):
        found.append(("scaling of every layer", {**config, "rope_theta_local": config["rope_theta"]}))
    for key in ("beta_fast", "beta_slow", "attention_factor", "low_freq_factor", "high_freq_factor"):
        if scaling and scaling.get(key):
            found.append((f"other {key}", {**config, "rope_scaling": {**scaling, key: scaling[key] * 1.7}}))
    return found


def uses(config: dict, kind: str) -> bool:
    return kind in config["attention_pattern"]


class GridSees(unittest.TestCase):
    """A wrong reading of any option must change some log-probability far beyond the tolerance."""

    def test_every_misreading_shows(self):
        for grid_model in GRID:
            tokens = prompts(grid_model)[5]
            right = in_memory(grid_model.config, grid_model.seed)
            want = ref.score(right, tokens)
            self.assertGreater(np.std(want), 0.5, f"{grid_model.name}: log-probabilities hardly vary")
            self.assertGreater(np.min(want), -40, f"{grid_model.name}: log-probabilities run wild")
            for what, config in mutations(grid_model):
                with self.subTest(model=grid_model.name, misread=what):
                    got = ref.score(ref.Model(config, right.tensors), tokens)
                    self.assertGreater(np.max(np.abs(got - want)), 0.01)

    def test_file_round_trip_scores(self):
        with tempfile.TemporaryDirectory() as folder:
            grid_model = GRID[5]
            path = write_random(Path(folder) / "m.h5", grid_model.config, grid_model.seed, fixed_strings=True)
            tokens = prompts(grid_model)[4]
            want = ref.score(in_memory(grid_model.config, grid_model.seed), tokens)
            np.testing.assert_allclose(ref.score(ref.load(path), tokens), want, atol=1e-9)


if __name__ == "__main__":
    unittest.main(verbosity=1)
