#!/usr/bin/env python3
"""The fusion's all-reduce against the best of Open MPI's algorithms for MPI_Allreduce.

    perf/bench_fusion.py --out perf/results/fusion_cpu.json                     # 2, 4, 8 ranks of this machine
    perf/bench_fusion.py --out FILE --nodes 4 --delay-us 50 100 200             # and on emulated clusters (needs root)
    perf/bench_fusion.py --out FILE --ranks --delay-us 200 --ranks-per-node 4 --every   # each of our algorithms

Needs build/bench_fusion (-DPTRT_BUILD_PERF=ON). Rounds are interleaved over the algorithms. A cell is the median time of
the slowest rank: ours over all rounds, MPI's by algorithm. The goal is a median ratio of at most 1 over the cells.
With --every a cell has `ways_us` too: the times of each of our algorithms.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_cluster"))
from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402

# coll_tuned_allreduce_algorithm of Open MPI 4.1; 0 is its own choice.
ALGORITHMS = {0: "own choice", 1: "linear", 2: "non-overlapping", 3: "recursive doubling", 4: "ring", 5: "segmented ring",
              6: "Rabenseifner"}


def command(args, algorithm, turns):
    return ["env", "OMPI_MCA_coll_tuned_use_dynamic_rules=1", f"OMPI_MCA_coll_tuned_allreduce_algorithm={algorithm}",
            args.program, str(turns), *(["every"] if args.every else [])]


def run(words):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
               OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none")
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"exit status {done.returncode} of {' '.join(words)}:\n{done.stderr}")
    return json.loads(done.stdout)["cells"]


def measure(args, place, start, turns):
    ours, theirs, ways = {}, {}, {}
    for _ in range(args.rounds):
        for algorithm in ALGORITHMS:
            for cell in run(start(command(args, algorithm, turns))):
                ours.setdefault(cell["bytes"], []).append(cell["ours_us"])
                theirs.setdefault(cell["bytes"], {}).setdefault(algorithm, []).append(cell["mpi_us"])
                for way, time in cell.get("ways_us", {}).items():
                    ways.setdefault(cell["bytes"], {}).setdefault(way, []).append(time)
    for size, times in ours.items():
        medians = {ALGORITHMS[a]: statistics.median(t) for a, t in theirs[size].items()}
        best = min(medians, key=medians.get)
        mine = statistics.median(times)
        yield {"place": place, "bytes": size, "ours_us": mine, "mpi_best_us": medians[best], "mpi_best": best,
               "ratio": mine / medians[best], "mpi_us": medians,
               **({"ways_us": {way: statistics.median(t) for way, t in ways[size].items()}} if size in ways else {})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build" / "bench_fusion"))
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--nodes", type=int, default=4, help="hosts of a cluster")
    parser.add_argument("--ranks-per-node", type=int, default=1)
    parser.add_argument("--every", action="store_true", help="each of our algorithms, too")
    parser.add_argument("--delay-us", type=float, nargs="*", default=[], help="clusters to emulate, one for each delay")
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--cluster-turns", type=int, default=30, help="turns over a cluster, where each is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    cells = []
    with ended_by_signals():
        for ranks in args.ranks:
            local = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
            cells += measure(args, f"{ranks} ranks, one host", lambda words: [*local, *words], args.turns)
        each = f" x {args.ranks_per_node}" if args.ranks_per_node > 1 else ""
        for delay in args.delay_us:
            try:
                with Cluster(args.nodes, delay, args.gbit) as cluster:
                    cells += measure(args, f"{args.nodes} hosts{each}, {delay:g} us",
                                     lambda words: cluster.mpirun(args.ranks_per_node, words), args.cluster_turns)
            except CannotEmulate as why:
                raise SystemExit(f"bench_fusion: {why}") from why
    ratios = [cell["ratio"] for cell in cells]
    for cell in cells:
        print(f"{cell['place']:22}{cell['bytes']:>9} bytes  ours {cell['ours_us']:8.1f} us  MPI {cell['mpi_best_us']:8.1f} us "
              f"({cell['mpi_best']})  ratio {cell['ratio']:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}, largest {max(ratios):.2f}")
    Path(args.out).write_text(json.dumps({"machine": machine(), "commit": commit(),
                                          "command": "perf/bench_fusion.py " + " ".join(sys.argv[1:]),
                                          "median_ratio": statistics.median(ratios), "largest_ratio": max(ratios),
                                          "cells": cells}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
