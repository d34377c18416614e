#!/usr/bin/env python3
"""integrations/tensorrt_llm on a stand-in for TensorRT-LLM's classes, against the float64 reference. Needs torch, transformers.

The real TensorRT-LLM runs on GPUs alone and is not here. What this shows: the glue calls those classes with the arguments
that their sources have, in their order, and what comes out is the model.
"""

import io
import json
import pickle
import subprocess
import sys
import unittest
import weakref
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "integrations" / "tensorrt_llm"))
import engine_environment  # noqa: E402

engine_environment.need("torch", "transformers", "h5py")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import tensorrt_llm_stand_in as stand_in  # noqa: E402
import torch  # noqa: E402
from ptrt_cli import CliTest  # noqa: E402
from rank_threads import RankThreads  # noqa: E402
from tensorrt_llm_executor import Executor, load  # noqa: E402

stand_in.install()
from ptrt_torch import BadInput  # noqa: E402
from ptrt_trtllm.checkpoint import PTRTCheckpointLoader, PTRTConfigLoader  # noqa: E402
from ptrt_trtllm.config import FORMAT, PTConfig, attention_windows  # noqa: E402
from ptrt_trtllm.folder import make_folder  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID, prompts  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

CLOSE = 1e-3
BACKENDS = ("TRTLLM", "FLASHINFER", "VANILLA")
torch.set_num_threads(1)


class TensorRTLLM(CliTest):

    def made(self, grid) -> tuple[Path, ref.Model]:
        """A folder with the model, and its reference."""
        path = write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=grid.dtype, **grid.file_options)
        with redirect_stdout(io.StringIO()):
            return make_folder(path, self.fresh("")), ref.load(path)

    def executor(self, folder: Path, rank: int = 0, ranks: int = 1, **llm_args) -> Executor:
        loader = PTRTCheckpointLoader(config_loader=PTRTConfigLoader(torch.float32))
        return Executor(load(str(folder), loader, stand_in.Mapping(ranks, rank, tp_size=ranks), **llm_args))

    def close(self, logits: torch.Tensor, want: np.ndarray, name: str) -> None:
        self.assertEqual(logits.dtype, torch.float32)
        self.assertLessEqual(np.abs(logits.log_softmax(-1).numpy() - want).max(), CLOSE, name)

    def test_every_option_agrees_with_the_reference(self) -> None:
        for number, grid in enumerate(GRID):
            folder, reference = self.made(grid)
            executor = self.executor(folder, attn_backend=BACKENDS[number % 3])
            text, other = prompts(grid)[5], prompts(grid)[3]
            want = ref.log_probs(reference, text)
            # A prompt in two chunks, then a step with a token of it and another prompt; logits of all, and of the last ones.
            for first, last in ((0, 30), (30, 60)):
                logits = executor.step({"a": text[first:last]}, return_context_logits=True)
                self.close(logits, want[first:last], grid.name)
            logits = executor.step({"b": other, "a": text[60:61]})
            self.assertEqual(len(logits), 2)
            self.close(logits[0], ref.log_probs(reference, other)[-1], grid.name)
            self.close(logits[1], want[60], grid.name)

    def test_ranks(self) -> None:
        for grid in (GRID[0], GRID[1], GRID[3], GRID[18]):
            folder, reference = self.made(grid)
            text, tracks = prompts(grid)[4], grid.config["tracks"]
            want = ref.log_probs(reference, text)
            for ranks in {number for number in (2, 3, tracks) if tracks % number == 0}:
                stand_in.THREADS = RankThreads(ranks)
                engines = [self.executor(folder, rank, ranks) for rank in range(ranks)]
                for logits in stand_in.THREADS.each(lambda rank: engines[rank].step({"a": text}, return_context_logits=True)):
                    self.close(logits, want, f"{grid.name}, {ranks} ranks")
                self.assertEqual(stand_in.THREADS.rounds, len(grid.config["sync_layers"]) + 1, "sync layers, and the logits")
        folder, _ = self.made(GRID[0])
        with self.assertRaisesRegex(BadInput, "8 tracks cannot be divided among 3 ranks"):
            self.executor(folder, 0, 3)

    def test_a_rank_reads_its_tracks_alone(self) -> None:
        grid = GRID[1]  # split
        folder, _ = self.made(grid)
        link = folder / "model.h5"
        real = link.resolve()
        for track in (0, 1, 2):
            real.with_name(f"{real.stem}-{track:02d}.h5").unlink()
        weights = PTRTCheckpointLoader().load_weights(str(folder), mapping=stand_in.Mapping(2, 1, tp_size=2))
        self.assertEqual({name.split("/")[2] for name in weights if name.startswith("/tracks/")}, {"03", "04", "05"})
        weights.close()
        load(str(folder), PTRTCheckpointLoader(), stand_in.Mapping(2, 1, tp_size=2))
        with self.assertRaisesRegex(BadInput, "-00.h5, which is missing"):
            load(str(folder), PTRTCheckpointLoader(), stand_in.Mapping(2, 0, tp_size=2))

    def test_a_dataset_is_read_when_it_is_needed(self) -> None:
        """Not before the model is filled, and the host lets it go before it reads the one after the next."""
        path = write_random(self.fresh(".h5"), GRID[0].config, 1, dtype="int8")
        with redirect_stdout(io.StringIO()):
            folder = make_folder(path, self.fresh(""))
        loader = PTRTCheckpointLoader()
        model = load(str(folder), loader, stand_in.Mapping())
        weights = loader.load_weights(str(folder), mapping=stand_in.Mapping())
        self.assertEqual(weights.reader.datasets_read, 0)
        read, alive, most = weights.reader.tensor, weakref.WeakSet(), 0

        def counted(name: str) -> torch.Tensor:
            nonlocal most
            values = read(name)
            alive.add(values)
            most = max(most, len(alive))
            return values

        weights.reader.tensor = counted
        model.load_weights(weights)
        self.assertLessEqual(most, 2)
        self.assertGreaterEqual(weights.reader.datasets_read, len(weights))
        with self.assertRaises(BadInput):  # it is closed
            read(next(iter(weights)))

    def test_a_head_beyond_float16(self) -> None:
        for tied, name in ((False, "/shared/lm_head"), (True, "/shared/embedding")):
            path = write_random(self.fresh(".h5"), make_config(tie_embeddings=tied))
            with h5py.File(path, "r+") as file:
                file[name][3, 5] = 70000
                del file[name].attrs["crc32c"]
            folder = make_folder(path, self.fresh(""))
            load(str(folder), PTRTCheckpointLoader(), stand_in.Mapping())
            loader = PTRTCheckpointLoader(config_loader=PTRTConfigLoader(torch.float16))
            with self.assertRaisesRegex(BadInput, f"{name} .*65504"):
                load(str(folder), loader, stand_in.Mapping())

    def test_what_is_registered_and_sent_to_workers(self) -> None:
        self.assertEqual({kind: list(names) for kind, names in stand_in.REGISTERED.items()}, {
            "model": ["PTForCausalLM"], "mapper": [FORMAT], "weights": [FORMAT], "checkpoint": [FORMAT], "config": [FORMAT]})
        folder, _ = self.made(GRID[0])
        # By the name of the format alone, as LLM(checkpoint_format=...) makes it, and through a pickle.
        loader = stand_in.BaseCheckpointLoader.get(FORMAT, weight_loader=stand_in.REGISTERED["weights"][FORMAT](),
                                                   weight_mapper=None, config_loader=stand_in.REGISTERED["config"][FORMAT]())
        model = load(str(folder), pickle.loads(pickle.dumps(loader)), stand_in.Mapping())
        self.assertEqual(model.model.folded.embedding.dtype, torch.bfloat16)
        self.assertFalse(any(parameter.isnan().any() for parameter in model.parameters()), "every weight is filled")
        self.assertEqual(loader.load_config(str(folder)).pretrained_config.num_key_value_heads, 16)  # before there are ranks
        loader.cleanup()
        halves, _ = self.made(GRID[2])
        self.assertEqual(PTRTCheckpointLoader().load_config(str(halves)).pretrained_config.torch_dtype, torch.float16)

    def test_what_is_refused(self) -> None:
        folder, _ = self.made(GRID[0])
        loader = PTRTCheckpointLoader()
        for name, how in (("lora_config", {"lora_config": object()}), ("speculative_config", {"spec_config": object()}),
                          ("sparse_attention_config", {"sparse_attention_config": object()}),
                          ("kv_cache_config.dtype", {"changes": {"kv_cache_quant_algo": "FP8"}}),
                          ("quantization", {"changes": {"quant_algo": "FP8"}}),
                          ("num_layers", {"model_kwargs": {"num_layers": 1}})):
            with self.assertRaisesRegex(ValueError, name):
                load(str(folder), loader, stand_in.Mapping(), **how)
        for name, mapping in (("pipeline_parallel_size", stand_in.Mapping(2, 0, pp_size=2)),
                              ("context_parallel_size", stand_in.Mapping(2, 0, cp_size=2)),
                              ("enable_attention_dp", stand_in.Mapping(enable_attention_dp=True))):
            with self.assertRaisesRegex(ValueError, name):
                load(str(folder), loader, mapping)
        model = load(str(folder), loader, stand_in.Mapping())
        for word, how in (("LoRA", {"lora_params": {"a": 1}}), ("input_ids", {"inputs_embeds": torch.zeros(1, 64)})):
            with self.assertRaisesRegex(ValueError, word):
                Executor(model).step({"a": [1]}, **how)
        with self.assertRaisesRegex(ValueError, "lm_head"):
            model.load_weights({}, skip_modules=["lm_head"])
        wide = write_random(self.fresh(".h5"), make_config(head_dim=300))
        with self.assertRaisesRegex(ValueError, "head_dim 300"):
            make_folder(wide, self.fresh(""))
        with self.assertRaisesRegex(BadInput, "is there already"):
            make_folder(folder / "model.h5", folder)

    def test_the_folder(self) -> None:
        config = make_config(tracks=2, vocab_size=300, bos_token_id=256, eos_token_ids=[257, 258], layers=3,
                             attention_pattern=["local_rope", "global_nope"], attention_window=9)
        path, folder = write_random(self.fresh(".h5"), config), self.fresh("")
        command = [sys.executable, "-m", "ptrt_trtllm.folder", path, folder]
        done = subprocess.run(command, cwd=ROOT / "integrations" / "tensorrt_llm", capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        read = AutoConfig.from_pretrained(folder)
        self.assertIsInstance(read, PTConfig)
        self.assertEqual((read.num_attention_heads, read.num_key_value_heads, read.head_dim, read.architectures),
                         (8, 4, 64, ["PTForCausalLM"]))
        self.assertEqual(attention_windows(read.pt), [9, 512, 9])
        self.assertEqual(GenerationConfig.from_pretrained(folder).eos_token_id, [257, 258])
        self.assertEqual(AutoTokenizer.from_pretrained(folder).encode("ab<|258|>"), [256, 97, 98, 258])
        self.assertNotIn("tensorrt_llm", json.dumps(done.stderr))
        done = subprocess.run(command, cwd=ROOT / "integrations" / "tensorrt_llm", capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("is there already", done.stderr)


if __name__ == "__main__":
    unittest.main()
