#!/usr/bin/env python3
"""Prompts that begin alike: requests a second with --prefix-cache on and off; writes one JSON.

    perf/bench_prefix.py --out perf/results/prefix_cpu.json [--old OTHER_PTRT] [--only questions,score,interleaved,random]

The model is perf/configs/dense_125m.json with random weights, prompts are random token ids.

    questions    questions of 60 tokens behind one prefix of 1,500, 16 tokens out: --questions with the cache, --few without
    score        the same prompts as contexts, with 4 continuations of 8 tokens each
    interleaved  8 prefixes of 512 tokens in turns, 16 tokens of a question, 4 out, and a KV cache that holds two of them:
                 lines in turns and lines sorted by prefix, with the cache, and fewer in turns without
    random       prompts of 300 tokens that share nothing, 16 out: rounds with and without the cache and with --old in turn
requests_per_s is the program's own figure, from reading the requests to the last result. Results of the lines that two runs
share are compared byte for byte.
"""
import argparse
import json
import random
import re
import statistics
import subprocess
from pathlib import Path

from bench_end_to_end import ROOT, record_cells

VOCABULARY = 32000
PAGE_BYTES = 12 * 2 * 4 * 64 * 16 * 2  # layers, keys and values, KV heads, head_dim, tokens, bfloat16


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.commands, self.source = [], random.Random(1)
        self.model = self.folder / "dense_125m.h5"
        if not self.model.exists():
            subprocess.run([args.ptrt, "init", ROOT / "perf" / "configs" / "dense_125m.json", "-o", self.model, "--seed", "1"],
                           check=True, stdout=subprocess.DEVNULL)

    def tokens(self, count):
        return [self.source.randrange(3, VOCABULARY) for _ in range(count)]

    def run(self, command, rows, *options, program=None):
        requests, results = self.folder / "requests.jsonl", self.folder / "results.jsonl"
        requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        line = [program or self.args.ptrt, command, self.model, requests, "-o", results, "--no-progress", *options]
        self.commands.append(f"ptrt {command} dense_125m.h5 {len(rows)}-requests.jsonl " + " ".join(options))
        output = subprocess.run(line, check=True, capture_output=True, text=True)
        text = output.stdout + output.stderr
        reused = re.search(r"in the prefix cache +(\d+)", text)
        return {"requests": len(rows), "requests_per_s": float(re.search(r"([\d.]+) requests/s", text)[1]),
                "seconds": float(re.search(r"last result +([\d.]+) s", text)[1]),
                "reused_tokens": int(reused[1]) if reused else 0,
                "lines": results.read_text(encoding="utf-8").splitlines()}

    @staticmethod
    def same(*cells):
        """The first lines of both; the cells without them."""
        lines = [cell.pop("lines") for cell in cells]
        count = min(map(len, lines))
        assert all(some[:count] == lines[0][:count] for some in lines), "results differ"
        return cells

    def with_and_without(self, command, rows, few, *options):
        off, on = self.same(self.run(command, rows[:few], "--prefix-cache", "off", *options),
                            self.run(command, rows, "--prefix-cache", "on", *options))
        return {"off": off, "on": on, "ratio": round(on["requests_per_s"] / off["requests_per_s"], 2)}

    def questions(self):
        prefix = self.tokens(1500)
        rows = [{"tokens": prefix + self.tokens(60), "max_tokens": 16} for _ in range(self.args.questions)]
        return self.with_and_without("generate", rows, self.args.few)

    def score(self):
        prefix, rows = self.tokens(1500), []
        for _ in range(self.args.questions):
            context = prefix + self.tokens(60)
            rows += [{"context": context, "continuation": self.tokens(8)} for _ in range(4)]
        return self.with_and_without("score", rows, 4 * self.args.few)

    def interleaved(self):
        prefixes = [self.tokens(512) for _ in range(8)]
        rows = [{"tokens": prefixes[i % 8] + self.tokens(16), "max_tokens": 4} for i in range(self.args.interleaved)]
        # Two prefixes, and the pages that eight requests have for themselves.
        cache = ("--kv-cache-bytes", str((2 * 32 + 8 * 3) * PAGE_BYTES), "--max-batch", "8")
        found = self.with_and_without("generate", rows, self.args.interleaved // 8, *cache)
        ordered = self.run("generate", [row for p in range(8) for row in rows[p::8]], "--prefix-cache", "on", *cache)
        ordered.pop("lines")
        return {**found, "on_sorted_by_prefix": ordered, "kv_cache_pages": 2 * 32 + 8 * 3}

    def random(self):
        rows = [{"tokens": self.tokens(300), "max_tokens": 16} for _ in range(self.args.random)]
        ways = {"on": [None, "--prefix-cache", "on"], "off": [None, "--prefix-cache", "off"]}
        if self.args.old:
            ways["old"] = [self.args.old]
        rounds = {name: [] for name in ways}
        for _ in range(self.args.rounds):
            for name, (program, *options) in ways.items():
                rounds[name].append(self.run("generate", rows, *options, program=program))
        self.same(*(cell for cells in rounds.values() for cell in cells))
        rates = {name: [cell["requests_per_s"] for cell in cells] for name, cells in rounds.items()}
        base = rates["off"]
        ratios = {name: round(statistics.median(a / b for a, b in zip(rates["on"], rates[name])), 4)
                  for name in rates if name != "on"}
        return {"requests": len(rows), "requests_per_s": rates, "median_off": statistics.median(base),
                "median_ratio_on_to": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--old", help="a build without the cache, measured in turn with this one")
    parser.add_argument("--old-commit", help="of that build, for the record")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--few", type=int, default=12, help="questions without the cache")
    parser.add_argument("--interleaved", type=int, default=400)
    parser.add_argument("--random", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="questions,score,interleaved,random")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    record_cells(Bench, args, with_old=("random",))


if __name__ == "__main__":
    main()
