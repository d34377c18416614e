#!/usr/bin/env python3
"""Prefill whose sums travel while the other half of its rows computes, against another build: 2 ranks of one thread.

    perf/hidden_syncs.py --against OTHER/build/ptrt --against-commit HASH --out perf/results/hidden_syncs_cpu.json

The ranks share a host, or have one each on an emulated cluster (needs root), 200 us apart at each rate of --gbit. Models of 4
tracks meet every 2 or 4 layers. Prefill cells generate one token a request, so a request's time is its prefill; decode cells
are TPOT. Both builds run in turns; cells show medians. `saved_share`: the time that a prefill is shorter, over the time in
sync that it saves. With --append, cells join those of an earlier call; each names its commit.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_cluster"))
from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402


def bench(args, program, place, depth, given, wanted, requests, batch):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        words = [program, "bench", "--random-weights", str(ROOT / "perf" / "configs" / f"pt4_123m_d{depth}.json"), "--quiet",
                 "--threads", "1", "--bind", "none", "--input-len", str(given), "--output-len", str(wanted),
                 "--requests", str(requests), "--max-batch", str(batch), "--warmup", "1", "--json", path]
        env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        done = subprocess.run(place(words), capture_output=True, text=True, env=env, timeout=args.timeout)
        if done.returncode != 0:
            raise SystemExit(f"exit status {done.returncode} of {' '.join(words)}:\n{done.stderr}")
        return json.loads(Path(path).read_text(encoding="utf-8"))


def prefill(args, program, place, depth, given):
    requests = max(2, args.tokens // given)
    found = bench(args, program, place, depth, given, 1, requests, 1)
    each = 1e3 * found["elapsed_s"] / requests
    return {"ttft_ms": each, "sync_ms": each * found["sync_time_fraction"]}


def decode(args, program, place, depth, batch):
    return {"tpot_ms": bench(args, program, place, depth, 16, 24, batch, batch)["tpot_ms"]["p50"]}


def cells_of(args, name, place):
    for depth in args.depths:
        for given in args.prompts:
            yield f"{name}, D={depth}, prefill of {given}", lambda p, d=depth, g=given: prefill(args, p, place, d, g)
        for batch in args.batches:
            yield f"{name}, D={depth}, decode of {batch}", lambda p, d=depth, b=batch: decode(args, p, place, d, b)


def measure(args, name, run):
    seen = {"this": [], "other": []}
    for turn in range(args.rounds):
        for build in ("this", "other") if turn % 2 == 0 else ("other", "this"):
            seen[build].append(run(args.ptrt if build == "this" else args.against))
    cell = {"cell": name, "commit": commit(), "rounds": seen}
    for build, rounds in seen.items():
        cell[build] = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
    time = next(iter(cell["this"]))
    cell["time_ratio"] = round(cell["this"][time] / cell["other"][time], 4)
    if "sync_ms" in cell["this"]:
        saved = cell["other"]["sync_ms"] - cell["this"]["sync_ms"]
        cell["sync_ratio"] = round(cell["this"]["sync_ms"] / cell["other"]["sync_ms"], 3)
        cell["saved_share"] = round((cell["other"]["ttft_ms"] - cell["this"]["ttft_ms"]) / saved, 2) if saved > 0 else None
    print(name, *(f"{key}={cell[key]}" for key in ("this", "other", "time_ratio", "sync_ratio", "saved_share") if key in cell),
          flush=True)
    return cell


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--against", required=True, help="the program of the other build")
    parser.add_argument("--against-commit", required=True, help="the commit of the other build")
    parser.add_argument("--depths", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 64], help="sequences of the decode cells")
    parser.add_argument("--gbit", type=float, nargs="*", default=[1, 10], help="rates of the emulated links")
    parser.add_argument("--delay-us", type=float, default=200)
    parser.add_argument("--no-host", action="store_true", help="only the emulated clusters")
    parser.add_argument("--tokens", type=int, default=2048, help="prompt tokens of a prefill run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = Path(args.out)
    cells = json.loads(out.read_text(encoding="utf-8"))["cells"] if args.append and out.exists() else []
    with ended_by_signals(), contextlib.ExitStack() as stack:
        places = [] if args.no_host else [
            ("one host", lambda words: ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2", *words])]
        try:
            for gbit in args.gbit:
                cluster = stack.enter_context(Cluster(2, args.delay_us, gbit, tag=f"g{len(places)}"))
                places.append((f"{args.delay_us:g} us, {gbit:g} Gbit/s",
                               lambda words, cluster=cluster: cluster.mpirun(1, words)))
        except CannotEmulate as why:
            raise SystemExit(f"hidden_syncs: {why}") from why
        for name, place in places:
            cells += [measure(args, cell, run) for cell, run in cells_of(args, name, place)]
    result = {"machine": machine(), "against_commit": args.against_commit,
              "command": "perf/hidden_syncs.py " + " ".join(sys.argv[1:]), "cells": cells}
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
