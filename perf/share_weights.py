#!/usr/bin/env python3
"""One copy of the weights for the replicas of a host: memory, decode steps and load, with --share-weights on and off.

    perf/share_weights.py --out perf/results/share_weights_cpu.json [--huge-pages advise never]

Two replicas of one rank and one thread each, which take turns with the option. Memory is the sum of the ranks' PSS (pages that
several processes map count in parts) while they run. --huge-pages sets the system's choice for shared memory before each
series, as root, and puts the old one back; without it the series has the choice that it finds.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

SETTING = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
CONFIG = ROOT / "perf" / "configs" / "dense_125m.json"


def huge_pages():
    return SETTING.read_text(encoding="utf-8").split("[")[1].split("]")[0] if SETTING.exists() else "not there"


def pss_mib(model):
    """Of all processes whose command line names the model, but the launcher."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if str(model).encode() in words and words[0].endswith(b"ptrt"):
                lines = (entry / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):
            continue
    return total / 1024


def measure(ptrt, model, option, folder):
    out = Path(folder, "bench.json")
    words = ["mpirun", "--oversubscribe", "-n", "2", ptrt, "bench", str(model), "--replicas", "2", "--threads", "1",
             "--share-weights", option, "--input-len", "8", "--output-len", "64", "--requests", "8", "--max-batch", "1",
             "--json", str(out)]
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    most = 0
    while running.poll() is None:
        most = max(most, pss_mib(model))
        time.sleep(0.1)
    if running.returncode != 0:
        raise SystemExit(f"exit status {running.returncode} of {' '.join(words)}")
    found = json.loads(out.read_text(encoding="utf-8"))
    return {"pss_mib": most, "decode_tokens_per_s": found["decode_tokens_per_s"], "load_s": found["load_s"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--huge-pages", nargs="*", default=[])
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    cells, found = [], huge_pages()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.h5")
        subprocess.run([args.ptrt, "init", str(CONFIG), "-o", str(model), "--dtype", "bfloat16"], check=True,
                       capture_output=True)
        for choice in args.huge_pages or [found]:
            if choice != huge_pages():
                SETTING.write_text(choice, encoding="utf-8")
            rounds = {"off": [], "on": []}
            try:
                for turn in range(args.rounds):
                    for option in list(rounds)[::1 if turn % 2 == 0 else -1]:
                        rounds[option].append(measure(args.ptrt, model, option, folder))
            finally:
                if found != huge_pages():
                    SETTING.write_text(found, encoding="utf-8")
            cell = {"huge_pages_of_shared_memory": choice, "rounds": rounds}
            for option, seen in rounds.items():
                cell[option] = {key: round(statistics.median(r[key] for r in seen), 3) for key in seen[0]}
            cells.append(cell)
            print(choice, cell["off"], cell["on"], flush=True)
    Path(args.out).write_text(json.dumps({
        "machine": machine(), "commit": commit(), "command": f"perf/share_weights.py --huge-pages {' '.join(args.huge_pages)}",
        "model": CONFIG.stem, "cells": cells}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
