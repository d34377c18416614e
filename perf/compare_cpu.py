#!/usr/bin/env python3
"""Compares ptrt with other CPU runtimes on one machine: each round runs every cell of every program once; medians.

    perf/compare_cpu.py --out perf/results/peers_cpu.json \\
        --llama DIR --ik DIR --dllama PROGRAM \\
        --gguf-bf16 dense_bf16.gguf --gguf-q8 dense_q8_0.gguf --dllama-model dense.m dense.t

DIR holds llama-bench and llama-batched-bench of a build; models come from perf/peer_models.py (quantised by
llama-quantize). Programs that are not given are left out. Every round also measures the machine's read bandwidth and peaks
(bench_ops --ceilings): between the cells, and before and after the cells of one row, which are bound by reading.
"""
import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none"]
TCP = ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo", "--mca", "pml", "ob1"]

# The best and the median of the reads just before and after a cell, GB/s; kept as the mean of both.
READS = ("read_gb_per_s", "read_median_gb_per_s")


def output_of(command, seconds=300):
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENV, timeout=seconds).stdout


def config(name):
    return str(ROOT / "perf" / "configs" / f"{name}.json")


# ---- ptrt ----------------------------------------------------------------------------------------------------------

def bench(args, *, model, lens, batch=1, launcher=(), options=(), key="decode_tokens_per_s"):
    command = [*launcher, args.ptrt, "bench", *(["--random-weights", config(model)] if isinstance(model, str) else model),
               "--quiet", "--input-len", str(lens[0]), "--output-len", str(lens[1]), "--requests", str(batch),
               "--max-batch", str(batch), "--warmup", str(batch), *options]

    def run():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "bench.json")
            output_of([*command, "--json", path])
            return json.loads(Path(path).read_text(encoding="utf-8"))[key]
    return command, run


def ptrt_cells(args, folder):
    two, int8 = ["--threads", "2"], ["--threads", "2", "--weights", "int8"]
    for name, options in (("bfloat16", two), ("int8", int8)):
        yield f"ptrt dense {name} decode 1", bench(args, model="dense_125m", lens=(1, 129), options=options)
        for batch in (8, 32):
            yield (f"ptrt dense {name} decode {batch}",
                   bench(args, model="dense_125m", lens=(16, 65), batch=batch, options=options))
        yield (f"ptrt dense {name} prefill 512",
               bench(args, model="dense_125m", lens=(512, 1), options=options, key="prefill_tokens_per_s"))
    for model in ("dense_125m", "pt8_125m", "pt8_wide_125m", "dense_100m_tied", "pt8_100m_tied"):
        yield f"ptrt {model} decode 1", bench(args, model=model, lens=(1, 129), options=two)
    for model in ("pt8_125m", "pt8_wide_125m"):
        yield (f"ptrt {model} decode 1, 2 ranks x 1 thread",
               bench(args, model=model, lens=(1, 129), launcher=[*MPIRUN, "-n", "2"], options=["--threads", "1"]))
    float32 = os.path.join(folder, "pt4.h5")
    output_of([args.ptrt, "init", config("pt4_125m"), "-o", float32, "--dtype", "float32"])
    yield ("ptrt pt4_125m float32 decode 1, 4 ranks over TCP",
           bench(args, model=[float32], lens=(1, 65), launcher=[*MPIRUN, *TCP, "-n", "4"], options=["--threads", "1"]))


def start_cells(args, folder):
    """Seconds from starting the program to its first token, file in the page cache."""
    model, requests = os.path.join(folder, "dense.h5"), os.path.join(folder, "one.jsonl")
    output_of([args.ptrt, "init", config("dense_125m"), "-o", model, "--dtype", "bfloat16"])
    Path(requests).write_text('{"tokens": [1], "max_tokens": 1}\n', encoding="utf-8")
    packed = os.path.join(folder, "packed.h5")
    output_of([args.ptrt, "pack", model, "-o", packed])
    os.sync()  # else the first cells run while the models are still being written out
    demo = ROOT / "examples" / "demo" / "demo.h5"
    for name, path in (("plain", model), ("packed", packed), ("578 datasets", str(demo))):
        ours = [args.ptrt, "generate", path, requests, "-o", os.path.join(folder, "out.jsonl"), "--quiet", "--threads", "2"]
        yield f"ptrt start to first token, {name} [s]", (ours, lambda ours=ours: wall_seconds(ours))
    if args.llama and args.gguf_bf16:
        peer = [f"{args.llama}/llama-bench", "-m", args.gguf_bf16, "-t", "2", "-p", "0", "-n", "1", "-r", "1", "--no-warmup"]
        yield "llama.cpp start to first token [s]", (peer, lambda: wall_seconds(peer))


def wall_seconds(command):
    begin = time.perf_counter()
    output_of(command)
    return time.perf_counter() - begin


# ---- the others ----------------------------------------------------------------------------------------------------

def llama_bench(folder, model, extra, prompt, generate):
    command = [f"{folder}/llama-bench", "-m", model, "-t", "2", "-p", str(prompt), "-n", str(generate), "-r", "1",
               "-o", "json", *extra]

    def run():
        text = output_of(command)
        return json.loads(text[text.index("["):])[0]["avg_ts"]
    return command, run


def llama_batched(folder, model, extra, batch):
    command = [os.path.abspath(f"{folder}/llama-batched-bench"), "-m", os.path.abspath(model), "-t", "2", "-tb", "2", "-c", "4096", "-npp", "16",
               "-ntg", "64", "-npl", str(batch), *extra]

    def run():
        with tempfile.TemporaryDirectory() as place:  # ik_llama.cpp writes its log where it is, and its table as a log
            both = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV,
                                  timeout=300, cwd=place).stdout
        rows = [line for line in both.splitlines() if re.match(r"\|\s*16 \|", line)]
        return float(rows[-1].split("|")[8])
    return command, run


def llama_cells(args):
    best = {"llama.cpp": [], "ik_llama.cpp": ["-rtr", "1", "-thp", "1"]}
    batched = {"llama.cpp": [], "ik_llama.cpp": ["-rtr", "-thp"]}
    for name, folder in (("llama.cpp", args.llama), ("ik_llama.cpp", args.ik)):
        for kind, model in (("bfloat16", args.gguf_bf16), ("int8", args.gguf_q8)):
            if not folder or not model:
                continue
            yield f"{name} {kind} decode 1", llama_bench(folder, model, best[name], 0, 128)
            yield f"{name} {kind} prefill 512", llama_bench(folder, model, best[name], 512, 0)
            for batch in (8, 32):
                yield f"{name} {kind} decode {batch}", llama_batched(folder, model, batched[name], batch)


def dllama_cells(args):
    if not args.dllama or not args.dllama_model:
        return
    model, tokenizer = args.dllama_model
    common = ["--nthreads", "1", "--net-turbo", "0"]
    ports = [str(9980 + i) for i in range(3)]
    command = [args.dllama, "inference", "--model", model, "--tokenizer", tokenizer, "--buffer-float-type", "f32",
               "--prompt", "a", "--steps", "66", "--max-seq-len", "512", *common,
               "--workers", *[f"127.0.0.1:{port}" for port in ports]]

    def run():
        workers = [subprocess.Popen([args.dllama, "worker", "--port", port, *common], stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL) for port in ports]
        try:
            time.sleep(1)
            text = output_of(command)
            return float(re.search(r"Prediction.*?tokens/s: ([0-9.]+)", text, re.S).group(1))
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
    yield "distributed-llama float32 decode 1, 4 nodes", (command, run)


def likeness(name):
    """Puts cells that are compared next to each other, so that they see the machine in the same state."""
    found = re.search(r"(bfloat16|int8|float32) (decode \d+|prefill \d+)", name)
    return found.groups() if found else ("", "start" if "start" in name else "tracks")


def instruction_set(args):
    """The one that ptrt takes here; PTRT_SIMD_TARGET limits it."""
    return bench(args, model="tiny_1x16", lens=(1, 2), key="instruction_set")[1]()


def ceiling_cell(args):
    command = [args.bench_ops, "2", "--ceilings"]
    return command, lambda: json.loads(output_of(command))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--bench-ops", default=str(ROOT / "build" / "bench_ops"))
    parser.add_argument("--llama", help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--ik", help="folder of the same programs of ik_llama.cpp")
    parser.add_argument("--dllama", help="the program of distributed-llama")
    parser.add_argument("--gguf-bf16")
    parser.add_argument("--gguf-q8")
    parser.add_argument("--dllama-model", nargs=2, metavar=("MODEL", "TOKENIZER"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cells whose name matches this regular expression")
    parser.add_argument("--out")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        cells = dict(cell for source in (ptrt_cells(args, folder), llama_cells(args), dllama_cells(args),
                                         start_cells(args, folder)) for cell in source)
        cells = {name: cells[name] for name in sorted(cells, key=likeness) if re.search(args.only, name)}
        seen = {name: [] for name in cells}
        ceilings, reads = [], {}
        for _ in range(args.rounds):
            for i, (name, (_, run)) in enumerate(cells.items()):
                bound = re.fullmatch(r"ptrt dense \w+ decode 1", name)
                if i % 4 == 0 or bound:
                    ceilings.append(ceiling_cell(args)[1]())
                seen[name].append(run())
                if bound:
                    ceilings.append(ceiling_cell(args)[1]())
                    for key in READS:
                        mean = statistics.mean(c[key] for c in ceilings[-2:])
                        reads.setdefault(name, {}).setdefault(key, []).append(mean)

    best = {key: round(statistics.median(c[key] for c in ceilings), 2) for key in ceilings[0]}
    for name, value in best.items():
        print(f"{name:55} {value:10.1f}")
    result = []
    for name, (command, _) in cells.items():
        print(f"{name:55} {statistics.median(seen[name]):10.3f}")
        shown = " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in command)
        result.append({"cell": name, "command": shown, "median": statistics.median(seen[name]), "rounds": seen[name]})
        result[-1].update(reads.get(name, {}))
    if args.out:
        found = {"machine": machine() | {"instruction_set": instruction_set(args)}, "commit": commit(),
                 "ceilings_median": best, "ceilings": ceilings, "cells": result}
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
