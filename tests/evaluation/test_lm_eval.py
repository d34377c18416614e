#!/usr/bin/env python3
"""scripts/lm_eval_ptrt.py against lm-eval's own Hugging Face class, on a small checkpoint with tasks of this folder.

Needs torch, transformers and lm-eval (pip install "lm-eval[hf]").
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tests" / "evaluation" / "tasks"
PTRT = Path(os.environ.get("PTRT_BIN", ROOT / "build" / "ptrt"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
               "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
_CACHE = tempfile.TemporaryDirectory(prefix="ptrt-lm-eval-")
os.environ["HF_HOME"] = _CACHE.name
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reference"), str(ROOT / "tests" / "convert")]
import with_torch  # noqa: E402

with_torch.need("torch", "transformers", "lm_eval", "h5py")

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from model_maker import make_config, write_model  # noqa: E402

TOLERANCE = 1e-3
CONTEXT = 64  # tokens; the longest texts of the tasks have more
NAMES = ["ptrt_choice", "ptrt_words", "ptrt_prose"]
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "wq",
         "self_attn.k_proj": "wk", "self_attn.v_proj": "wv", "self_attn.o_proj": "wo", "mlp.gate_proj": "w_gate",
         "mlp.up_proj": "w_up", "mlp.down_proj": "w_down"}
SHARED = {"model.embed_tokens": "embedding", "model.norm": "final_norm", "lm_head": "lm_head"}


TEMPLATE = ("{{ bos_token }}{% for message in messages %}\n<{{ message['role'] }}>\n"
            "{{ message['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")


def make_tokenizer(puts_bos: bool) -> "Tokenizer":
    """A byte-level BPE trained on the tasks themselves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = [line for path in sorted(TASKS.glob("*.jsonl")) for line in path.read_text().splitlines()]
    tokenizer.train_from_iterator(texts, trainer)
    if puts_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def make_checkpoint(folder: Path, puts_bos: bool) -> Path:
    """A Llama of random parameters as Hugging Face's files, and the same as a ptrt file."""
    tokenizer = make_tokenizer(puts_bos)
    vocab = tokenizer.get_vocab_size()
    config = LlamaConfig(vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=CONTEXT,
                         bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, rms_norm_eps=1e-5)
    model = LlamaForCausalLM(config).float().eval()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * drawn)
            else:
                parameter.copy_(drawn * (1.0 if "embed" in name else 1.4 / parameter.shape[1] ** 0.5))
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    tensors = {}
    for name, parameter in model.named_parameters():
        parts = name.removesuffix(".weight").removeprefix("model.layers.").split(".", 1)
        shared = SHARED.get(name.removesuffix(".weight"))
        path = f"/shared/{shared}" if shared else f"/tracks/00/layers/{int(parts[0]):03d}/{LAYER[parts[1]]}"
        tensors[path] = parameter.detach().numpy().astype(np.float32)
    ours = make_config(tracks=1, layers=2, hidden_size=64, ffn_size=96, heads=4, kv_heads=2, head_dim=16,
                       vocab_size=vocab, max_context=CONTEXT, norm_eps=1e-5, rope_theta=10000.0,
                       tie_embeddings=False, bos_token_id=0 if puts_bos else None, eos_token_ids=[1])
    path = write_model(folder / "model.h5", ours, tensors, tokenizer="huggingface",
                       tokenizer_model=tokenizer.to_str().encode())
    with h5py.File(path, "r+") as file:
        file["tokenizer"].attrs["chat_template"] = TEMPLATE
    return path


class LmEval(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        os.chdir(ROOT)

    def run_ptrt(self, model: Path, *more: str, status: int = 0, env: dict[str, str] | None = None) -> dict:
        output = self.folder / "results.json"
        output.unlink(missing_ok=True)
        command = [sys.executable, "-m", "scripts.lm_eval_ptrt", "--model", str(model), "--tasks", ",".join(NAMES),
                   "--include-path", str(TASKS), "--work", str(self.folder / "work"), "--ptrt", str(PTRT),
                   "--output", str(output), "--prefix-token-id", "0", *more]
        run = subprocess.run(command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True,
                             timeout=600)
        self.assertEqual(run.returncode, status, run.stdout + run.stderr)
        self.said = run.stdout + run.stderr
        return json.loads(output.read_text()) if status == 0 else {}

    def compare(self, mine: dict, theirs: dict) -> None:
        for name in NAMES:
            ours, other = mine["samples"][name], theirs["samples"][name]
            self.assertEqual([s["doc_id"] for s in ours], [s["doc_id"] for s in other])
            for a, b in zip(ours, other):
                for one, two in zip(a["resps"], b["resps"]):
                    self.compare_response(name, one[0], two[0])
            for metric, value in theirs["results"][name].items():
                if isinstance(value, float):
                    self.assertAlmostEqual(mine["results"][name][metric] / (value or 1), 1 if value else 0, delta=2e-3)
        for metric in ("acc,none", "acc_norm,none"):
            self.assertEqual(mine["results"]["ptrt_choice"][metric], theirs["results"]["ptrt_choice"][metric])

    def compare_response(self, name: str, ours, theirs) -> None:
        if name == "ptrt_words":
            self.assertEqual(ours, theirs)
        elif name == "ptrt_choice":
            self.assertAlmostEqual(float(ours[0]), float(theirs[0]), delta=TOLERANCE)
            self.assertEqual(str(ours[1]), str(theirs[1]))
        else:
            self.assertAlmostEqual(float(ours), float(theirs), delta=TOLERANCE)

    def test_as_hugging_face(self) -> None:
        for puts_bos, chats in ((False, False), (True, False), (True, True)):
            with self.subTest(puts_bos=puts_bos, chats=chats):
                folder = self.folder / f"bos-{puts_bos}-{chats}"
                model = make_checkpoint(folder, puts_bos)
                theirs = simple_evaluate(
                    "hf", {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "max_length": CONTEXT - 1},
                    tasks=NAMES, task_manager=TaskManager(include_path=str(TASKS)), batch_size=4,
                    apply_chat_template=chats, system_instruction="Be brief." if chats else None)
                chat = ["--apply-chat-template", "--system-instruction", "Be brief."] if chats else []
                mine = self.run_ptrt(model, "--launcher", "mpirun --oversubscribe --bind-to none -n 2",
                                     "--options=--compute float32 --quiet", *chat)
                self.compare(mine, theirs)

    def test_resume(self) -> None:
        model = make_checkpoint(self.folder / "checkpoint", False)
        slow = ("--options=--max-batch 1 --max-step-tokens 16 --quiet",)
        self.run_ptrt(model, *slow, status=1, env={"PTRT_FAULT": "rank=0,at=step,after=20"})
        work = self.folder / "work"
        self.assertEqual(len(list(work.glob("*.partial"))), 1, "a journal")
        first = self.run_ptrt(model, *slow)
        self.assertEqual(list(work.glob("*.partial")), [])
        times = {path: path.stat().st_mtime_ns for path in work.iterdir()}
        again = self.run_ptrt(model, *slow)
        self.assertEqual(again["results"], first["results"])
        self.assertEqual({path: path.stat().st_mtime_ns for path in work.iterdir()}, times, "nothing is run again")

    def test_bad_input(self) -> None:
        model = make_checkpoint(self.folder / "checkpoint", False)
        for more, word in ((("--max-length", str(CONTEXT)), "max_context - 1"), (("--options=--no-such",), "exit status 2"),
                           (("--launcher", "no-such-launcher"), "no-such-launcher")):
            self.run_ptrt(model, *more, status=2)
            self.assertIn(word, self.said)


if __name__ == "__main__":
    unittest.main(verbosity=1)
