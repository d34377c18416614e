#!/usr/bin/python3
"""convert_hf.py and what it cannot convert: one clear message, exit status 2 or 1, and no file left."""

import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import time
import unittest

from conversions import ROOT, ConvertTest, convert, read_safetensors, write_safetensors

from convert.errors import ConvertError
from convert.ptrt_file import ModelWriter


class Refused(ConvertTest):
    def refuse(self, folder, *words, options=(), status: int = 2, **limits) -> None:
        target = self.fresh(".h5")
        self.assert_refused(convert("convert_hf.py", folder, "-o", target, *options, **limits), target, *words,
                            status=status)

    def with_tensors(self, name: str, change):
        """A checkpoint whose header change() may edit."""
        folder = self.checkpoint(name)
        header, data = read_safetensors(folder / "model.safetensors")
        change(header)
        write_safetensors(folder / "model.safetensors", header, data)
        return folder

    def test_missing_files(self):
        self.refuse(self.dir / "nothing", "no such folder")
        for gone, words in (("config.json", ["no config.json"]), ("model.safetensors", ["neither"])):
            folder = self.checkpoint("llama2")
            (folder / gone).unlink()
            self.refuse(folder, *words)
        (folder / "pytorch_model.bin").write_bytes(b"")
        self.refuse(folder, "pytorch_model.bin", "no safetensors")

    def test_shards(self):
        folder = self.checkpoint("llama3")
        shard = folder / "model-00002-of-00003.safetensors"
        bits = shard.read_bytes()
        shard.unlink()
        self.refuse(folder, str(shard), "missing shard")
        shard.write_bytes(bits[:-1])
        self.refuse(folder, str(shard), "truncated")
        shard.write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
        self.refuse(folder, str(shard), "is missing, which model.safetensors.index.json says is there")
        shard.write_bytes(bits)
        index = folder / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
        self.refuse(folder, "another folder")
        index.write_text("{}")
        self.refuse(folder, "weight_map")

    def test_damaged_safetensors(self):
        folder = self.checkpoint("llama2")
        path = folder / "model.safetensors"
        data = path.read_bytes()
        header = struct.unpack("<Q", data[:8])[0]
        for length, word in ((0, "no safetensors"), (7, "no safetensors"), (8, "truncated"), 
                             (8 + header // 2, "truncated"), (8 + header, "truncated"), (len(data) - 1, "truncated")):
            path.write_bytes(data[:length])
            self.refuse(folder, str(path), word)
        path.write_bytes(struct.pack("<Q", 10) + b"[1,2,3]   " + data)
        self.refuse(folder, "no JSON object")
        path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
        self.refuse(folder, "no safetensors")

    def test_tensors(self):
        name = "model.layers.1.mlp.up_proj.weight"

        def transpose(header):
            header[name]["shape"].reverse()

        def rename(header):
            header[name + ".old"] = header.pop(name)

        def add(header):
            header["model.layers.1.self_attn.q_norm.weight"] = header["model.norm.weight"]

        def retype(header):
            header[name] |= {"dtype": "F8_E4M3"}

        def grow(header):
            header[name]["shape"][0] += 1

        def spoil(header):
            header[name] = {"dtype": "F32", "shape": [-1], "data_offsets": [0]}

        for change, words in ((transpose, [name, "expected shape [48, 32]", "found [32, 48]"]),
                              (rename, [name, "missing"]),
                              (add, ["q_norm", "not understood"]), (retype, [name, "F8_E4M3"]),
                              (grow, [name, "do not fit"]), (spoil, [name, "damaged"])):
            with self.subTest(change.__name__):
                self.refuse(self.with_tensors("llama2", change), *words)

    def test_experts(self):
        def drop(header):
            del header["model.layers.1.mlp.experts.3.down_proj.weight"]

        self.refuse(self.with_tensors("qwen3_moe", drop), "experts.3.down_proj", "missing")
        self.refuse(self.checkpoint("qwen3_moe", num_experts=3), "mlp.gate.weight", "expected shape")

    def test_architectures(self):
        self.refuse(self.checkpoint("llama2", model_type="gpt_neox"), "gpt_neox", "not supported", "llama")
        self.refuse(self.checkpoint("llama2", model_type=...), "model_type")
        self.refuse(self.checkpoint("llama2", architectures=["LlamaForTokenClassification"]), "TokenClassification")

    def test_keys(self):
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        cases = [
            ("llama2", {"mlp_bias": True}, "mlp_bias"), ("llama2", {"hidden_act": "gelu"}, "hidden_act"),
            ("llama2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
            ("llama2", {"new_trick": 7}, "new_trick"), ("llama2", {"hidden_size": ...}, "hidden_size"),
            ("llama2", {"hidden_size": "32"}, "hidden_size"), ("llama2", {"rms_norm_eps": -1}, "rms_norm_eps"),
            ("llama2", {"num_hidden_layers": True}, "num_hidden_layers"),
            ("llama2", {"rope_parameters": rope | {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
            ("llama2", {"rope_parameters": rope | {"rope_type": "longrope"}}, "longrope"),
            ("llama2", {"rope_parameters": rope | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
            ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ("llama2", {"rope_parameters": rope | {"short_factor": [1.0]}}, "short_factor"),
            ("llama2", {"rope_theta": 20000.0}, "rope_theta"),
            ("llama2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradicts"),
            ("llama2", {"sliding_window": 64}, "sliding_window"), ("llama2", {"eos_token_id": 320}, "eos_token_id"),
            ("llama2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
            ("llama_yarn", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0,
                                                "original_max_position_embeddings": 48, "truncate": False}},
             "truncate"),
            ("llama3", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e3, "factor": 4.0}},
             "low_freq_factor"),
            ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
            ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
            ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
            ("gemma3", {"hidden_activation": "gelu"}, "hidden_activation"),
            ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
            ("qwen3_moe", {"max_window_layers": 2}, "max_window_layers"),
            ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
            ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ]
        for name, changes, word in cases:
            with self.subTest(f"{name}: {changes}"):
                self.refuse(self.checkpoint(name, **changes), word, "config.json")

    def test_a_key_may_be_ignored(self):
        folder = self.checkpoint("llama2", new_trick=7)
        plain = self.converted(self.checkpoint("llama2"))
        self.assertEqual(self.converted(folder, "--ignore-key", "new_trick").stat().st_size, plain.stat().st_size)

    def test_json(self):
        folder = self.checkpoint("llama2")
        for text in ("", "[]", "{", '{"model_type": "llama"', "\xff"):
            (folder / "config.json").write_bytes(text.encode("latin-1"))
            self.refuse(folder, "config.json")

    def test_tokenizers(self):
        folder = self.checkpoint("llama2")
        path = folder / "tokenizer.json"
        made = json.loads(path.read_text(encoding="utf-8"))
        eos = {"SpecialToken": {"id": "</s>", "type_id": 0}}
        template = made["post_processor"] | {"single": made["post_processor"]["single"] + [eos]}
        template["special_tokens"] |= {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}
        for changes, word in (({"post_processor": template}, "post_processor"),
                              ({"post_processor": {"type": "BertProcessing"}}, "BertProcessing"),
                              ({"post_processor": {}}, "post_processor"),
                              ({"added_tokens": [{"id": "7", "content": "x"}]}, "no integers"),
                              ({"model": made["model"] | {"vocab": {"x": 320}}}, "vocab_size")):
            path.write_text(json.dumps(made | changes), encoding="utf-8")
            self.refuse(folder, str(path), word)
        path.write_text("{")
        self.refuse(folder, str(path))

    def test_outputs(self):
        folder = self.checkpoint("llama2")
        weights = folder / "model.safetensors"
        before = weights.read_bytes()
        for target in (weights, *(folder / f"{name}.json" for name in ("config", "tokenizer", "tokenizer_config"))):
            done = convert("convert_hf.py", folder, "-o", target)
            self.assertEqual(done.returncode, 2)
            self.assertIn("overwrite", done.stderr)
        self.assertEqual(weights.read_bytes(), before)
        for target, word in ((self.dir, "a directory"), (self.dir / "no" / "model.h5", "no folder")):
            done = convert("convert_hf.py", folder, "-o", target)
            self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)
            self.assertIn(word, done.stderr)
        # The file of the track may be an input, too.
        done = convert("convert_hf.py", folder, "-o", folder / "m.h5", "--split")
        self.assertEqual(done.returncode, 0, done.stderr)
        track = folder / "m.track00.h5"
        weights.rename(track)
        weights.symlink_to(track)
        done = convert("convert_hf.py", folder, "-o", folder / "m.h5", "--split")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(track.read_bytes(), before)

    def test_full_disk(self):
        for options in ((), ("--split",)):
            self.refuse(self.checkpoint("llama2"), "could not be written", "File too large", status=1, options=options,
                        file_limit=100_000)
        target = self.fresh(".h5")
        with self.assertRaisesRegex(ConvertError, "MiB free"):
            ModelWriter(target, {"tracks": 1}, needed=1 << 60)
        self.assertFalse(target.exists())

    def test_float16_range(self):
        folder = self.checkpoint("llama2")
        header, data = read_safetensors(folder / "model.safetensors")
        at = header["lm_head.weight"]["data_offsets"][0]
        write_safetensors(folder / "model.safetensors", header, data[:at] + struct.pack("<f", 7e4) + data[at + 4:])
        self.refuse(folder, "lm_head.weight", "float16", options=("--dtype", "float16"))

    def test_usage(self):
        for arguments in ((), ("x",), ("x", "-o", "y.h5", "--dtype", "int8"),
                          ("x", "-o", "y.h5", "--max-context", "no")):
            done = convert("convert_hf.py", *arguments)
            self.assertEqual((done.returncode, len(done.stderr.splitlines())), (2, 1), done.stderr)
        self.assertEqual(convert("convert_hf.py", "--help").returncode, 0)


class Progress(ConvertTest):
    def test_on_a_terminal_only(self):
        folder = self.checkpoint("llama2")
        self.assertEqual(convert("convert_hf.py", folder, "-o", self.fresh(".h5")).stderr, "")
        ours, theirs = pty.openpty()
        try:
            subprocess.run([sys.executable, ROOT / "scripts" / "convert_hf.py", folder, "-o", self.fresh(".h5")],
                           stderr=theirs, stdout=subprocess.DEVNULL, check=True)
            self.assertIn(b"Converting: ", os.read(ours, 1 << 16))
        finally:
            os.close(ours)
            os.close(theirs)


class Large(ConvertTest):
    """A checkpoint with a tensor of 400 MB: a sparse file of zeros."""

    ROWS = 3_125_000

    def large(self):
        folder = self.checkpoint("llama2", vocab_size=self.ROWS)
        header, data = read_safetensors(folder / "model.safetensors")
        size = self.ROWS * 32 * 4
        header["model.embed_tokens.weight"] = {"dtype": "F32", "shape": [self.ROWS, 32],
                                               "data_offsets": [len(data), len(data) + size]}
        header["lm_head.weight"] |= {"shape": [self.ROWS, 32], "data_offsets": [len(data), len(data) + size]}
        write_safetensors(folder / "model.safetensors", header, data)
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.truncate(file.tell() + size)
        return folder

    def command(self, folder, target):
        return [sys.executable, ROOT / "scripts" / "convert_hf.py", folder, "-o", target, "--dtype", "bfloat16"]

    def test_memory(self):
        """At most 200 MB beside the largest tensor; in fact less than that tensor, which is never in memory at once."""
        target = self.fresh(".h5")
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        subprocess.run(self.command(self.large(), target), check=True, stdout=subprocess.DEVNULL)
        self.assertGreater(target.stat().st_size, 400_000_000)
        self.assertLess(max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024, 200_000_000)
        target.unlink()

    def test_stopped_between_two_statements(self):
        """Nobody has taken the new file into their care yet."""
        target = self.fresh(".h5")
        code = ("import pathlib, sys; from convert import errors, ptrt_file\n"
                "def main():\n"
                "    ptrt_file.PendingFile(pathlib.Path(sys.argv[1]))\n"
                "    raise KeyboardInterrupt\n"
                "errors.run('test', main)")
        done = subprocess.run([sys.executable, "-c", code, target], cwd=ROOT / "scripts", capture_output=True, text=True,
                              check=False)
        self.assertEqual((done.returncode, done.stderr), (130, "test: error: stopped\n"))
        self.assertEqual([name for name in os.listdir(self.dir) if target.stem in name], [])

    def test_stopped(self):
        """A run that is ended leaves nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            target = self.fresh(".h5")
            process = subprocess.Popen(self.command(self.large(), target), stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 60
            while not any(target.stem in name for name in os.listdir(self.dir)) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            self.assertIn("stopped", process.communicate()[1])
            self.assertEqual(process.returncode, 130)
            self.assertEqual([name for name in os.listdir(self.dir) if target.stem in name], [])


if __name__ == "__main__":
    unittest.main(verbosity=1)
