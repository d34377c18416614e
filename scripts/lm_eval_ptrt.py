#!/usr/bin/env python3
"""lm-evaluation-harness (PyPI lm-eval) on a ptrt model: every kind of request as a batch file of ptrt.

    python3 -m scripts.lm_eval_ptrt --model MODEL.h5 --tasks arc_easy,hellaswag [--launcher "mpirun -n 8"]

Importing this module registers the model class "ptrt" with lm_eval. Requests and results stay in --work: a rerun
takes what is finished from there and continues what is not. docs/EVAL.md has more.
"""

import argparse
import json
import sys
from pathlib import Path

try:
    from lm_eval import simple_evaluate, utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    from scripts.model_text import ModelText, NoTokenizer
    from scripts.ptrt_batches import Batches, BatchFailed
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(f"lm_eval_ptrt: {missing}; run it in the root of ptrt, after: pip install lm-eval h5py tokenizers", file=sys.stderr)
    sys.exit(2)

DEFAULT_WORK = "ptrt-lm-eval"
# How lm_eval's generation arguments are named in ptrt's requests.
SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "seed": "seed"}


@register_model("ptrt")
class PtrtLM(TemplateLM):
    """A ptrt model behind lm_eval's interface; token ids go to ptrt, so windows are cut as lm_eval cuts them."""

    def __init__(self, model: str, work: str = DEFAULT_WORK, launcher: str = "", ptrt: str | None = None,
                 options: str = "", max_length: int | None = None, add_bos_token: bool | None = None,
                 prefix_token_id: int | None = None, max_gen_toks: int = 256, **ignored):
        """max_length: tokens that are fed at most, as in lm_eval's Hugging Face class. A scored token beyond them
        counts against max_context too, so it is at most max_context - 1. add_bos_token: default, as the model says.
        """
        super().__init__()
        self.text = ModelText(model)
        self.batches = Batches(model, work, launcher, ptrt, options)
        most = self.text.max_context - 1
        self.max_length = int(max_length) if max_length is not None else most
        if not 1 <= self.max_length <= most:
            raise ValueError(f"max_length {self.max_length} is not in 1 … {most} (max_context - 1)")
        self.max_gen_toks = int(max_gen_toks)
        self.bos = self.text.bos if add_bos_token is not False else None
        if add_bos_token and self.bos is None:
            raise ValueError("add_bos_token: the model has no bos token")
        self._prefix = prefix_token_id

    @property
    def eot_token_id(self) -> int:
        if not self.text.eos:
            raise ValueError("the model has no eos token: give prefix_token_id")
        return self.text.eos[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        if self._prefix is not None:
            return self._prefix
        return self.text.bos if self.text.bos is not None else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored) -> list[int]:
        ids = self.text.encode(string)
        if self.bos is None or add_special_tokens is False or string.startswith(self.text.name_of(self.bos) or "\0"):
            return ids
        return [self.bos, *ids]

    @property
    def tokenizer_name(self) -> str:
        """By which lm_eval's cache of requests knows the tokenizer."""
        return f"ptrt {self.batches.model}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise ValueError(f"the model file has one chat template, none with the name '{chat_template}'")
        return self.text.chat_template

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        return self.text.render(chat_history, add_generation_prompt)

    def _loglikelihood_tokens(self, requests: list, disable_tqdm: bool = False, **ignored) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            if len(continuation) > self.max_length or not continuation:
                raise ValueError(f"a continuation of {len(continuation)} tokens does not fit 1 … {self.max_length}")
            pairs.append((context[-(self.max_length + 1 - len(continuation)):], continuation))
        results = self.batches.score(pairs)
        for (texts, _, _), result in zip(requests, results):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        windows, counts = [], []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            cut = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            mine = [(None, *utils.make_disjoint_window(pair)) for pair in cut]
            windows += mine
            counts.append(len(mine))
        scores = iter(self._loglikelihood_tokens(windows))
        totals = []
        for request, count in zip(requests, counts):
            totals.append(sum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        rows = [self.generation(*request.args) for request in requests]
        texts = self.batches.generate(rows)
        for request, text in zip(requests, texts):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def generation(self, context: str, arguments: dict) -> dict:
        """The request of one text to continue. Arguments that ptrt does not have are refused."""
        known = normalize_gen_kwargs(arguments, self.max_gen_toks)
        until, samples = known.pop("until"), known.pop("do_sample")
        most = known.pop("max_gen_toks")
        if not 1 <= most < self.max_length:
            raise ValueError(f"max_gen_toks {most} is not in 1 … {self.max_length - 1}")
        if samples and "temperature" not in arguments:
            known["temperature"] = 1.0
        unknown = sorted(set(known) - set(SAMPLING))
        if unknown:
            raise ValueError(f"generation arguments that are not supported: {', '.join(unknown)}")
        stop = [word for word in ([until] if isinstance(until, str) else until or []) if word]
        row = {"tokens": self.tok_encode(context)[-(self.max_length - most):], "max_tokens": most, "stop": stop}
        return row | {SAMPLING[name]: value for name, value in known.items() if samples}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m scripts.lm_eval_ptrt", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the model file")
    parser.add_argument("--tasks", required=True, help="names of tasks, with commas between them")
    parser.add_argument("--launcher", default="", help='words before ptrt, such as "mpirun -n 8"')
    parser.add_argument("--ptrt", help="the program (default: $PTRT_BIN, build/ptrt, or that in PATH)")
    parser.add_argument("--options", default="", help='options of ptrt, such as "--compute float32 --quiet"')
    parser.add_argument("--work", default=DEFAULT_WORK, help="folder for requests, journals and results (%(default)s)")
    parser.add_argument("--include-path", help="folder of further task files (yaml)")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question")
    parser.add_argument("--apply-chat-template", action="store_true", help="questions as chats, by the model file's template")
    parser.add_argument("--system-instruction", help="system message of these chats")
    parser.add_argument("--limit", type=float, help="questions of a task: a number, or a share below 1")
    parser.add_argument("--max-length", type=int, help="tokens that are fed at most (default: max_context - 1)")
    parser.add_argument("--prefix-token-id", type=int, help="token before a text without context (default: bos, else eos)")
    parser.add_argument("--no-bos", action="store_true", help="put no bos before texts, though the model has one")
    parser.add_argument("-o", "--output", help="file for results and samples as JSON")
    return parser.parse_args(arguments)


def evaluate(args: argparse.Namespace) -> dict:
    lm = PtrtLM(args.model, args.work, args.launcher, args.ptrt, args.options, args.max_length,
                False if args.no_bos else None, args.prefix_token_id)
    return simple_evaluate(lm, tasks=args.tasks.split(","), num_fewshot=args.num_fewshot, limit=args.limit,
                           apply_chat_template=args.apply_chat_template, system_instruction=args.system_instruction,
                           task_manager=TaskManager(include_path=args.include_path), log_samples=args.output is not None)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        results = evaluate(args)
    except BatchFailed as error:
        print(f"lm_eval_ptrt: {error}", file=sys.stderr)
        return error.status
    except (OSError, ValueError, KeyError, NoTokenizer) as error:
        print(f"lm_eval_ptrt: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if args.output:
        Path(args.output).write_text(json.dumps(results, default=utils.handle_non_serializable, indent=1), encoding="utf-8")
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
