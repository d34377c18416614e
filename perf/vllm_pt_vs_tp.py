#!/usr/bin/env python3
"""The paper's experiment in vLLM: tensor parallelism (vLLM's own Llama model) against Parallel Tracks (ptrt's plugin).

    perf/vllm_pt_vs_tp.py --out perf/results/vllm_pt_vs_tp.json                       # ranks of this machine
    perf/vllm_pt_vs_tp.py --out FILE --delay-us 50 200                                # and on emulated clusters (needs root)
    perf/vllm_pt_vs_tp.py --out FILE --ranks 8 --dense perf/configs/dense_8b.json --compiled \\
        --launcher "mpirun -n 8 --bind-to none" --place "8 GPUs" --options '{"max_model_len": 4352}' --lengths 4096x128
                                                                                      # one rank a GPU

The dense model runs with tensor_parallel_size = RANKS: two all-reduces a layer, one for the embedding. Models of RANKS tracks,
each with a RANKS-th of its heads and FFN, meet every D = 2, 4 or 8 layers. A rank reads the same bytes of matrices and does the
same operations a token in all of them. Weights are random, in --dtype. All engines of a place are alive together, rounds are
interleaved, cells show medians. Calls are counted, in eager mode: all_reduce a forward pass, and gathers of the logits.

Places of this machine: "shared memory" is vLLM's own all-reduce between processes, "gloo" torch.distributed's, over loopback.
On clusters (perf/emulated_cluster: network namespaces with a delay one way) it is gloo over TCP; vLLM would take its shared
memory there too, and does not find the other ranks', so the engines switch it off (vllm_engines/engine.py says how).
"""
import argparse
import contextlib
import json
import os
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine
from peer_models import write_hf
from pt_vs_tp import parse_lengths

for folder in ("emulated_cluster", "vllm_engines"):
    sys.path.insert(0, str(Path(__file__).resolve().parent / folder))
from client import Engine, EngineFailed, add_options, environment, kv_cache_bytes, medians_of  # noqa: E402
from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402

DEPTHS = (2, 4, 8)


def track_config(dense, tracks, depth):
    """The dense model cut into tracks of its width that meet every `depth` layers."""
    parts = {key: dense[key] // tracks for key in ("heads", "kv_heads", "ffn_size")}
    if dense["layers"] % depth or any(parts[key] * tracks != dense[key] for key in parts):
        raise SystemExit(f"vllm_pt_vs_tp: {dense['name']} cannot be cut into {tracks} tracks that meet every {depth} layers")
    return dense | parts | {"name": f"{dense['name']}_t{tracks}_d{depth}", "tracks": tracks,
                            "sync_layers": list(range(depth, dense["layers"] + 1, depth))}


def make_models(args, folder):
    """{name: path}"""
    dense = json.loads(Path(args.dense).read_text(encoding="utf-8"))
    configs = {"TP": dense} | {f"PT D={depth}": track_config(dense, args.ranks, depth) for depth in args.depths}
    found = {}
    for name, config in configs.items():
        source, path = folder / f"{config['name']}.json", folder / f"{config['name']}.h5"
        source.write_text(json.dumps(config), encoding="utf-8")
        subprocess.run([args.ptrt, "init", source, "-o", path, "--seed", "1", "--dtype", args.dtype], check=True,
                       stdout=subprocess.DEVNULL)
        found[name] = path
        if name == "TP":
            found[name] = folder / f"{config['name']}.hf"
            write_hf(path, found[name])
            path.unlink()
    os.sync()
    return dense, found


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def with_variables(command, variables):
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]


@contextlib.contextmanager
def one_host(args, gloo):
    def start(variables):
        local = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"} | ({"PTRT_BENCH_GLOO": "1"} if gloo else {})
        return [*shlex.split(args.launcher), *with_variables([], local | variables)]
    yield start


@contextlib.contextmanager
def on_cluster(args, delay):
    with Cluster(args.ranks, delay, args.gbit) as cluster:
        def start(variables):
            remote = {"MASTER_ADDR": cluster.address(1), "GLOO_SOCKET_IFNAME": "eth0", "PTRT_BENCH_GLOO": "1"}
            return cluster.mpirun(1, with_variables([], remote | variables))
        yield start


def places(args):
    if args.place:
        yield args.place, one_host(args, False)
    else:
        for name in args.local:
            yield f"one host, {name}", one_host(args, name == "gloo")
    for delay in args.delay_us:
        yield f"{delay:g} us, {args.gbit:g} Gbit/s, gloo", on_cluster(args, delay)


def measure_place(args, start, models, config, folder):
    """[{model, batch, input_len, output_len, rounds}] of all models at one place."""
    env = environment(args, args.threads, folder) | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # mpirun passes no variables to other hosts.
    names = ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND",
             "OMP_NUM_THREADS", "LD_PRELOAD", "PYTHONPATH")
    passed = {name: env[name] for name in names if name in env}
    shapes = [(batch, *lengths) for lengths in args.lengths for batch in args.batch]
    cache = kv_cache_bytes(config, args.dtype, shapes) // args.ranks
    options = ["--dtype", args.dtype, "--max-batch", max(args.batch), "--kv-cache-bytes", cache,
               "--options", args.options, *(["--compiled"] if args.compiled else [])]
    engines, source, cells = {}, random.Random(1), {}
    try:
        for name, path in models.items():
            engines[name] = Engine(args, path, folder / f"{path.stem}.log", env=env, options=options,
                                   launcher=start(passed | {"MASTER_PORT": free_port()}))
            engines[name].ready()
        for turn in range(args.rounds + 1):
            for batch, given, wanted in shapes:
                prompts = [[source.randrange(3, config["vocab_size"]) for _ in range(given)] for _ in range(batch)]
                names = list(engines)
                for name in names[turn % len(names):] + names[:turn % len(names)]:
                    answer = engines[name].run(prompts, wanted if turn else min(wanted, 4))
                    if turn:  # the turn before is a warm-up
                        cells.setdefault((name, batch, given, wanted), []).append(figures(answer, wanted))
        return [{"model": name, "batch": batch, "input_len": given, "output_len": wanted, "rounds": rounds,
                 "median": {key: statistics.median(r[key] for r in rounds) for key in rounds[0] if rounds[0][key] is not None}}
                for (name, batch, given, wanted), rounds in cells.items()]
    finally:
        for engine in engines.values():
            engine.close()


def figures(answer, wanted):
    calls = answer["calls"] or {"all_reduce": None, "all_gather": None, "gather": None}
    counted = answer["calls"] is not None
    return medians_of(answer, wanted) | {
        "all_reduces_per_forward": calls["all_reduce"] / answer["steps"] if counted else None,
        "gathers_per_forward": (calls["all_gather"] + calls["gather"]) / answer["steps"] if counted else None,
        "steps": answer["steps"]}


def measure(args, folder):
    dense, models = make_models(args, folder)
    cells, failed = [], {}
    with ended_by_signals():
        for place, entered in places(args):
            try:
                with entered as start:
                    found = measure_place(args, start, models, dense, folder)
            except (CannotEmulate, EngineFailed) as why:
                failed[place] = str(why)
                print(f"{place}: {why}", file=sys.stderr)
                continue
            cells += [{"place": place, **cell} for cell in found]
            print_table(found, place)
    given = [word if not os.path.isabs(word) else Path(word).name for word in sys.argv[1:]]
    return {"machine": machine(), "commit": commit(), "command": "perf/vllm_pt_vs_tp.py " + " ".join(given), "ranks": args.ranks,
            "threads": args.threads, "dtype": args.dtype, "mode": "compiled" if args.compiled else "eager",
            "preload": [Path(path).name for path in args.preload], "cells": cells} | ({"failed": failed} if failed else {})


def print_table(cells, place):
    base = {(c["batch"], c["input_len"], c["output_len"]): c["median"] for c in cells if c["model"] == "TP"}
    print(f"{place}\n{'batch':>6}{'in x out':>12}  {'model':8}{'TTFT ms':>9}{'TPOT ms':>9}{'out tok/s':>10}{'all-red.':>9}"
          f"{'TTFT/TP':>9}{'TPOT/TP':>9}{'tok/s/TP':>9}")
    for cell in sorted(cells, key=lambda c: (c["batch"], c["input_len"])):
        m, b = cell["median"], base[cell["batch"], cell["input_len"], cell["output_len"]]
        lengths = f"{cell['input_len']} x {cell['output_len']}"
        print(f"{cell['batch']:>6}{lengths:>12}  {cell['model']:8}{m['ttft_ms']:>9.1f}{m['tpot_ms']:>9.2f}"
              f"{m['output_tokens_per_s']:>10.1f}{m.get('all_reduces_per_forward', float('nan')):>9.1f}"
              f"{m['ttft_ms'] / b['ttft_ms']:>9.2f}{m['tpot_ms'] / b['tpot_ms']:>9.2f}"
              f"{m['output_tokens_per_s'] / b['output_tokens_per_s']:>9.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"), help="makes the models")
    add_options(parser)
    parser.add_argument("--out", required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--dense", default=str(ROOT / "perf" / "configs" / "dense_123m.json"))
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--local", nargs="*", choices=("shared memory", "gloo"), default=["shared memory", "gloo"],
                        help="all-reduces to measure on this machine")
    parser.add_argument("--delay-us", type=float, nargs="*", default=[], help="emulated clusters with that delay one way")
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("--launcher", help="starts RANKS ranks of the command after it, on this machine")
    parser.add_argument("--place", help="what to call the launcher's machine; instead of this machine's two places")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--lengths", type=parse_lengths, nargs="+", default=[(128, 32)], metavar="INxOUT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="{}", help="further arguments of vllm.LLM, as JSON")
    args = parser.parse_args()
    args.launcher = args.launcher or f"mpirun --oversubscribe --bind-to none -n {args.ranks}"
    with tempfile.TemporaryDirectory() as folder:
        data = measure(args, Path(folder))
    Path(args.out).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 1 if "failed" in data else 0


if __name__ == "__main__":
    sys.exit(main())
