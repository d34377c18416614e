"""Models in vLLM in one process, against the float64 reference and against ptrt."""

import tempfile
import unittest
from pathlib import Path

import engines
import pt_reference as ref
from model_grid import GRID, GridModel, prompts
from model_maker import write_random
from vllm import SamplingParams

NEW_TOKENS = 24
# Compiled by Inductor, which takes a minute a model: several tracks with every norm and mixture, and one track.
COMPILED = (18, 17)


class Grid(unittest.TestCase):
    """Every option of the format: prefill of long prompts, and decode from the cache."""

    def run_model(self, model: GridModel, **options) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = engines.write_grid_model(Path(folder), model)
            rows = prompts(model)
            with engines.engine(path, skip_tokenizer_init=True, **options) as llm:
                kinds = llm.apply_model(lambda module: {type(part).__name__ for part in module.modules()})[0]
                found = engines.continue_greedily(llm, rows, NEW_TOKENS)
            worst = engines.check(self, ref.load(path), rows, found)
        # vLLM's fused kernels for experts take rows in steps of 32.
        mixture = "moe" in model.config["ffn_pattern"]
        fused = mixture and model.config["hidden_size"] % 32 == 0
        self.assertEqual(("FusedExperts" in kinds, "TrackExperts" in kinds), (fused, mixture and not fused))
        print(f"{model.name}: largest difference of a log-probability {worst:.1e}", flush=True)


def _add_tests() -> None:
    for index, model in enumerate(GRID):
        words = model.name.replace(",", "").replace(" ", "_")

        def test(self: Grid, model: GridModel = model) -> None:
            self.run_model(model)
        setattr(Grid, f"test_{index:02d}_{words}", test)
        if index in COMPILED:
            def test_compiled(self: Grid, model: GridModel = model) -> None:
                self.run_model(model, enforce_eager=False)
            setattr(Grid, f"test_compiled_{words}", test_compiled)


_add_tests()


class Windows(unittest.TestCase):
    """A model with layers of two kinds, whose caches vLLM keeps in groups: a window's blocks are freed as it moves on."""

    model = GRID[11]

    def run_model(self, rows: list[list[int]], **options):
        """What every round over the rows gives is compared with the reference; returns what the engine counted."""
        names = ("vllm:prefix_cache_hits", "vllm:num_preemptions")
        with tempfile.TemporaryDirectory() as folder:
            path = engines.write_grid_model(Path(folder), self.model)
            with engines.engine(path, skip_tokenizer_init=True, disable_log_stats=False, **options) as llm:
                rounds = [engines.continue_greedily(llm, rows, NEW_TOKENS, prompts_too=False) for _ in range(2)]
                counts = [engines.counter(llm, name) for name in names]
            reference = ref.load(path)
            for found in rounds:
                engines.check(self, reference, rows, found)
        return counts

    def test_is_such_a_model(self) -> None:
        kinds = {kind.split("_")[0] for kind in self.model.config["attention_pattern"]}
        self.assertEqual(kinds, {"local", "global"})
        self.assertLess(self.model.config["attention_window"], max(map(len, prompts(self.model))))

    def test_prefix_cache(self) -> None:
        hits, _ = self.run_model(prompts(self.model), enable_prefix_caching=True, block_size=32)
        self.assertGreater(hits, 250)

    def test_chunked_prefill(self) -> None:
        self.run_model(prompts(self.model), max_num_batched_tokens=24, max_num_seqs=4)

    def test_preemption(self) -> None:
        """Room for few of the prompts, each of which needs another block before it ends."""
        row = max(prompts(self.model), key=len)
        _, preemptions = self.run_model([row[i:i + 55] for i in range(12)], num_gpu_blocks_override=20, block_size=32,
                                        max_model_len=128, max_num_seqs=16, enable_prefix_caching=False)
        self.assertGreater(preemptions, 0)


class Float16(unittest.TestCase):
    """Files of this type start in it, also on a CPU for which oneDNN has no such products."""

    def run_model(self, config: dict) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, rows = write_random(Path(folder) / "half.h5", config, 1, dtype="float16"), prompts(GRID[0])
            with engines.engine(path, skip_tokenizer_init=True, dtype="auto") as llm:
                self.assertIn("float16", str(llm.llm_engine.vllm_config.model_config.dtype).split("."))
                found = engines.continue_greedily(llm, rows, NEW_TOKENS)
            worst = engines.check(self, ref.load(path), rows, found, tolerance=0.05)
        print(f"float16, {config['name']}: largest difference of a log-probability {worst:.1e}", flush=True)

    def test_tracks(self) -> None:
        self.run_model(GRID[2].config)

    def test_mixture(self) -> None:
        """Every expert is chosen: rounding would change a choice, and with it the result, where two are nearly equal."""
        config = GRID[4].config
        self.run_model({**config, "moe": {**config["moe"], "top_k": config["moe"]["experts"]}})


class Demo(unittest.TestCase):
    """The demo model's greedy answers are ptrt's, token for token, whatever the engine does."""

    def test_as_it_comes(self) -> None:
        with engines.engine(engines.DEMO) as llm:
            engines.check_demo(self, llm)

    def test_bfloat16(self) -> None:
        """The type that vLLM takes by itself on CPU rounds, and may change a rare answer."""
        with engines.engine(engines.DEMO, dtype="auto") as llm:
            self.assertIn("bfloat16", str(llm.llm_engine.vllm_config.model_config.dtype))
            same = [found == wanted for found, wanted in zip(engines.answer_demo(llm), engines.demo_answers(), strict=True)]
        self.assertGreater(sum(same), 0.9 * len(same))

    def test_prefix_cache(self) -> None:
        with engines.engine(engines.DEMO, enable_prefix_caching=True, block_size=32, disable_log_stats=False) as llm:
            # Long prompts with the same start: the second one takes the blocks of the first.
            start = "Spell rabbit backwards.\ntibbar\n" * 8
            asked = [start + request["prompt"] for request in engines.demo_requests()[:8]]
            first, again = (llm.generate(asked, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False) for _ in range(2))
            self.assertEqual([o.outputs[0].text for o in first], [o.outputs[0].text for o in again])
            self.assertGreater(engines.counter(llm, "vllm:prefix_cache_hits"), 8 * 200)
            engines.check_demo(self, llm)
        with engines.engine(engines.DEMO, enable_prefix_caching=False) as llm:
            fresh = llm.generate(asked, SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
            self.assertEqual([o.outputs[0].text for o in first], [o.outputs[0].text for o in fresh])

    def test_chunked_prefill(self) -> None:
        with engines.engine(engines.DEMO, max_num_batched_tokens=24, max_num_seqs=4) as llm:
            engines.check_demo(self, llm)

    def test_preemption(self) -> None:
        """128 tokens of cache for all requests: those that came last make room, and are computed again."""
        with engines.engine(engines.DEMO, num_gpu_blocks_override=5, block_size=32, max_model_len=128, max_num_seqs=16,
                            disable_log_stats=False, enable_prefix_caching=False) as llm:
            engines.check_demo(self, llm)
            params = SamplingParams(temperature=0, max_tokens=60, min_tokens=60, ignore_eos=True)
            asked = [request["prompt"] for request in engines.demo_requests()[:12]]
            crowded = [o.outputs[0].token_ids for o in llm.generate(asked, params, use_tqdm=False)]
            self.assertGreater(engines.counter(llm, "vllm:num_preemptions"), 0)
            alone = [llm.generate([prompt], params, use_tqdm=False)[0].outputs[0].token_ids for prompt in asked]
            self.assertEqual(crowded, alone)

    def test_what_vllm_adds(self) -> None:
        """Structured output, chat and several samples work on the file's tokenizer."""
        from vllm.sampling_params import StructuredOutputsParams

        with engines.engine(engines.DEMO) as llm:
            params = SamplingParams(temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(regex="[a-f]{4}"))
            text = llm.generate(["Spell tomato in capitals.\n"], params, use_tqdm=False)[0].outputs[0].text
            self.assertRegex(text, "^[a-f]{4}$")
            template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
            answer = llm.chat([{"role": "user", "content": "What is 40 + 17?"}], SamplingParams(temperature=0, max_tokens=16),
                              chat_template=template, use_tqdm=False)[0].outputs[0].text
            self.assertEqual(answer, "57")
            several = llm.generate(["Spell tomato in capitals.\n"], SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=8),
                                   use_tqdm=False)[0]
            self.assertEqual(len(several.outputs), 3)


if __name__ == "__main__":
    unittest.main(verbosity=1)
