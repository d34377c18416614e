#!/usr/bin/env python3
"""Turns the measurements of scripts/gpu_check.sh into one result file and a table of goals and figures.

    perf/cuda_report.py FOLDER [--commit HASH] [--json FILE] [--table FILE]

FOLDER holds stages.jsonl, and ops.json, ops_*.json (bench_cuda --config), bench_one.json, bench_batch.json, demo.json,
hf.json of the stages that succeeded. The table marks what was not measured. Shares are of the ceilings of the same call: of the larger of copy and read
bandwidth, or of the product of 8192 x 8192 x 8192. What counts:

  a decode step    the bytes of all weights but the embedding table, and of the keys and values of the batch at the
                   middle of the output; its time is the median gap between two tokens, host included
  a layer          of ops_*.json: its bytes at the read ceiling; what its ops, measured one by one, take beyond that;
                   and what it takes beyond its ops (negative where kernels overlap)
  a prefill        2 operations a weight of the layers and token, 4 a token, head, element of it and token seen, and the
                   head for one row; its time is TTFT, from the request's arrival to its first token
"""
import argparse
import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

CONFIG = Path(__file__).resolve().parent / "configs" / "dense_8b.json"


def load(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as why:  # its stage was stopped while it wrote
        print(f"cuda_report: {path.name} is left out: {why}", file=sys.stderr)
        return None


def runs_of(bench):
    return [] if bench is None else bench.get("runs", [bench])


def run_with(bench, input_len, output_len):
    return next((r for r in runs_of(bench) if (r["input_len"], r["output_len"]) == (input_len, output_len)), None)


def decode_step(config, run, gb_per_s):
    """Time of a step, bytes it must read, their share of the bandwidth."""
    batch = min(run["requests"], run["max_batch"])
    table = 0 if config["tie_embeddings"] else 2 * config["vocab_size"] * config["hidden_size"]
    kv_token = config["layers"] * 2 * config["kv_heads"] * config["head_dim"] * 2
    context = run["input_len"] + run["output_len"] / 2
    size = run["weight_bytes"] - table + batch * context * kv_token
    ms = run["itl_ms"]["p50"]
    return {"batch": batch, "step_ms": ms, "bytes": size, "gb_per_s": size / ms / 1e6,
            "share": size / ms / 1e6 / gb_per_s, "tokens_per_s": 1e3 * batch / ms}


def layer_elements(config):
    d, heads = config["hidden_size"], config["heads"] + config["kv_heads"]
    return 2 * d * heads * config["head_dim"] + 3 * d * config["ffn_size"]


def prefill(config, run, tflops):
    n = run["input_len"]
    operations = 2 * n * config["layers"] * layer_elements(config) + 2 * config["vocab_size"] * config["hidden_size"]
    operations += 4 * config["layers"] * config["heads"] * config["head_dim"] * n * (n + 1) / 2
    ms = run["ttft_ms"]["p50"]
    return {"tokens": n, "ttft_ms": ms, "tflops": operations / ms / 1e9, "share": operations / ms / 1e9 / tflops}


def op_share(ops, name, rows):
    return next((op["share"] for op in ops["ops"] if op["op"] == name and op["rows"] == rows), None)


# The ops of a layer in a decode step, and how often each comes.
LAYER_OPS = {"q, k and v": 1, "wo": 1, "gate, up and SwiGLU": 1, "down": 1, "add and norm": 2, "rope and append": 1,
             "decode attention over 192": 1}
LAYER = "layer over 192"


def layer_accounts(found):
    """Of each number of rows: where the time of a layer goes, in microseconds; None for what was not measured."""
    accounts = []
    for rows in sorted({op["rows"] for op in found["ops"] if op["op"] == LAYER}):
        ops = {op["op"]: op for op in found["ops"] if op["rows"] == rows}
        layer_us = ops[LAYER]["us"]
        bytes_us = ops[LAYER]["bytes"] / found["ceilings"]["read_gb_per_s"] / 1e3
        alone_us = (sum(n * ops[name]["us"] for name, n in LAYER_OPS.items()) if all(name in ops for name in LAYER_OPS)
                    else None)
        account = {"rows": rows, "layer_us": layer_us, "bytes_us": bytes_us,
                   "ops_beyond_bytes_us": alone_us and alone_us - bytes_us,
                   "unexplained_us": alone_us and layer_us - alone_us}
        for key, name in (("fp32_output_us", f"{LAYER}, float32 output"), ("int8_us", f"{LAYER}, int8 weights"),
                          ("float8_us", f"{LAYER}, float8_e4m3fn weights")):
            account[key] = ops[name]["us"] if name in ops else None
        accounts.append(account)
    return accounts


def shapes_of(folder):
    """By shape: what bench_cuda --config measured, and the accounts of a layer."""
    found = {}
    for path in sorted(folder.glob("ops_*.json")):
        ops = load(path)
        if ops and "ops" in ops:
            found[path.stem.removeprefix("ops_")] = {**ops, "layers": layer_accounts(ops)}
    return found


def summarize(folder):
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    ops, one, batch = (load(folder / name) for name in ("ops.json", "bench_one.json", "bench_batch.json"))
    figures = {"demo": load(folder / "demo.json"), "hf": load(folder / "hf.json")}
    goals = []

    def goal(name, value, limit, above=True):
        met = None if value is None else (value >= limit if above else value <= limit)
        goals.append({"goal": name, "value": value, "limit": limit, "above": above, "met": met})

    ceilings = ops["ceilings"] if ops else None
    if ceilings:
        gb_per_s = max(ceilings["copy_gb_per_s"], ceilings["read_gb_per_s"])
        for key, bench, lengths in (("decode_1", one, (128, 128)), ("decode_128", batch, (128, 128))):
            run = run_with(bench, *lengths)
            figures[key] = run and decode_step(config, run, gb_per_s)
        run = run_with(one, 4096, 2)
        figures["prefill_4096"] = run and prefill(config, run, ceilings["gemm_tflops"])
    share = {key: (figures.get(key) or {}).get("share") for key in ("decode_1", "prefill_4096")}
    tokens, peer = (figures.get("decode_128") or {}).get("tokens_per_s"), (figures["hf"] or {}).get("tokens_per_s")
    idle = next((r["device_idle_fraction"] for r in runs_of(one) if "device_idle_fraction" in r), None)
    goal("decode, batch 1, 8 billion parameters: share of bandwidth", share["decode_1"], 0.85)
    goal("decode attention, 64 x 4096: share of bandwidth",
         ops and op_share(ops, "decode attention over 4096", 64), 0.85)
    goal("prefill attention, 4096 tokens: share of the product's peak",
         ops and op_share(ops, "prefill attention, 0 before", 4096), 0.6)
    goal("whole prefill, 4096 tokens: share of the product's peak", share["prefill_4096"], 0.7)
    goal("decode, batch 128: times Hugging Face transformers", tokens / peer if tokens and peer else None, 1.3)
    goal("GPU idle between steps: share of the time", idle, 0.03, above=False)
    goal("demo model: mean difference of a log-probability", (figures["demo"] or {}).get("mean_difference"), 0.03, above=False)
    return {"ops": ops, "shapes": shapes_of(folder), "figures": figures, "goals": goals}


def machine(ops):
    """The GPU and its driver, without names of hosts."""
    found = dict(ops["machine"]) if ops else {}
    try:
        query = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                               capture_output=True, text=True, check=True).stdout.splitlines()[0]
        found["gpu"], found["driver"] = (word.strip() for word in query.split(","))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        found.setdefault("driver", "unknown")
    return found


def table(result):
    rows = [f"GPU: {result['machine'].get('gpu', 'unknown')}, driver {result['machine']['driver']}, "
            f"commit {result['commit']}, {result['date']}", "", "| stage | result | s |", "|---|---|---|"]
    for entry in result["stages"]:
        status = {0: "ok", "skipped": f"skipped: {entry['what']}"}.get(entry["status"], f"FAILED ({entry['status']})")
        rows.append(f"| {entry['stage']} | {status} | {entry['seconds']} |")
    if result["ops"]:
        c = result["ops"]["ceilings"]
        rows += ["", f"Ceilings: copy {c['copy_gb_per_s']:.0f} GB/s, read {c['read_gb_per_s']:.0f} GB/s, bfloat16 "
                     f"product {c['gemm_tflops']:.0f} TFLOP/s"]
    rows += ["", "| goal | | measured | met |", "|---|---|---|---|"]
    for g in result["goals"]:
        value = "not measured" if g["value"] is None else f"{g['value']:.3g}"
        met = {None: "–", True: "yes", False: "no"}[g["met"]]
        rows.append(f"| {g['goal']} | {'≥' if g['above'] else '≤'} {g['limit']} | {value} | {met} |")
    if result["ops"]:
        rows += ["", "| op | rows | µs | rate | share |", "|---|---|---|---|---|"]
        for op in result["ops"]["ops"]:
            rate = f"{op['gb_per_s']:.0f} GB/s" if "gb_per_s" in op else f"{op['tflops']:.0f} TFLOP/s"
            rows.append(f"| {op['op']} | {op['rows']} | {op['us']:.1f} | {rate} | {op['share']:.2f} |")
    for name, shape in result["shapes"].items():
        rows += ["", *account_table(name, shape)]
    return "\n".join(rows) + "\n"


def account_table(name, shape):
    columns = ("layer_us", "bytes_us", "ops_beyond_bytes_us", "unexplained_us", "fp32_output_us", "int8_us", "float8_us")
    rows = [f"A layer of {name}, {shape['shape']['tracks']} of its tracks, decoding, µs:", "",
            "| rows | layer | its bytes at the read ceiling | its ops beyond them | unexplained | with float32 output | "
            "int8 weights | float8 weights |", "|---|---|---|---|---|---|---|---|"]
    for account in shape["layers"]:
        cells = ("–" if account[key] is None else f"{account[key]:.1f}" for key in columns)
        rows.append(f"| {account['rows']} | " + " | ".join(cells) + " |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--json")
    parser.add_argument("--table")
    args = parser.parse_args()
    with open(args.folder / "stages.jsonl", encoding="utf-8") as file:
        stages = [json.loads(line) for line in file if line.strip()]
    summary = summarize(args.folder)
    benches = {name: load(args.folder / f"bench_{name}.json") for name in ("one", "batch")}
    result = {"machine": machine(summary["ops"]), "commit": args.commit, "command": "scripts/gpu_check.sh",
              "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"), "stages": stages, **summary, "bench": benches}
    text = table(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.table:
        Path(args.table).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
