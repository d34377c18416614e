#!/usr/bin/env python3
"""Parallel Tracks against tensor parallelism on one of eight GPUs: its share runs, the links are waits.

    perf/emulated_gpus.py --out perf/results/emulated_gpus.json [--ptrt build/ptrt] [--rounds 3]

EMULATED: one GPU runs the first of eight ranks (`ptrt bench --emulate-ranks 8`). Every exchange is a wait on the device, of
the link's latency and bytes. The models are perf/configs/pt8_30b_d2, _d4 and _d8 (8 tracks that meet every 2, 4 or 8 of 64
layers). Their baseline is dense_30b under --tensor-parallel 8, with the same number of heads, layers and parameters. Rounds
are interleaved; cells show medians. Nobody waits for a slower rank here, and no wait overlaps with work.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from bench_end_to_end import ROOT, commit

MODELS = {"TP": ("dense_30b", ["--tensor-parallel", "8"]), "PT D=2": ("pt8_30b_d2", []), "PT D=4": ("pt8_30b_d4", []),
          "PT D=8": ("pt8_30b_d8", [])}
# (batch, tokens in, tokens out)
CELLS = [(1, 128, 128), (1, 4096, 128), (64, 1024, 128)]


def bench(args, model, batch, lengths):
    config, options = MODELS[model]
    command = [*args.ptrt, "bench", "--backend", args.backend, "--random-weights",
               str(ROOT / "perf" / "configs" / f"{config}.json"), "--emulate-ranks", "8", "--link-latency-us",
               str(args.latency_us), "--link-gb-per-s", str(args.gb_per_s), "--max-step-tokens", "4096", "--max-batch",
               str(batch), "--requests", str(batch), "--warmup", str(batch), "--quiet", "--input-len",
               ",".join(str(n) for n, _ in lengths), "--output-len", str(lengths[0][1]), *options]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise SystemExit(f"exit status {done.returncode} of {' '.join(command)}:\n{done.stderr}")
        found = json.loads(path.read_text(encoding="utf-8"))
    return found.get("runs", [found])


def measure(args):
    cells = {}
    for round_number in range(args.rounds):
        for model in MODELS:
            for batch in sorted({batch for batch, _, _ in CELLS}):
                lengths = [(given, wanted) for b, given, wanted in CELLS if b == batch]
                for run in bench(args, model, batch, lengths):
                    cells.setdefault((batch, run["input_len"], run["output_len"], model), []).append(run)
            print(f"round {round_number + 1} of {args.rounds}: {model}", file=sys.stderr)
    return cells


def table(cells):
    rows = []
    for (batch, given, wanted, model), runs in sorted(cells.items(), key=lambda item: item[0][:3]):
        def median(key):
            values = [run[key]["p50"] if isinstance(run[key], dict) else run[key] for run in runs]
            return statistics.median(values)
        rows.append({"batch": batch, "input_len": given, "output_len": wanted, "model": model,
                     "sync_points_per_forward": runs[0]["sync_points_per_forward"], "ttft_ms": median("ttft_ms"),
                     "itl_ms": median("itl_ms"), "tpot_ms": median("tpot_ms"),
                     "output_tokens_per_s": median("output_tokens_per_s"),
                     "sync_time_fraction": median("sync_time_fraction"), "fusion": runs[0]["fusion"]})
    for row in rows:
        tp = next(r for r in rows if r["model"] == "TP" and r["batch"] == row["batch"]
                  and r["input_len"] == row["input_len"])
        row["of_tp"] = {key: row[key] / tp[key] for key in ("ttft_ms", "itl_ms", "tpot_ms", "output_tokens_per_s")}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--ptrt", nargs="+", default=[str(ROOT / "build" / "ptrt")], help="program, or command that starts it")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--latency-us", type=float, default=9, help="latency of one exchange (default 9: eight GPUs over NVLink)")
    parser.add_argument("--gb-per-s", type=float, default=450, help="rate of one GPU's links, one way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commit", help="commit of the program (default: of this checkout)")
    parser.add_argument("--gpu", default="unknown")
    args = parser.parse_args()
    rows = table(measure(args))
    result = {"emulated": True, "gpu": args.gpu, "commit": args.commit or commit(), "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
              "command": "perf/emulated_gpus.py", "rounds": args.rounds,
              "link": {"latency_us": args.latency_us, "gb_per_s": args.gb_per_s}, "cells": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("EMULATED: one of 8 GPUs, exchanges are waits")
    print(f"{'batch':>5} {'in':>5} {'out':>4}  {'model':<7} {'syncs':>5} {'TTFT ms':>8} {'ITL ms':>7} {'tokens/s':>9} {'in sync':>7}"
          f"   of TP: {'TTFT':>5} {'ITL':>5} {'tokens/s':>8}")
    for r in rows:
        print(f"{r['batch']:>5} {r['input_len']:>5} {r['output_len']:>4}  {r['model']:<7} {r['sync_points_per_forward']:>5} "
              f"{r['ttft_ms']:>8.1f} {r['itl_ms']:>7.2f} {r['output_tokens_per_s']:>9.1f} {r['sync_time_fraction']:>7.2f}"
              f"          {r['of_tp']['ttft_ms']:>5.2f} {r['of_tp']['itl_ms']:>5.2f} {r['of_tp']['output_tokens_per_s']:>8.2f}")


if __name__ == "__main__":
    main()
