#!/usr/bin/env python3
"""Makes tests/convert/checkpoints/: a tiny checkpoint of each family that convert_hf.py knows, and what transformers
computes with it in float64. Needs torch, transformers, tokenizers and sentencepiece (pip install); the tests only read
the files.

A folder holds config.json as transformers 5 writes it, config_v4.json as version 4 did, the weights, and goldens.json:
texts with the ids that AutoTokenizer gives them, log-probabilities of each, and greedy tokens after each. Every
parameter is drawn anew: the default initialisation has biases 0 and norm weights 1, which would hide most keys.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_tokenizer_goldens import CORPUS, LLAMA3, QWEN, Regex

CHECKPOINTS = Path(__file__).resolve().parents[2] / "tests" / "convert" / "checkpoints"
TEXTS = ["the cat", "The quick brown fox jumps over 12 lazy dogs, isn't it? Ça va; 你好! 😀\n\n  x = f(y)",
         " ".join("the dog ran after the cat while 3 of them sat on the mat;" for _ in range(4))]
NEW_TOKENS = 24
BASE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 48}

# name: (model_type, tokenizer, element type, changes of BASE)
CASES = {
    "llama2": ("llama", "bytes_bos", "float32", {"num_key_value_heads": 4}),
    "llama3": ("llama", "llama3", "bfloat16", {"rope_parameters": LLAMA3_ROPE, "attention_bias": True}),
    "llama_yarn": ("llama", "llama3", "bfloat16", {
        "rope_parameters": YARN | {"mscale": 1.3, "mscale_all_dim": 0.6, "beta_fast": 4.0, "beta_slow": 0.5},
        "head_dim": 32, "num_hidden_layers": 2}),
    "mistral": ("mistral", "sentencepiece", "bfloat16", {"sliding_window": 20, "head_dim": 12}),
    "mixtral": ("mixtral", "bytes_bos", "bfloat16", {"num_local_experts": 4, "num_experts_per_tok": 2,
                                                     "sliding_window": None, "num_hidden_layers": 2}),
    "qwen2": ("qwen2", "qwen", "bfloat16", {
        "rope_parameters": YARN, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2,
        "tie_word_embeddings": True}),
    "qwen3": ("qwen3", "qwen", "bfloat16", {
        "head_dim": 16, "rope_parameters": {"rope_type": "linear", "rope_theta": 20000.0, "factor": 3.0}}),
    "qwen3_moe": ("qwen3_moe", "qwen", "bfloat16", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "norm_topk_prob": True, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 30}),
    "qwen3_moe_raw": ("qwen3_moe", "qwen", "float16", {
        "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "norm_topk_prob": False,
        "mlp_only_layers": [1], "attention_bias": True}),
    "smollm2": ("llama", "qwen", "bfloat16", {"tie_word_embeddings": True, "num_attention_heads": 3,
                                              "num_key_value_heads": 1, "hidden_size": 24, "rope_parameters": {
                                                  "rope_type": "default", "rope_theta": 100000.0}}),
    "smollm3": ("smollm3", "llama3", "bfloat16", {"no_rope_layers": [1, 0, 1, 0], "num_hidden_layers": 4,
                                                  "use_sliding_window": True, "sliding_window": 40}),
    "gemma3": ("gemma3_text", "bytes_bos", "bfloat16", {
        "head_dim": 16, "num_hidden_layers": 4, "query_pre_attn_scalar": 24, "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0},
                            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}}),
}


def train(tokenizer: Tokenizer, **options) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=310, show_progress=False, special_tokens=["<s>", "</s>", "<unk>"],
                                  **options)
    tokenizer.train_from_iterator(CORPUS[:3] * 4, trainer)
    return tokenizer


def byte_level(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    byte_level_last = isinstance(tokenizer.decoder, decoders.ByteLevel)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template]) if (
        byte_level_last) else template
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As of Llama 2, Mistral and Gemma: a token for each byte, and for the letters of the corpus."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    letters = sorted("▁abcdefghijklmnopqrstuvwxyzTh;.,")
    trainer = trainers.BpeTrainer(vocab_size=310, show_progress=False, initial_alphabet=letters, limit_alphabet=32,
                                  special_tokens=["<s>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))])
    tokenizer.train_from_iterator(CORPUS[5:6] * 4, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer


def make_tokenizers(folder: Path) -> None:
    made = {"llama3": with_bos(byte_level(LLAMA3)), "qwen": byte_level(QWEN), "bytes_bos": with_bos(byte_fallback())}
    made["qwen"].normalizer = normalizers.NFC()
    for name, tokenizer in made.items():
        (folder / name).mkdir(parents=True)
        data = json.loads(tokenizer.to_str())
        (folder / name / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                    "unk_token": "<unk>", "chat_template": f"{{% for m in messages %}}[{name}] {{{{ m.content }}}} ü"
                                                           "{% endfor %}"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n",
                                                             encoding="utf-8")


def make_sentencepiece(folder: Path) -> None:
    """A tokenizer.model, as of Llama 2 and Mistral 7B; only add_bos_token says that it puts a bos before a text."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        Path(made, "corpus").write_text("\n".join(CORPUS[5:6] * 4))
        sentencepiece.SentencePieceTrainer.train(
            input=f"{made}/corpus", model_prefix=f"{made}/tokenizer", vocab_size=310, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            unk_id=2, bos_id=0, eos_id=1, pad_id=-1, minloglevel=2)
        shutil.copy(f"{made}/tokenizer.model", folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def draw(model, gemma: bool) -> None:
    """Every parameter anew."""
    for name, values in model.named_parameters():
        noise = torch.randn(values.shape)
        if name.endswith("bias"):
            new = torch.rand(values.shape) - 0.5
        elif "norm" in name:
            new = (0 if gemma else 1) + 0.2 * (2 * torch.rand(values.shape) - 1)
        elif "embed_tokens" in name:
            new = noise
        else:
            new = 1.4 / values.shape[-1] ** 0.5 * noise
        values.data.copy_(new)


def version_4(config: dict) -> dict:
    """The config.json as transformers 4 had it: rope_theta and rope_scaling, and no lists that other keys imply."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        old["sliding_window_pattern"] = 3
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    old |= {"rope_theta": rope["rope_theta"], "torch_dtype": config["dtype"], "transformers_version": "4.48.0"}
    old["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    if config["model_type"] == "qwen2":  # older names of the same
        old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    old.pop("layer_types", None)
    return old


@torch.no_grad()
def log_probs(model, ids: list[int]) -> list[float]:
    logits = model(torch.tensor([ids])).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return [float(f"{table[i, token]:.9g}") for i, token in enumerate(ids[1:])]


@torch.no_grad()
def greedy(model, ids: list[int], eos: int) -> list[int]:
    """Greedy tokens, up to one that nearly ties with another: float32 may choose the other."""
    new: list[int] = []
    while len(new) < NEW_TOKENS:
        best = model(torch.tensor([ids + new])).logits[0, -1].topk(2)
        if best.values[0] - best.values[1] < 1e-3:
            break
        new.append(int(best.indices[0]))
        if new[-1] == eos:
            break
    return new


def make(name: str, number: int) -> None:
    kind, tokenizer, dtype, changes = CASES[name]
    torch.manual_seed(100 + number)
    folder = CHECKPOINTS / name
    folder.mkdir(parents=True)
    config = transformers.AutoConfig.for_model(kind, **(BASE | changes))
    config.architectures = None
    model = AutoModelForCausalLM.from_config(config)
    draw(model, kind.startswith("gemma"))
    model = model.to(getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made, max_shard_size="40KB" if name == "llama3" else "1GB")
        for path in sorted(Path(made).iterdir()):
            if path.suffix in (".json", ".safetensors") and path.name != "generation_config.json":
                shutil.copy(path, folder / path.name)
        for path in (CHECKPOINTS / "tokenizers" / tokenizer).iterdir():
            shutil.copy(path, made)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config_v4.json").write_text(json.dumps(version_4(config), indent=2) + "\n")
        exactly = {"dtype": torch.float64, "experts_implementation": "eager"}  # the grouped one has no float64
        model = AutoModelForCausalLM.from_pretrained(made, **exactly).eval()
        reader = AutoTokenizer.from_pretrained(made)
        texts = []
        for text in TEXTS:
            ids = reader(text).input_ids
            texts.append({"text": text, "ids": ids, "logprobs": log_probs(model, ids),
                          "greedy": greedy(model, ids, BASE["eos_token_id"])})
        shutil.copy(folder / "config_v4.json", Path(made) / "config.json")
        old = AutoModelForCausalLM.from_pretrained(made, **exactly).eval()
        for row in texts:
            difference = max(abs(a - b) for a, b in zip(row["logprobs"], log_probs(old, row["ids"])))
            assert difference < 1e-12, (name, difference)
    (folder / "goldens.json").write_text(json.dumps(
        {"made_by": f"transformers {transformers.__version__}, torch {torch.__version__}", "tokenizer": tokenizer,
         "texts": texts}, ensure_ascii=False) + "\n", encoding="utf-8")
    print(name, [len(row["ids"]) for row in texts], [len(row["greedy"]) for row in texts],
          sum(path.stat().st_size for path in folder.iterdir()) // 1024, "KiB")


def main() -> None:
    names = sys.argv[1:]
    torch.set_num_threads(1)
    if not names:
        shutil.rmtree(CHECKPOINTS, ignore_errors=True)
        make_tokenizers(CHECKPOINTS / "tokenizers")
        make_sentencepiece(CHECKPOINTS / "tokenizers" / "sentencepiece")
    for number, name in enumerate(CASES):
        if not names or name in names:
            shutil.rmtree(CHECKPOINTS / name, ignore_errors=True)
            make(name, number)


if __name__ == "__main__":
    main()
