#!/usr/bin/python3
"""convert_hf.py against transformers: a tiny checkpoint of each family, whose every parameter was drawn anew."""

import json
import shutil
import unittest

import h5py
import numpy as np

from conversions import FAMILIES, ConvertTest, attribute, config_of, goldens, read_safetensors, write_safetensors

TOLERANCE = 1e-4  # of a log-probability, float32 products
VISIBLE = 0.01  # what a wrong key must change at least
# Mean differences of log-probabilities with coarser products: models with a head of their own, and tied ones. The
# embedding is drawn from N(0, 1), so that as a head it gives logits that are several times as far apart.
LIMITS = {"bfloat16": (0.03, 0.1), "int8": (0.1, 0.4)}

# Keys that each model must need: changed (... removed), a log-probability differs by VISIBLE.
NEEDED = {
    "llama2": [{"rope_theta": 5000.0}],
    "llama3": [{"rope_scaling": ...}, {"rope_scaling.factor": 4.0}, {"rope_scaling.low_freq_factor": 2.0},
               {"rope_scaling.high_freq_factor": 3.0}, {"rope_scaling.original_max_position": 128},
               {"attention_bias": ["k", "v", "o"]}, {"attention_bias": ["q", "v", "o"]},
               {"attention_bias": ["q", "k", "o"]}, {"attention_bias": ["q", "k", "v"]}],
    "llama_yarn": [{"rope_scaling": ...}, {"rope_scaling.factor": 3.0}, {"rope_scaling.attention_factor": None},
                   {"rope_scaling.beta_fast": 2.0}, {"rope_scaling.beta_slow": 1.0},
                   {"rope_scaling.original_max_position": 96}],
    "mistral": [{"attention_pattern": ["global_rope"], "attention_window": 0}, {"attention_window": 19},
                {"attention_window": 21}],
    "mixtral": [{"moe.top_k": 1}, {"moe.normalize_top_k": False}],
    "qwen2": [{"attention_bias": ...}, {"rope_scaling": ...}, {"attention_window": 23},
              {"attention_pattern": ["local_rope"]}],
    "qwen3": [{"rope_scaling": ...}, {"rope_scaling.factor": 2.0}, {"qk_norm": False},
              {"qk_norm_order": "after_rope"}],
    "qwen3_moe": [{"moe.normalize_top_k": False}, {"attention_window": 29}],
    "qwen3_moe_raw": [{"moe.normalize_top_k": ...}, {"attention_bias": ...}, {"moe.top_k": 2}],
    "smollm2": [{"rope_theta": 10000.0}],
    "smollm3": [{"attention_pattern": ["global_rope", "local_rope"]}, {"attention_pattern": ["global_rope"],
                                                                      "attention_window": 0}, {"attention_window": 41}],
    "gemma3": [{"rope_scaling": ...}, {"rope_theta_local": ...}, {"attention_scale": ...}, {"ffn_activation": ...},
               {"embedding_scale": ...}, {"attention_window": 17}, {"norm_placement": ["pre"]},
               {"attention_pattern": ["local_rope"]}],
}


class Families(ConvertTest):
    """One test a family; see the end of the file."""

    def run_family(self, name: str) -> None:
        texts = goldens(name)["texts"]
        folder = self.checkpoint(name)
        model = self.converted(folder)
        self.assertLessEqual(self.worst(model, texts, "--compute", "float32"), TOLERANCE)
        self.check_greedy(model, texts)
        with self.subTest("config.json of transformers 4"):
            shutil.copy(folder / "config_v4.json", folder / "config.json")
            self.assertEqual(self.converted(folder).read_bytes(), model.read_bytes())
        for changes in NEEDED[name]:
            with self.subTest(f"a key that it needs: {changes}"):
                edited = self.edited(model, **changes)
                self.assertGreaterEqual(self.worst(edited, texts, "--compute", "float32"), VISIBLE)
        if config_of(model)["kv_heads"] % 2 == 0:
            with self.subTest("two ranks a track"):
                worst = self.worst(model, texts, "--compute", "float32", "--tensor-parallel", "2", ranks=2)
                self.assertLessEqual(worst, TOLERANCE)
        for compute, limits in LIMITS.items():
            with self.subTest(compute):
                options = ["--compute", compute] + (["--weights", "int8"] if compute == "int8" else [])
                limit = limits[config_of(model)["tie_embeddings"]]
                self.assertLessEqual(self.mean_difference(model, texts, *options), limit)

    def mean_difference(self, model, texts, *options) -> float:
        lines = self.lines("score", model, [{"prompt": row["text"]} for row in texts], "--quiet", *options)
        return float(np.mean([abs(a - b) for row, line in zip(texts, lines)
                              for a, b in zip(line["logprobs"][1:], row["logprobs"])]))


class Files(ConvertTest):
    """What a model file holds beside the maths."""

    def test_types(self):
        folder = self.checkpoint("llama3")
        kept, wide = self.converted(folder), self.converted(folder, "--dtype", "float32")
        half, brief = self.converted(folder, "--dtype", "float16"), self.converted(wide_checkpoint(self), "--dtype",
                                                                                   "bfloat16")
        path = "/tracks/00/layers/001/wq"
        with h5py.File(kept) as a, h5py.File(wide) as b, h5py.File(half) as c, h5py.File(brief) as d:
            self.assertEqual(attribute(a[path], "dtype"), "bfloat16")
            exact = (a[path][()].astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(b[path][()], exact)
            self.assertEqual(b[path].dtype, np.float32)
            np.testing.assert_array_equal(c[path][()], exact.astype(np.float16))
            # Vectors keep the checkpoint's type, unless float32 is asked for.
            self.assertEqual(attribute(c["/tracks/00/layers/001/attn_norm"], "dtype"), "bfloat16")
            self.assertEqual(b["/tracks/00/layers/001/attn_norm"].dtype, np.float32)
            self.assertEqual(attribute(d[path], "dtype"), "bfloat16")
            self.assertEqual(d["/tracks/00/layers/001/attn_norm"].dtype, np.float32)

    def test_split(self):
        texts = goldens("mistral")["texts"]
        folder = self.checkpoint("mistral")
        model = self.converted(folder, "--split")
        track = model.with_name(f"{model.stem}.track00.h5")
        with h5py.File(model) as file:
            self.assertEqual(file.get("/tracks/00", getlink=True).filename, track.name)
        self.assertTrue(track.exists())
        self.assertLessEqual(self.worst(model, texts, "--compute", "float32"), TOLERANCE)

    def test_norms_of_gemma_are_not_rounded(self):
        folder = self.checkpoint("gemma3")
        header, data = read_safetensors(folder / "model.safetensors")
        begin, end = header["model.layers.0.self_attn.q_norm.weight"]["data_offsets"]
        bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
        with h5py.File(self.converted(folder)) as file:
            norm = file["/tracks/00/layers/000/q_norm"]
            self.assertEqual(norm.dtype, np.float32)
            np.testing.assert_array_equal(norm[()], np.float32(1) + bits.view(np.float32))
            self.assertEqual(json.loads(attribute(file, "config"))["embedding_scale"], np.sqrt(32.0))

    def test_experts_in_one_tensor(self):
        """transformers 5 keeps the experts of a layer in one tensor, and may save them so."""
        for name in ("mixtral", "qwen3_moe"):
            folder = self.checkpoint(name)
            model = self.converted(folder)
            fuse(folder / "model.safetensors")
            self.assertEqual(self.converted(folder).read_bytes(), model.read_bytes())

    def test_tokenizer(self):
        folder = self.checkpoint("llama2")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        with h5py.File(self.converted(folder)) as file:
            group = file["tokenizer"]
            self.assertEqual(attribute(group, "kind"), "huggingface")
            self.assertEqual(group["model"][()].tobytes(), (folder / "tokenizer.json").read_bytes())
            self.assertEqual(attribute(group, "chat_template"), settings["chat_template"])
        several = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": several}))
        with h5py.File(self.converted(folder)) as file:
            self.assertEqual(attribute(file["tokenizer"], "chat_template"), "d")
        (folder / "chat_template.jinja").write_text("a file of its own" + 70_000 * " ")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5, 1]}))
        model = self.converted(folder)
        with h5py.File(model) as file:
            self.assertTrue(attribute(file["tokenizer"], "chat_template").startswith("a file of its own"))
        config = config_of(model)
        self.assertEqual((config["bos_token_id"], config["eos_token_ids"]), (0, [1, 5]))
        self.assertLessEqual(self.worst(model, goldens("llama2")["texts"], "--compute", "float32"), TOLERANCE)

    def test_tokens_beyond_the_vocabulary(self):
        """Gemma 3 has a token for images, for which its text models have no embedding."""
        folder = self.checkpoint("llama2")
        path = folder / "tokenizer.json"
        made = json.loads(path.read_text(encoding="utf-8"))
        made["added_tokens"].append(made["added_tokens"][0] | {"id": 320, "content": "<image>"})
        path.write_text(json.dumps(made), encoding="utf-8")
        model = self.converted(folder)
        with h5py.File(model) as file:
            kept = json.loads(file["tokenizer/model"][()].tobytes())["added_tokens"]
        self.assertEqual([token["id"] for token in kept], [0, 1, 2])
        self.assertLessEqual(self.worst(model, goldens("llama2")["texts"], "--compute", "float32"), TOLERANCE)

    def test_bos_only_where_the_tokenizer_puts_one(self):
        """bos_token_id of config.json says only which token it would be."""
        folder = self.checkpoint("qwen3", bos_token_id=0)
        self.assertIsNone(config_of(self.converted(folder))["bos_token_id"])
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"sentencepiece")
        for settings, bos in (({}, None), ({"add_bos_token": False}, None), ({"add_bos_token": True}, 0),
                              ({"add_bos_token": True, "bos_token": "<b>",
                                "added_tokens_decoder": {"7": {"content": "<b>"}}}, 7)):
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            model = self.converted(folder)
            self.assertEqual(config_of(model)["bos_token_id"], bos, settings)
            with h5py.File(model) as file:
                self.assertEqual(attribute(file["tokenizer"], "kind"), "sentencepiece")

    def test_yarn(self):
        """A missing factor is max_position / original; the context is what the scaling reaches."""
        rope = {"rope_type": "yarn", "original_max_position_embeddings": 64, "rope_theta": 10000.0}
        config = config_of(self.converted(self.checkpoint("llama2", rope_parameters=rope)))
        self.assertEqual(config["rope_scaling"], {
            "type": "yarn", "factor": 8.0, "original_max_position": 64, "beta_fast": 32.0, "beta_slow": 1.0,
            "attention_factor": None})
        rope |= {"factor": 16.0}
        folder = self.checkpoint("llama2", rope_parameters=rope)
        self.assertEqual(config_of(self.converted(folder))["max_context"], 1024)
        self.assertEqual(config_of(self.converted(folder, "--max-context", "100"))["max_context"], 100)

    def test_windows(self):
        """layer_types and what older keys say instead."""
        windows = {"use_sliding_window": True, "sliding_window": 8}
        sliding = [{"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
                   {"layer_types": ..., "max_window_layers": 1}, {"layer_types": ..., "use_sliding_window": False}]
        wanted = [["global_rope", "local_rope"], ["global_rope", "local_rope", "local_rope"],
                  ["global_rope"]]
        for changes, pattern in zip(sliding, wanted):
            config = config_of(self.converted(self.checkpoint("qwen2", **(windows | changes))))
            self.assertEqual(config["attention_pattern"], pattern, changes)
            self.assertEqual(config["attention_window"], 8 if "local_rope" in pattern else 0)

    def test_replaces_an_older_file(self):
        folder, target = self.checkpoint("llama2"), self.fresh(".h5")
        target.write_bytes(b"older")
        model = self.converted(folder)
        link = self.fresh(".h5")
        link.symlink_to(target)
        import conversions
        self.assertEqual(conversions.convert("convert_hf.py", folder, "-o", link).returncode, 0)
        self.assertTrue(link.is_symlink())
        self.assertEqual(target.read_bytes(), model.read_bytes())


def wide_checkpoint(test: ConvertTest):
    """The llama3 checkpoint in float32, in one file."""
    folder = test.checkpoint("llama3")
    header, data = {}, b""
    for shard in sorted(folder.glob("model-*.safetensors")):
        entries, bits = read_safetensors(shard)
        for name, entry in entries.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                wide = (np.frombuffer(bits[begin:end], "<u2").astype(np.uint32) << 16).tobytes()
                header[name] = {"dtype": "F32", "shape": entry["shape"],
                                "data_offsets": [len(data), len(data) + len(wide)]}
                data += wide
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "model.safetensors", header, data)
    return folder


def fuse(path) -> None:
    """Puts the experts of each layer into gate_up_proj and down_proj."""
    header, data = read_safetensors(path)
    header.pop("__metadata__", None)
    tensors = {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
               for name, entry in header.items()}
    fused = {}
    for name in list(tensors):
        layer, found, rest = name.partition(".experts.")
        if found:
            number, which, _ = rest.split(".")
            fused.setdefault(layer.replace("block_sparse_moe", "mlp"), {})[which, int(number)] = tensors.pop(name)
    for layer, parts in fused.items():
        gate, up, down = ("w1", "w3", "w2") if ("w1", 0) in parts else ("gate_proj", "up_proj", "down_proj")
        dtype, (rows, columns), _ = parts[gate, 0]
        count = len(parts) // 3
        both = b"".join(parts[which, e][2] for e in range(count) for which in (gate, up))
        tensors[f"{layer}.experts.gate_up_proj"] = (dtype, [count, 2 * rows, columns], both)
        one = b"".join(parts[down, e][2] for e in range(count))
        tensors[f"{layer}.experts.down_proj"] = (dtype, [count, columns, rows], one)
    header, data = {}, b""
    for name, (dtype, shape, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(bits)]}
        data += bits
    write_safetensors(path, header, data)


def _add_tests() -> None:
    for name in FAMILIES:
        def test(self: Families, name: str = name) -> None:
            self.run_family(name)
        setattr(Families, f"test_{name}", test)


_add_tests()

if __name__ == "__main__":
    unittest.main(verbosity=1)
