#!/usr/bin/env python3
"""Times loading a model against reading its file, in turns, and writes one JSON with machine, commit and commands.

    perf/bench_load.py MODEL.h5 --out perf/results/load_cpu.json

A round is `dd if=FILE of=/dev/null bs=1M` over the model's files and then `ptrt bench`, whose load_s is reading the
weights and building the engine. Both find the files in the page cache: they are read once before. The ratio is dd's
time over the load's, so 1 is the speed of reading the file; peak memory is the largest resident set of the program.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_end_to_end import commit, machine


def files_of(args):
    """The model's files and the bytes of its weights, from `ptrt inspect`."""
    told = subprocess.run([args.ptrt, "inspect", args.model, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    return [file["path"] for file in found["files"]], found["bytes"]["total"]


def read_seconds(files):
    """As dd's own clock has it, without starting the process."""
    total = 0.0
    for path in files:
        told = subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], capture_output=True, text=True, check=True,
                              env=dict(os.environ, LC_ALL="C"))
        total += float(told.stderr.strip().splitlines()[-1].split(",")[-2].split()[0])
    return total


def load_command(args):
    command = [args.ptrt, "bench", args.model, "--input-len", "1", "--output-len", "1", "--requests", "1", "--warmup", "0",
               "--max-batch", "1", "--quiet"]
    return command + (["--threads", str(args.threads)] if args.threads else []) + args.options.split()


def load(args):
    """load_s, and the peak resident bytes of the run."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        process = subprocess.Popen([*load_command(args), "--json", path])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"exit status {process.returncode} of {' '.join(load_command(args))}")
        with open(path, encoding="utf-8") as file:
            return json.load(file)["load_s"], usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ptrt", default="build/ptrt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--options", default="", help="more options of ptrt bench, e.g. '--weights int8'")
    parser.add_argument("--out")
    args = parser.parse_args()

    files, weight_bytes = files_of(args)
    read_seconds(files)
    rounds = []
    for _ in range(args.rounds):
        dd_s = read_seconds(files)
        load_s, peak_bytes = load(args)
        rounds.append({"dd_s": dd_s, "load_s": load_s, "ratio": dd_s / load_s, "peak_bytes": peak_bytes})
        print("  ".join(f"{key} {value:.3f}" if key != "peak_bytes" else f"peak {value / 2**20:.0f} MiB"
                        for key, value in rounds[-1].items()))
        time.sleep(0.1)
    median = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
    print(f"median: dd {median['dd_s']:.3f} s, load {median['load_s']:.3f} s, ratio {median['ratio']:.2f}; "
          f"peak {median['peak_bytes'] / 2**20:.0f} MiB for {weight_bytes / 2**20:.0f} MiB of weights in the file")
    if args.out:
        result = {"machine": machine(), "commit": commit(), "command": " ".join(load_command(args)),
                  "read_command": "dd if=FILE of=/dev/null bs=1M", "weight_bytes": weight_bytes, "median": median,
                  "rounds": rounds}
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
