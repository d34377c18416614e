#!/usr/bin/env python3
"""Decoding with and without --speculate, batch 1, by a model that has learnt to copy and edit text.

    perf/copy_text.py train --out /tmp/text.txt
    scripts/train_pt.py /tmp/text.txt --config perf/configs/pt2_copy_d4.json --out /tmp/copy --steps 1000 --batch 12 \\
        --context 160 --lr 4e-3 --warmup 50 --weight-decay 0.02 --dtype float32
    perf/bench_speculation.py /tmp/copy/model.h5 --out perf/results/speculation_cpu.json

The model has 2 tracks of 4 layers that meet once, a rank of one thread each; the ranks have a host each on an emulated cluster
(needs root), or share this one. Cells: held-out prompts of perf/copy_text.py; text without repeats (new words at temperature
1, and random tokens of random weights); and drafts of known outputs that are right as often as told to, labelled FORCED. A
cell's variants run in turns; ratios are medians over rounds, each against "off" of the same round.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import copy_text
from bench_end_to_end import ROOT, commit, machine

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_cluster"))
from cluster import CannotEmulate, Cluster, ended_by_signals  # noqa: E402

KEPT = ("output_tokens_per_s", "decode_tokens_per_s", "acceptance", "drafted_tokens", "accepted_tokens",
        "sync_points_per_output_token", "sync_time_fraction")
CONFIG = ROOT / "perf" / "configs" / "pt2_copy_d4.json"
ENV = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def call(words, timeout):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=ENV, timeout=timeout)
    if done.returncode != 0:
        raise SystemExit(f"exit status {done.returncode} of {' '.join(map(str, words))}:\n{done.stderr}")


def bench(args, place, source, requests, options, folder):
    out = folder / "bench.json"
    call(place([args.ptrt, "bench", *source, "--dataset", requests, "--max-batch", 1, "--threads", 1, "--bind", "none", "--quiet",
                "--backend", "cpu", "--json", out, *options]), args.timeout)
    found = json.loads(out.read_text(encoding="utf-8"))
    return {key: found[key] for key in KEPT}


def one_host(words):
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-n", "2", *map(str, words)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def new_words(count):
    """Lines that begin with words nobody knows; what follows at temperature 1 are further ones."""
    rng = random.Random("new words")
    return [{"prompt": "copy: " + " ".join(copy_text.made_word(rng) for _ in range(2)), "max_tokens": 56, "temperature": 1,
             "seed": i} for i in range(count)]


def random_tokens(count):
    rng = random.Random("random tokens")
    return [{"tokens": [rng.randrange(256) for _ in range(64)], "max_tokens": 128, "temperature": 1, "seed": i}
            for i in range(count)]


def answers(args, requests, expected, options, folder):
    """The results' bytes, and how many are what was asked for."""
    out = folder / f"results{len(options)}.jsonl"
    call([args.ptrt, "generate", args.model, requests, "-o", out, "--quiet", "--max-batch", 1, "--backend", "cpu", *options],
         args.timeout)
    texts = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    return out.read_bytes(), sum(text == want for text, want in zip(texts, expected)) / len(texts)


def measure(args, name, place, source, requests, variants, folder):
    rounds = {label: [] for label in variants}
    for turn in range(args.rounds):
        for label in variants if turn % 2 == 0 else reversed(list(variants)):
            rounds[label].append(bench(args, place, source, requests, variants[label], folder))
    off = [r["output_tokens_per_s"] for r in rounds["off"]]
    cell = {"cell": name, "variants": {}}
    for label, runs in rounds.items():
        middle = {key: statistics.median(r[key] for r in runs) if runs[0][key] is not None else None for key in KEPT}
        middle["ratio"] = round(statistics.median(r["output_tokens_per_s"] / o for r, o in zip(runs, off)), 3)
        middle["ratio_rounds"] = [round(r["output_tokens_per_s"] / o, 3) for r, o in zip(runs, off)]
        cell["variants"][label] = middle
        print(name, label, f"{middle['output_tokens_per_s']:.0f} tokens/s, x {middle['ratio']}, acceptance",
              middle["acceptance"], flush=True)
    return cell


def cells_of(args, places, folder):
    trained, made = [args.model], ["--random-weights", CONFIG]
    ngram = {"off": [], "ngram:7": ["--speculate", "ngram:7"], "ngram:15": ["--speculate", "ngram:15"]}
    default = {label: ngram[label] for label in ("off", "ngram:7")}
    forced = {"off": []} | {f"FORCED {a}": ["--speculate", "ngram:7", "--force-acceptance", a] for a in (0, 0.3, 0.6, 0.9)}
    for name, place in places:
        more = 24 if name == "one host" else 4  # short runs tell nothing
        prompts = write(folder / "prompts.jsonl", copy_text.prompts(args.prompts * more // 4))
        words = write(folder / "words.jsonl", new_words(args.prompts * more))
        tokens = write(folder / "tokens.jsonl", random_tokens(args.prompts * more // 2))
        yield measure(args, f"{name}: copy and edit, held out", place, trained, prompts, ngram, folder)
        yield measure(args, f"{name}: new words at temperature 1", place, trained, words, default, folder)
        yield measure(args, f"{name}: random tokens of random weights", place, made, tokens, default, folder)
        if name != "one host":
            yield measure(args, f"{name}: copy and edit, 7 drafts a step, FORCED: each right so often", place, trained, prompts,
                          forced, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="that the commands above train")
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--delay-us", type=float, default=200, help="of the emulated cluster, one way")
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ended_by_signals():
        folder = Path(name)
        requests = copy_text.prompts(args.prompts)
        expected = [request["metadata"]["expected"] for request in requests]
        file = write(folder / "requests.jsonl", requests)
        plain, right = answers(args, file, expected, [], folder)
        speculated, _ = answers(args, file, expected, ["--speculate", "ngram"], folder)
        if plain != speculated:
            raise SystemExit("bench_speculation: results differ with --speculate")
        try:
            with Cluster(2, args.delay_us, args.gbit) as cluster:
                places = [(f"{args.delay_us:g} us, {args.gbit:g} Gbit/s", lambda words: cluster.mpirun(1, [*map(str, words)])),
                          ("one host", one_host)]
                cells = list(cells_of(args, places, folder))
        except CannotEmulate as why:
            raise SystemExit(f"bench_speculation: {why}") from why
    result = {"machine": machine(), "commit": commit(), "command": "perf/bench_speculation.py " + " ".join(sys.argv[1:]),
              "held_out_right": right, "results_are_the_same_bytes": True, "cells": cells}
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
