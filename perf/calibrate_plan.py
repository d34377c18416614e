#!/usr/bin/env python3
"""Fits the speeds of a machine and its links for `ptrt plan` to measured runs, and checks them against other runs.

    perf/calibrate_plan.py --bench "one host" A.json B.json --bench "50 us" C.json --hold-out "batch 4" --out DIR
    perf/calibrate_plan.py perf/results/pt_vs_tp/pt_vs_tp.json --hold-out "100 us" --out perf/results/plan_calibration

Input: files of `ptrt bench --json`, each with the place where it ran, and files of perf/pt_vs_tp.py. Files of one setup are
rounds; their medians count.

`ptrt plan` counts what each run needs of every resource (bytes read, operations, hops, bytes moved). The time between
tokens, and the time to the first token of lone requests, is the sum of these counts times prices, plus waiting for the
slowest rank at each sync point. The prices that fit best (least squares of relative errors) become DIR/machine.json (--gpu)
and DIR/link_*.json (--link), one for every place with several ranks. A hop's price is a constant plus a share of the
network's delay, which comes from the place's name ("100 us, …"; none: 0).

Runs whose label ("place / model / ranks / batch / lengths") contains a --hold-out text are not fitted; `ptrt plan` predicts
them from the files. DIR/check.json has all errors. It also has those of the throughput ("all / token": the run's time
divided by its tokens), which is predicted from the same prices and never fitted.
"""
import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench_end_to_end import ROOT, commit
from measured_runs import runs_of_benches, runs_of_comparison

PRICES = ("bytes of weights", "ops of a prompt", "ops of a token", "bytes of keys and values", "hop", "hop by delay",
          "moved bytes")
READ, PROMPT, TOKEN, KV, HOP, HOP_BY_DELAY, MOVED = range(len(PRICES))
COMPUTE = (READ, PROMPT, TOKEN, KV)  # what ranks wait for each other's


def fail(message):
    raise SystemExit(f"calibrate_plan: {message}")


def delay_of(place):
    found = re.match(r"([\d.]+) us\b", place)
    return float(found.group(1)) if found else 0.0


def plan_row(args, run, gpu, link):
    """The row of `ptrt plan` for the measured layout."""
    with tempfile.TemporaryDirectory() as folder:
        table, config = Path(folder) / "plan.json", Path(folder) / "config.json"
        write(config, run.config)
        command = [args.ptrt, "plan", str(config), "--gpus", str(run.ranks), "--gpu", str(gpu), "--link", str(link), "--json",
                   str(table), "--batch", str(run.batch), "--input-len", str(run.input_len), "--output-len",
                   str(run.output_len), "--max-step-tokens", str(run.step_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            fail(f"{run.label}: {' '.join(command)}: {done.stderr.strip()}")
        found = json.loads(table.read_text(encoding="utf-8"))
    for row in found.get("runs", [found]):
        twin = row["dense"] and run.config["tracks"] > 1  # stands beside the model's own layouts
        if not twin and row["tensor_parallel"] == run.split and row["replicas"] == 1:
            return row
    fail(f"{run.label}: no layout with {run.split} ranks a track")


@dataclass
class Point:
    what: str
    measured: float   # ms
    predicted: float
    step: dict        # counts of the plan
    delay: float
    waits: float      # waiting for the slowest, as shares of the compute, if ranks wait one layer's time after one layer

    def counts(self, reads, wait_layers):
        """In the order of PRICES. A decode step's products are priced by the bytes they read or by their operations. Attention
        is priced by bytes in a decode step and by operations in a prompt."""
        s, row = self.step, [0.0] * len(PRICES)
        if self.what == "TTFT":
            row[PROMPT] = s["ops"] + s["attention_ops"]
        else:
            row[READ if reads else TOKEN] = s["weight_bytes"] if reads else s["ops"]
            row[KV] = s["kv_bytes"]
        for j in COMPUTE:
            row[j] *= 1 + wait_layers * self.waits
        row[HOP], row[HOP_BY_DELAY], row[MOVED] = s["hops"], s["hops"] * self.delay, s["moved_bytes"]
        return row


def points_of(run, row):
    delay = delay_of(run.place)
    waits = row["waits"] / run.config["layers"]
    if run.output_len > 1:
        yield Point("ITL", run.itl_ms, row["tpot_ms"], row["decode"], delay, waits)
    if run.ttft_ms is not None:
        yield Point("TTFT", run.ttft_ms, row["ttft_ms"], row["prefill"], delay, waits)


def least_squares(rows, values):
    """The x ≥ 0 that minimises the sum of ((row · x) / value - 1)², and that sum; columns that are all zero get 0."""
    used = [j for j in range(len(PRICES)) if any(row[j] for row in rows)]
    if len(rows) < len(used):
        fail(f"{len(rows)} measured times for {len(used)} prices")
    found = [0.0] * len(PRICES)
    while used:
        for j, x in zip(used, solve(rows, values, used)):
            found[j] = x
        below = min(used, key=lambda j: found[j] * max(row[j] for row in rows))
        if found[below] >= 0:
            break
        found[below] = 0.0
        used.remove(below)
    return found, sum((sum(x * y for x, y in zip(row, found)) / value - 1) ** 2 for row, value in zip(rows, values))


def solve(rows, values, used):
    scale = {j: max(abs(row[j]) for row in rows) for j in used}
    a = [[row[j] / scale[j] / value for j in used] for row, value in zip(rows, values)]
    n = len(used)
    m = [[sum(r[i] * r[j] for r in a) for j in range(n)] + [sum(r[i] for r in a)] for i in range(n)]
    size = [m[i][i] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        if abs(m[i][i]) < 1e-9 * size[i]:
            fail(f"the runs do not separate the price of '{PRICES[used[i]]}' from the others: add runs with more lengths, "
                 "batches or delays")
        for r in range(n):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [x - factor * y for x, y in zip(m[r], m[i])]
    return [m[i][n] / m[i][i] / scale[j] for i, j in enumerate(used)]


def fit(points):
    """Prices, and how many layers' time ranks wait after one layer. After every fit it is decided again which products of
    decode steps are bound by reading, until the answer no longer changes."""
    def fit_with(wait_layers):
        reads = [p.what == "ITL" and p.step["ops"] < 8 * p.step["weight_bytes"] for p in points]
        for _ in range(10):
            prices, off = least_squares([p.counts(r, wait_layers) for p, r in zip(points, reads)], [p.measured for p in points])
            now = [p.what == "ITL" and prices[READ] * p.step["weight_bytes"] >= prices[TOKEN] * p.step["ops"] for p in points]
            if now == reads or not prices[READ] or not prices[TOKEN]:
                break
            reads = now
        return off, wait_layers, prices
    several = len({p.waits for p in points if p.waits}) > 1
    off, wait_layers, prices = min(fit_with(0.05 * i) for i in range(41 if several else 1))
    for j in (READ, PROMPT, TOKEN):
        if not prices[j] and j != TOKEN:
            fail(f"no price of '{PRICES[j]}': add runs of one request alone")
    return prices, wait_layers


def describe_machine(prices, wait_layers, source):
    read, prompt, token, kv = (prices[j] for j in COMPUTE)
    return {"name": "calibrated", "memory_gib": 1e6, "memory_gb_per_s": 1e-6 / read, "gemm_tflops": 1e-9 / prompt,
            "bandwidth_efficiency": 1, "gemm_efficiency": 1, "decode_gemm_efficiency": prompt / token if token else 1,
            "kv_bandwidth_efficiency": read / kv if kv else 1, "layer_overhead_us": 0, "wait_layers": wait_layers,
            "source": source}


def describe_link(prices, place, args, source):
    return {"name": place, "latency_us": 1e3 * (prices[HOP] + prices[HOP_BY_DELAY] * delay_of(place)),
            "gb_per_s": 1e-6 / prices[MOVED] if prices[MOVED] else 1e6, "ranks": 0, **way(args), "source": source}


def way(args):
    return {"two_step_bytes": args.two_step_bytes, "shared": int(args.shared)}


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def calibrate(args, runs, held_out, source):
    """Files that describe the machine and the link of each place."""
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    unit = {"name": "unit", "memory_gib": 1e6, "memory_gb_per_s": 1, "gemm_tflops": 1, "bandwidth_efficiency": 1,
            "gemm_efficiency": 1, "layer_overhead_us": 0}
    with tempfile.TemporaryDirectory() as folder:
        gpu, link = Path(folder) / "gpu.json", Path(folder) / "link.json"
        write(gpu, unit)
        write(link, {"latency_us": 1, "gb_per_s": 1, "ranks": 0, **way(args)})
        points = [p for run in runs if not held_out(run) for p in points_of(run, plan_row(args, run, gpu, link))]
    prices, wait_layers = fit(points)
    write(out / "machine.json", describe_machine(prices, wait_layers, source))
    links = {}
    for place in dict.fromkeys(run.place for run in runs):
        links[place] = "nvlink"  # any: lone ranks never use it
        if (prices[HOP] or prices[HOP_BY_DELAY]) and any(run.place == place and run.ranks > 1 for run in runs):
            links[place] = out / ("link_" + re.sub(r"\W+", "_", place) + ".json")
            write(links[place], describe_link(prices, place, args, source))
        elif any(run.place == place and run.ranks > 1 for run in runs):
            fail(f"{place} has several ranks, but no fitted run has")
    return out / "machine.json", links


def os_relative(path):
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def check(args, runs, held_out, machine, links):
    rows = []
    for run in runs:
        row = plan_row(args, run, machine, links[run.place])
        per_token = Point("all / token", 1e3 / run.tokens_per_s, 1e3 / row["output_tokens_per_s"], {}, 0, 0)
        for point in [*points_of(run, row), per_token]:
            rows.append({"place": run.place, "model": run.model, "ranks": run.ranks, "batch": run.batch,
                         "input_len": run.input_len, "output_len": run.output_len, "emulated": run.emulated,
                         "what": point.what, "use": point is per_token and "never fitted" or
                         held_out(run) and "held out" or "fitted", "measured_ms": point.measured,
                         "predicted_ms": point.predicted, "error": point.predicted / point.measured - 1})
    return rows


def read_runs(args):
    """All runs, their files, and the commits that the files name."""
    runs, files, commits = [], [], []
    if args.measured:
        try:
            data = json.loads(Path(args.measured).read_text(encoding="utf-8"))
            runs += runs_of_comparison(data)
            commits.append(data["commit"])
        except (OSError, ValueError, KeyError, TypeError) as why:
            fail(f"{args.measured}: no file of perf/pt_vs_tp.py: {why!r}")
        files.append(args.measured)
    for place, *paths in args.bench:
        if not paths:
            fail(f"--bench {place}: expected a place and files of `ptrt bench --json`")
        try:
            runs += runs_of_benches(place, paths)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
            fail(f"--bench {place}: no files of `ptrt bench --json`: {why!r}")
        files += paths
    runs = [run for run in runs if not args.only or any(text in run.label for text in args.only)]
    if not runs:
        fail("no measured runs: give a file of perf/pt_vs_tp.py or --bench PLACE FILE…")
    return runs, [os_relative(path) for path in files], commits


def warn(runs):
    """If half the tokens or more come from steps with others' prompts, the median between two tokens is no decode step."""
    for run in runs:
        steps = -(-run.batch * run.input_len // run.step_tokens)
        if run.batch > 1 and run.output_len > 1 and 2 * steps > run.output_len:
            print(f"calibrate_plan: warning: {run.label}: the prompts take {steps} steps of {run.step_tokens} rows: with so few "
                  "tokens of output the median between two tokens may be no decode step", file=sys.stderr)


def report(rows):
    for row in rows:
        setup = f"{row['place']:22} {row['model']:14} batch {row['batch']:<4}{row['input_len']:>5} in {row['output_len']:>4} out"
        print(f"{setup}  {row['what']:11}  measured {row['measured_ms']:8.2f} ms  predicted {row['predicted_ms']:8.2f}"
              f"  {100 * row['error']:+6.1f} %  {row['use']}")
    worst = {}
    for use in ("fitted", "held out", "never fitted"):
        errors = [abs(row["error"]) for row in rows if row["use"] == use]
        worst[use] = max(errors, default=None)
        if errors:
            print(f"{use}: {len(errors)} points, largest error {100 * worst[use]:.1f} %, mean {100 * sum(errors) / len(errors):.1f} %")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="?", help="the file of perf/pt_vs_tp.py")
    parser.add_argument("--bench", nargs="+", action="append", default=[], metavar=("PLACE", "FILE"),
                        help="files of `ptrt bench --json` that were measured at PLACE; again for other places")
    parser.add_argument("--only", nargs="*", default=[], help="only runs whose label contains one of these texts")
    parser.add_argument("--hold-out", nargs="*", default=[], help="runs whose label contains one of these are predicted, not fitted")
    parser.add_argument("--two-step-bytes", type=float, default=1,
                        help="bytes a rank from which the measured program's sums took two steps")
    parser.add_argument("--shared", action="store_true", help="all ranks' messages share a medium, or the cores of one machine")
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--out", required=True, help="folder for the descriptions and the check")
    args = parser.parse_args()
    runs, files, commits = read_runs(args)
    warn(runs)

    def held_out(run):
        return any(text in run.label for text in args.hold_out)
    source = "perf/calibrate_plan.py from " + ", ".join(files)
    rows = check(args, runs, held_out, *calibrate(args, runs, held_out, source))
    worst = report(rows)
    write(Path(args.out) / "check.json", {"measured": files, "measured_at": commits, "commit": commit(),
                                          "command": "perf/calibrate_plan.py " + shlex.join(sys.argv[1:]),
                                          "largest_errors": worst, "points": rows})


if __name__ == "__main__":
    main()
