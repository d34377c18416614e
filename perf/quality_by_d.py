#!/usr/bin/env python3
"""What block depth D costs in loss, at small scale: dense and PT models of equal parameters, tokens and recipe, three seeds.

    perf/quality_by_d.py                 trains all, writes perf/results/quality_by_d.json and docs/quality_by_d.svg
    perf/quality_by_d.py --draw          the figure again, from the results

Text: the sources of Debian's Python library, a byte a token. The last 5 % of every file are held out; the result is the loss on
windows of them. All models of a seed take the same batches in the same order. A model is one process of one thread, and --jobs
of them run at a time. Finished models are kept: a run that was stopped continues. Needs torch, h5py, matplotlib.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from bench_end_to_end import ROOT, commit, machine

sys.path.insert(0, str(ROOT / "scripts"))
TEXT = Path("/usr/lib/python3.11")
RESULTS, FIGURE = ROOT / "perf" / "results" / "quality_by_d.json", ROOT / "docs" / "quality_by_d.svg"
LAYERS, TRACKS, SEEDS = 8, 4, (1, 2, 3)
MODELS = ("dense", 1, 2, 4, 8)  # dense, or the block depth D
RECIPE = {"batch": 8, "context": 128, "lr": 4e-3, "min_lr": 0.1, "warmup": 25, "weight_decay": 0.1, "clip": 1.0,
          "eval_batches": 8, "held_out": 0.05, "tokenizer": None, "device": "cpu"}


def config(model):
    """Four tracks of half the width have the matrices of one dense model; the FFN makes up for the smaller embedding."""
    dense = model == "dense"
    return {"name": f"{model}", "tracks": 1 if dense else TRACKS, "layers": LAYERS,
            "sync_layers": [LAYERS] if dense else list(range(model, LAYERS + 1, model)),
            "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False}, "hidden_size": 64 if dense else 32,
            "heads": 4 if dense else 2, "kv_heads": 4 if dense else 2, "head_dim": 16, "ffn_size": 172 if dense else 88,
            "vocab_size": 259, "max_context": 128, "norm_eps": 1e-5, "norm_placement": ["pre"], "qk_norm": True,
            "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0, "ffn_pattern": ["dense"],
            "moe": None, "tie_embeddings": True, "bos_token_id": 256, "eos_token_ids": [257]}


def texts():
    return sorted(TEXT.glob("*.py"))


def train(model, seed, steps):
    """One model; returns its result."""
    import torch
    import train_pt
    from contextlib import nullcontext
    from pt_model import ParallelTrack
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    args = SimpleNamespace(**RECIPE, steps=steps, seed=seed, texts=texts())
    net = ParallelTrack(config(model))
    tokens, held_out = train_pt.read_texts(args, net.config)
    optimizer = train_pt.make_optimizer(net, args)
    start, losses = time.process_time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = train_pt.learning_rate(args, step)
        loss = net.loss(train_pt.batch_of(tokens, args, step, "cpu"))
        loss.backward()
        train_pt.clip(net, args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return {"model": model, "seed": seed, "parameters": sum(p.numel() for p in net.parameters()),
            "sync_layers": 0 if model == "dense" else len(net.config["sync_layers"]),
            "train_loss": round(statistics.mean(losses[-20:]), 4),
            "held_out_loss": round(train_pt.held_out_loss(net, nullcontext, held_out, args, "cpu"), 4),
            "cpu_seconds": round(time.process_time() - start, 1)}


def run_all(args):
    """Trains what is missing, --jobs processes at a time, and writes the results after each."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in texts())).hexdigest()
    head = {"machine": machine(), "commit": commit(), "command": "perf/quality_by_d.py " + " ".join(args.given),
            "text": f"{TEXT}/*.py, {len(texts())} files", "text_sha256": digest, "steps": args.steps,
            "tokens": args.steps * RECIPE["batch"] * RECIPE["context"], "recipe": RECIPE, "models": []}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if all(before[key] == head[key] for key in ("text_sha256", "steps", "recipe")):
            head["models"] = before["models"]
    done = {(result["model"], result["seed"]) for result in head["models"]}
    waiting = [(model, seed) for seed in SEEDS for model in MODELS if (model, seed) not in done]
    running = []
    while waiting or running:
        while waiting and len(running) < args.jobs:
            model, seed = waiting.pop(0)
            command = [sys.executable, __file__, "--one", str(model), str(seed), "--steps", str(args.steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        time.sleep(0.2)
        for process in [process for process in running if process.poll() is not None]:
            running.remove(process)
            if process.returncode:
                raise SystemExit(f"a model failed: {process.args}")
            head["models"].append(json.loads(process.stdout.read().splitlines()[-1]))
            print(head["models"][-1], flush=True)
            args.out.write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")


def summary(results):
    """Of each kind of model: the losses of its seeds."""
    return {model: [r["held_out_loss"] for r in results["models"] if r["model"] == model] for model in MODELS}


def draw(results, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    matplotlib.rcParams["svg.hashsalt"] = "ptrt"
    losses = summary(results)
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for place, model in enumerate(MODELS):
        axes.plot([place] * len(losses[model]), losses[model], ".", color="tab:grey")
        mean, spread = statistics.mean(losses[model]), statistics.stdev(losses[model])
        axes.errorbar(place, mean, spread, fmt="o", capsize=6, color="tab:red" if model == "dense" else "tab:blue")
    labels = ["dense"] + [f"D = {d}\n{LAYERS // d} sync point{'s' * (d < LAYERS)}" for d in MODELS[1:]]
    axes.set_xticks(range(len(MODELS)), labels)
    axes.set_ylabel("held-out loss, nats a byte")
    axes.set_title(f"{results['models'][0]['parameters'] / 1e6:.2f} M parameters, {results['tokens'] / 1e3:.0f} thousand tokens; mean and "
                   f"standard deviation of {len(SEEDS)} seeds", fontsize=9)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--draw", action="store_true", help="only the figure, from the results")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SEED"), help="train one model and print its result")
    args = parser.parse_args()
    args.given = sys.argv[1:]
    if args.one:
        model = args.one[0] if args.one[0] == "dense" else int(args.one[0])
        print(json.dumps(train(model, int(args.one[1]), args.steps)))
        return
    if not args.draw:
        run_all(args)
    results = json.loads(args.out.read_text(encoding="utf-8"))
    draw(results, args.figure)
    for model, losses in summary(results).items():
        print(f"{model}: {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}")


if __name__ == "__main__":
    main()
