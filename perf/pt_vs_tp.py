#!/usr/bin/env python3
"""Parallel Tracks against tensor parallelism: the same kernels, ranks and parameter count, other sync points.

    perf/pt_vs_tp.py --out perf/results/pt_vs_tp                       # this machine's ranks
    perf/pt_vs_tp.py --out DIR --delay-us 50 100 200                   # and on emulated clusters (needs root)
    perf/pt_vs_tp.py --out DIR --launcher "srun -n 4" --place slurm    # or any launcher that starts 4 ranks
    perf/pt_vs_tp.py --out DIR --figures-only                          # draw again from DIR/pt_vs_tp.json

A dense model of 24 layers runs over 4 ranks with `--tensor-parallel 4` (48 all-reduces a forward pass). Models of 4 tracks,
each with a quarter of its heads and FFN, run over the same 4 ranks and meet every D = 2, 4 or 8 layers (12, 6 or 3 fusions).
A rank reads the same bytes and does the same operations in all of them. Rounds are interleaved, cells show medians. The
script writes pt_vs_tp.json with machine, commit and commands, and draws figures of it (matplotlib).
"""
import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_cluster"))
from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402

RANKS = 4
MODELS = {"TP": ("dense_123m", ["--tensor-parallel", str(RANKS)]), "PT D=2": ("pt4_123m_d2", []),
          "PT D=4": ("pt4_123m_d4", []), "PT D=8": ("pt4_123m_d8", [])}
KEPT = ("output_tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s", "sync_points_per_forward",
        "fusions_per_forward", "track_sums_per_forward", "sync_bytes_per_forward", "sync_time_fraction",
        "sync_wait_fraction", "sync_move_fraction", "head_time_fraction", "max_step_tokens")


def parse_lengths(text):
    given, wanted = (int(part) for part in text.split("x"))
    return given, wanted


def bench_command(args, model, batch, lengths):
    config, options = MODELS[model]
    return [args.ptrt, "bench", "--random-weights", str(ROOT / "perf" / "configs" / f"{config}.json"), "--quiet",
            "--threads", "1", "--bind", "none", "--input-len", str(lengths[0]), "--output-len", str(lengths[1]),
            "--requests", str(batch), "--max-batch", str(batch), "--warmup", str(min(batch, 2)), *options,
            *shlex.split(args.options)]


def run(command, place):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        done = subprocess.run(place([*command, "--json", path]), capture_output=True, text=True, env=env, timeout=600)
        if done.returncode != 0:
            raise SystemExit(f"exit status {done.returncode} of {' '.join(command)}:\n{done.stderr}")
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    return {"ttft_ms": found["ttft_ms"]["p50"], "tpot_ms": found["tpot_ms"]["p50"],
            "itl_ms": found["itl_ms"]["p50"], **{key: found[key] for key in KEPT}}


@contextlib.contextmanager
def places(args):
    """Yields (name, how to start a command on RANKS ranks); a cluster exists while it is the current place."""
    with contextlib.ExitStack() as stack:
        found = []
        if args.launcher:
            found.append((args.place, lambda command: [*shlex.split(args.launcher), *command]))
        else:
            local = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(RANKS)]
            found.append(("one host", lambda command: [*local, *command]))
        for delay in args.delay_us:
            cluster = stack.enter_context(Cluster(RANKS, delay, args.gbit, tag=f"d{len(found)}"))
            found.append((f"{delay:g} us, {args.gbit:g} Gbit/s",
                          lambda command, cluster=cluster: cluster.mpirun(1, command)))
        yield found


def measure(args):
    cells = {}
    with ended_by_signals(), places(args) as found:
        for _ in range(args.rounds):
            for place, start in found:
                for lengths in args.lengths:
                    for batch in args.batch:
                        for model in MODELS:
                            command = bench_command(args, model, batch, lengths)
                            cell = cells.setdefault((place, model, batch, lengths), {"command": command, "rounds": []})
                            cell["rounds"].append(run(command, start))
    result = []
    for (place, model, batch, lengths), cell in cells.items():
        median = {key: statistics.median(r[key] for r in cell["rounds"]) for key in cell["rounds"][0]}
        shown = " ".join(os.path.relpath(w, ROOT) if os.path.isabs(w) else w for w in cell["command"])
        result.append({"place": place, "model": model, "batch": batch, "input_len": lengths[0],
                       "output_len": lengths[1], "command": shown, "median": median, "rounds": cell["rounds"]})
    return {"machine": machine(), "commit": commit(), "ranks": RANKS,
            "command": "perf/pt_vs_tp.py " + " ".join(sys.argv[1:]), "cells": result}


def group(data):
    """{(place, batch, input, output): {model: median}} in the order of measuring."""
    found = {}
    for cell in data["cells"]:
        key = (cell["place"], cell["batch"], cell["input_len"], cell["output_len"])
        found.setdefault(key, {})[cell["model"]] = cell["median"]
    return found


def print_table(data):
    print(f"{'place':24}{'batch':>6}{'in x out':>12}  {'model':8}{'TTFT ms':>9}{'TPOT ms':>9}{'ITL ms':>8}{'out tok/s':>10}"
          f"{'syncs':>7}{'wait %':>8}{'move %':>8}{'TPOT/TP':>9}")
    for (place, batch, given, wanted), models in group(data).items():
        for model, m in models.items():
            print(f"{place:24}{batch:>6}{f'{given} x {wanted}':>12}  {model:8}{m['ttft_ms']:>9.1f}{m['tpot_ms']:>9.2f}{m['itl_ms']:>8.2f}"
                  f"{m['output_tokens_per_s']:>10.1f}{m['sync_points_per_forward']:>7.0f}"
                  f"{100 * m['sync_wait_fraction']:>8.1f}{100 * m['sync_move_fraction']:>8.1f}"
                  f"{m['tpot_ms'] / models['TP']['tpot_ms']:>9.2f}")


def draw(data, folder):
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ptrt"
    from matplotlib import pyplot as plt
    groups = group(data)
    names = [f"{place}\nbatch {batch}, {given} in, {wanted} out" for place, batch, given, wanted in groups]

    figure, axes = plt.subplots(1, 3, figsize=(15, 0.9 + 0.75 * len(groups)), sharey=True)
    for axis, (key, title, inverse) in zip(axes, (("ttft_ms", "TTFT", False), ("tpot_ms", "TPOT", False),
                                                  ("output_tokens_per_s", "output tokens/s", True))):
        for i, models in enumerate(groups.values()):
            for k, model in enumerate(m for m in MODELS if m != "TP"):
                ratio = models[model][key] / models["TP"][key]
                axis.barh(i + 0.25 * (k - 1), ratio, 0.23, color=f"C{k}", label=model if i == 0 else None)
                axis.text(ratio, i + 0.25 * (k - 1), f" {ratio:.2f}", va="center", fontsize=7)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"{title}, relative to tensor parallelism ({'more' if inverse else 'less'} is better)", fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=7)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "pt_vs_tp_ratios.svg", metadata={"Date": None})

    figure, axis = plt.subplots(figsize=(10, 0.9 + 0.85 * len(groups)))
    for i, models in enumerate(groups.values()):
        for k, (model, m) in enumerate(models.items()):
            left, y = 0.0, i + 0.2 * (k - 1.5)
            parts = (("compute", 1 - m["sync_time_fraction"], "C2"), ("wait for the slowest", m["sync_wait_fraction"], "C1"),
                     ("move and add", m["sync_move_fraction"], "C3"))
            for part, share, colour in parts:
                width = share * m["tpot_ms"]
                axis.barh(y, width, 0.18, left=left, color=colour, label=part if i == k == 0 else None)
                left += width
            axis.text(left, y, f" {model}", va="center", fontsize=6)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("TPOT [ms], divided as all steps of the run")
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "pt_vs_tp_time.svg", metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--out", required=True, help="folder of pt_vs_tp.json and the figures")
    parser.add_argument("--delay-us", type=float, nargs="*", default=[], help="emulated clusters with that delay one way")
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("--launcher", default="", help=f"starts {RANKS} ranks of the command after it")
    parser.add_argument("--place", default="cluster", help="what to call the launcher's machines")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--lengths", type=parse_lengths, nargs="+", default=[(32, 32), (256, 32)], metavar="INxOUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="further options of ptrt bench")
    parser.add_argument("--figures-only", action="store_true")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pt_vs_tp.json"
    if not args.figures_only:
        try:
            data = measure(args)
        except CannotEmulate as why:
            raise SystemExit(f"pt_vs_tp: {why}") from why
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    data = json.loads(path.read_text(encoding="utf-8"))
    print_table(data)
    try:
        draw(data, folder)
    except ImportError:
        print("no figures: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
