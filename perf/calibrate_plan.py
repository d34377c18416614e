#!/usr/bin/env python3
"""Finds the speeds of a machine and its links for `ptrt plan` from measured runs, and checks them against others.

    perf/calibrate_plan.py perf/results/pt_vs_tp/pt_vs_tp.json --hold-out "100 us" --out perf/results/plan_calibration

Takes the file of perf/pt_vs_tp.py. `ptrt plan` counts what each run takes of every resource (bytes read, operations, hops,
bytes moved); the time of a token, and to the first one of lone requests, is a sum of these counts times a price each. The
prices that fit best (least squares of relative errors) become DIR/machine.json (--gpu) and DIR/link_*.json (--link), one for
every place. A hop's price is a constant and a share of the network's delay, taken from the place's name ("100 us, …"; none: 0).
Places that contain a --hold-out text are not fitted; `ptrt plan` predicts them from the files. DIR/check.json has all errors.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit

PRICES = ("bytes", "ops of a prompt", "ops of a token", "hop", "hop by delay", "moved bytes")


def fail(message):
    raise SystemExit(f"calibrate_plan: {message}")


def delay_of(place):
    found = re.match(r"([\d.]+) us\b", place)
    return float(found.group(1)) if found else 0.0


def plan_row(args, cell, gpu, link):
    """The row of `ptrt plan` for the layout that was measured."""
    words = cell["command"].split()
    config = words[words.index("--random-weights") + 1]
    split = int(words[words.index("--tensor-parallel") + 1]) if "--tensor-parallel" in words else 1
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "plan.json"
        command = [args.ptrt, "plan", config, "--gpus", str(args.ranks), "--gpu", str(gpu), "--link", str(link), "--json",
                   str(table), "--batch", str(cell["batch"]), "--input-len", str(cell["input_len"]), "--output-len",
                   str(cell["output_len"])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            fail(f"{' '.join(command)}: {done.stderr.strip()}")
        rows = json.loads(table.read_text(encoding="utf-8"))["runs"]
    for row in rows:
        if not (row["dense"] and split == 1) and row["tensor_parallel"] == split and row["replicas"] == 1:
            return row
    fail(f"{config}: no layout with {split} ranks a track over {args.ranks} ranks")


def points_of(cell, row):
    """(what, measured ms, predicted ms, counts in the order of PRICES)."""
    delay = delay_of(cell["place"])

    def counts(step, token):
        ops = (0, step["ops"]) if token else (step["ops"], 0)
        return [step["bytes"], *ops, step["hops"], step["hops"] * delay, step["moved_bytes"]]
    yield "TPOT", cell["median"]["tpot_ms"], row["tpot_ms"], counts(row["decode"], True)
    if cell["batch"] == 1:  # others wait in a queue, which the model does not know
        yield "TTFT", cell["median"]["ttft_ms"], row["ttft_ms"], counts(row["prefill"], False)


def least_squares(rows, values):
    """x that makes the sum of ((row · x) / value - 1)² least; columns that are all zero get 0."""
    used = [j for j in range(len(PRICES)) if any(row[j] for row in rows)]
    if len(rows) < len(used):
        fail(f"{len(rows)} measured times for {len(used)} prices")
    scale = {j: max(abs(row[j]) for row in rows) for j in used}
    a = [[row[j] / scale[j] / value for j in used] for row, value in zip(rows, values)]
    n = len(used)
    m = [[sum(r[i] * r[j] for r in a) for j in range(n)] + [sum(r[i] for r in a)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        if abs(m[i][i]) < 1e-12:
            fail(f"the runs do not tell the price of '{PRICES[used[i]]}' from the others: more sizes, batches or delays are needed")
        for r in range(n):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [x - factor * y for x, y in zip(m[r], m[i])]
    found = [0.0] * len(PRICES)
    for i, j in enumerate(used):
        found[j] = m[i][n] / m[i][i] / scale[j]
        if found[j] <= 0 and PRICES[j] != "hop by delay":
            fail(f"the price of '{PRICES[j]}' comes out as {found[j]:g} ms: these runs do not follow the model")
    return found


def describe_machine(prices, source):
    per_byte, prompt, token = prices[:3]
    tflops = 1e-9 / prompt
    return {"name": "calibrated", "memory_gib": 1e6, "memory_gb_per_s": 1e-6 / per_byte, "gemm_tflops": tflops,
            "bandwidth_efficiency": 1, "gemm_efficiency": 1, "decode_gemm_efficiency": prompt / token if token else 1,
            "layer_overhead_us": 0, "overlap": 0, "source": source}


def describe_link(prices, place, args, source):
    return {"name": place, "latency_us": 1e3 * (prices[3] + prices[4] * delay_of(place)), "gb_per_s": 1e-6 / prices[5],
            "ranks": 0, "two_step_bytes": args.two_step_bytes, "source": source}


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def calibrate(args, cells, held_out):
    """Files that describe the machine and the link of each place."""
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    unit = {"name": "unit", "memory_gib": 1e6, "memory_gb_per_s": 1, "gemm_tflops": 1, "bandwidth_efficiency": 1,
            "gemm_efficiency": 1, "layer_overhead_us": 0}
    with tempfile.TemporaryDirectory() as folder:
        gpu, link = Path(folder) / "gpu.json", Path(folder) / "link.json"
        write(gpu, unit)
        write(link, {"latency_us": 1, "gb_per_s": 1, "ranks": 0, "two_step_bytes": args.two_step_bytes})
        points = [p for cell in cells if not held_out(cell) for p in points_of(cell, plan_row(args, cell, gpu, link))]
    prices = least_squares([p[3] for p in points], [p[1] for p in points])
    source = f"perf/calibrate_plan.py from {os_relative(args.measured)}"
    write(out / "machine.json", describe_machine(prices, source))
    links = {}
    for place in dict.fromkeys(cell["place"] for cell in cells):
        links[place] = out / ("link_" + re.sub(r"\W+", "_", place) + ".json")
        write(links[place], describe_link(prices, place, args, source))
    return out / "machine.json", links


def os_relative(path):
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def check(args, cells, held_out, machine, links):
    rows = []
    for cell in cells:
        for what, measured, predicted, _ in points_of(cell, plan_row(args, cell, machine, links[cell["place"]])):
            rows.append({"place": cell["place"], "model": cell["model"], "batch": cell["batch"], "what": what,
                         "held_out": held_out(cell), "measured_ms": measured, "predicted_ms": predicted,
                         "error": predicted / measured - 1})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", help="the file of perf/pt_vs_tp.py")
    parser.add_argument("--places", nargs="*", default=[], help="only places that contain one of these texts")
    parser.add_argument("--hold-out", nargs="*", default=[], help="places that contain one of these are predicted, not fitted")
    parser.add_argument("--two-step-bytes", type=float, default=384 * 1024,
                        help="bytes a rank from which the measured program added slices")
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--out", required=True, help="folder for the descriptions and the check")
    args = parser.parse_args()
    try:
        data = json.loads(Path(args.measured).read_text(encoding="utf-8"))
        args.ranks = data["ranks"]
        cells = [c for c in data["cells"] if not args.places or any(text in c["place"] for text in args.places)]
        measured_at = data["commit"]
        for cell in cells:
            for key in ("place", "model", "batch", "input_len", "output_len", "command"):
                cell[key]
            cell["median"]["tpot_ms"], cell["median"]["ttft_ms"]
    except (OSError, ValueError, KeyError, TypeError) as why:
        fail(f"{args.measured}: no file of perf/pt_vs_tp.py: {why!r}")

    def held_out(cell):
        return any(text in cell["place"] for text in args.hold_out)
    machine, links = calibrate(args, cells, held_out)
    rows = check(args, cells, held_out, machine, links)
    for row in rows:
        print(f"{row['place']:22}{row['model']:8} batch {row['batch']:<4}{row['what']}  measured {row['measured_ms']:8.2f} ms  "
              f"predicted {row['predicted_ms']:8.2f}  {100 * row['error']:+6.1f} %{'  held out' if row['held_out'] else ''}")
    worst = {kind: max((abs(r["error"]) for r in rows if r["held_out"] == kind), default=None) for kind in (False, True)}
    for kind, text in ((False, "fitted"), (True, "held out")):
        if worst[kind] is not None:
            print(f"largest error, {text}: {100 * worst[kind]:.1f} %")
    write(Path(args.out) / "check.json", {"measured": os_relative(args.measured), "measured_at": measured_at, "commit": commit(),
                                          "command": "perf/calibrate_plan.py " + " ".join(sys.argv[1:]),
                                          "largest_error_fitted": worst[False], "largest_error_held_out": worst[True],
                                          "points": rows})


if __name__ == "__main__":
    main()
