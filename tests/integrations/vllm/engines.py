"""vLLM engines in this process, and what their answers are compared with."""

import contextlib
import functools
import gc
import json
import os
import subprocess
import tempfile
import weakref
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # before vLLM is imported: engine and worker in this process

import numpy as np
import pt_reference as ref
from model_grid import GridModel
from model_maker import write_random
from vllm import LLM, SamplingParams, TokensPrompt

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "examples" / "demo" / "demo.h5"
TOLERANCE = 1e-3  # of a log-probability in float32
CACHE = 64 << 20


@contextlib.contextmanager
def engine(model, **options):
    """An engine as a user makes it, small and exact unless the options say otherwise. It ends with the block: one that ended
    later would take the process groups of the next one with it."""
    defaults = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": CACHE}
    llm = LLM(str(model), **defaults | options)
    yield weakref.proxy(llm)
    del llm
    gc.collect()


def write_grid_model(folder: Path, model: GridModel) -> Path:
    return write_random(folder / f"{model.seed}.h5", model.config, model.seed, dtype=model.dtype, **model.file_options)


def continue_greedily(llm: LLM, rows: list[list[int]], max_tokens: int, *,
                      prompts_too: bool = True) -> list[tuple[list[int], list[float]]]:
    """Of each prompt: the tokens after it, and the log-probabilities of all tokens but the first.

    prompts_too=False: those of the output alone. vLLM takes nothing from its prefix cache for requests that ask for more.
    """
    params = SamplingParams(temperature=0, max_tokens=max_tokens, prompt_logprobs=0 if prompts_too else None, logprobs=0,
                            detokenize=False)
    found = []
    for row, output in zip(rows, llm.generate([TokensPrompt(prompt_token_ids=row) for row in rows], params, use_tqdm=False)):
        tokens = list(output.outputs[0].token_ids)
        steps = [*(output.prompt_logprobs[1:] if prompts_too else []), *output.outputs[0].logprobs]
        known = (row + tokens)[1:] if prompts_too else tokens
        found.append((tokens, [step[token].logprob for step, token in zip(steps, known, strict=True)]))
    return found


def check(test, model: ref.Model, rows: list[list[int]], found, tolerance: float = TOLERANCE) -> float:
    """Compares with the float64 reference; returns the largest difference of a log-probability."""
    worst, eos = 0.0, model.config["eos_token_ids"]
    for row, (tokens, logprobs) in zip(rows, found, strict=True):
        table = ref.log_probs(model, row + tokens)
        places = np.arange(len(row + tokens) - len(logprobs), len(row + tokens))
        want = table[places - 1, (row + tokens)[-len(logprobs):]]
        worst = max(worst, np.abs(np.array(logprobs) - want).max())
        for place, (chances, token) in enumerate(zip(table[len(row) - 1:], tokens)):
            second, first = np.argsort(chances)[-2:]
            if chances[first] - chances[second] > tolerance:
                test.assertEqual(token, first, f"output token {place} is not the likeliest")
        test.assertFalse(set(tokens[:-1]) & set(eos), "went on after the end of the sequence")
    test.assertLessEqual(worst, tolerance)
    return worst


@functools.cache
def demo_requests() -> list[dict]:
    lines = (DEMO.parent / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[::8]]


@functools.cache
def demo_answers() -> list[list[int]]:
    """The tokens that ptrt generates for the demo's requests."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "asked.jsonl", Path(folder) / "answered.jsonl"
        asked.write_text("".join(json.dumps(request) + "\n" for request in demo_requests()))
        subprocess.run([os.environ["PTRT_BIN"], "generate", DEMO, asked, "-o", answered, "--compute", "float32", "--quiet"],
                       check=True)
        return [json.loads(line)["tokens"] for line in answered.read_text().splitlines()]


def answer_demo(llm: LLM) -> list[list[int]]:
    params = [SamplingParams(temperature=0, max_tokens=request["max_tokens"]) for request in demo_requests()]
    outputs = llm.generate([request["prompt"] for request in demo_requests()], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def check_demo(test, llm: LLM) -> None:
    answers = demo_answers()
    test.assertGreater(len({tuple(answer) for answer in answers}), len(answers) // 2)
    test.assertEqual(answer_demo(llm), answers)


def counter(llm: LLM, name: str) -> float:
    """A metric of an engine with disable_log_stats=False."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)
