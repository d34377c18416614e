#!/usr/bin/env python3
"""Times decoding by Hugging Face transformers: static cache, torch.compile, random weights of a dense configuration.

    perf/hf_decode.py --config perf/configs/dense_8b.json --batch 128 --input-len 128 --json FILE

It runs one greedy decode step of the whole batch at a time, compiled with mode "reduce-overhead" (CUDA graphs). The JSON has
the median time of a step and tokens a second. Needs torch with CUDA, and transformers.
"""
import argparse
import inspect
import json
import statistics
import sys

import torch
import transformers


def make_model(config):
    if config["tracks"] != 1 or config["norm_placement"] != ["pre"] or config["ffn_pattern"] != ["dense"]:
        sys.exit("hf_decode: needs a dense model of one track with norms before its sublayers")
    shape = transformers.LlamaConfig(
        hidden_size=config["hidden_size"], intermediate_size=config["ffn_size"],
        num_hidden_layers=config["layers"], num_attention_heads=config["heads"],
        num_key_value_heads=config["kv_heads"], head_dim=config["head_dim"], vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_context"], rms_norm_eps=config["norm_eps"],
        rope_theta=config["rope_theta"], tie_word_embeddings=config["tie_embeddings"])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return transformers.LlamaForCausalLM(shape).eval()


@torch.inference_mode()
def measure(model, args):
    tokens = torch.randint(model.config.vocab_size, (args.batch, args.input_len), device="cuda")
    length = args.input_len + args.steps + args.warmup
    cache = transformers.StaticCache(config=model.config, max_batch_size=args.batch, max_cache_len=length,
                                     device="cuda", dtype=torch.bfloat16)
    # Where tokens go in the cache: later releases of transformers count by themselves, earlier ones get it from the caller.
    told = "cache_position" in inspect.signature(model.model.forward).parameters

    def forward(module, tokens, position):
        where = {"cache_position": position} if told else {}
        return module(tokens, past_key_values=cache, position_ids=position[None], use_cache=True, **where)

    # Without the head: only the last token's row of it is needed.
    hidden = forward(model.model, tokens, torch.arange(args.input_len, device="cuda")).last_hidden_state
    token = model.lm_head(hidden[:, -1:]).argmax(-1)

    def step(token, position):
        return forward(model, token, position).logits[:, -1:].argmax(-1)

    compiled = torch.compile(step, mode="reduce-overhead")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    position = torch.tensor([args.input_len], device="cuda")
    for i in range(args.warmup + args.steps):
        begin.record()
        token = compiled(token, position).clone()
        end.record()
        end.synchronize()
        position += 1
        if i >= args.warmup:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--warmup", type=int, default=16)
    parser.add_argument("--json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("hf_decode: torch sees no GPU")
    with open(args.config, encoding="utf-8") as file:
        model = make_model(json.load(file))
    step_ms = measure(model, args)
    result = {"torch": torch.__version__, "transformers": transformers.__version__, "batch": args.batch,
              "input_len": args.input_len, "step_ms": step_ms, "tokens_per_s": 1e3 * args.batch / step_ms}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()
