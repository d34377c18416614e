#!/usr/bin/env python3
"""ptrt beside vLLM on the processors of one machine: the same weights, requests and threads, in turns; writes one JSON.

    perf/compare_vllm.py --out perf/results/vllm_cpu.json [--only dense_bfloat16,start]

    dense_bfloat16, dense_float32   perf/configs/dense_125m.json: ptrt beside vLLM, as --engines says
    pt8_bfloat16, pt8_float32       perf/configs/pt8_125m.json, all 8 tracks in one process: ptrt beside vLLM with the plugin
    plugin_bfloat16, plugin_float32 dense_125m, small jobs: vLLM's own Llama model (a checkpoint with the same weights) and
                                    ptrt's plugin, each eager and compiled (Inductor), over --starts of all engines: of two
                                    equal engines one may be a fifth slower with one request for as long as it lives
    steps                           perf/configs/tiny_1x16.json, whose model takes no time: what a step takes by itself
    start                           from starting the program to the first token of dense_125m in bfloat16, files in the page
                                    cache: ptrt generate, and vLLM's own Llama model, eager (its quickest start)

Jobs are REQUESTSxINxOUT: that many prompts of random tokens at once, each of IN tokens, and OUT tokens out. Engines of vLLM stay
alive between rounds; each cell has the share of a processor that they take while idle. Ratios are medians of the rounds' ratios
to the best engine of vLLM in that round. In float32 the greedy tokens of both are compared. Needs the
environment of `make test-vllm`, or --python of one with vLLM and the plugin.
"""
import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_end_to_end import ROOT, record_cells
from peer_models import write_hf

sys.path.insert(0, str(Path(__file__).resolve().parent / "vllm_engines"))
from client import Engine, add_options, environment, kv_cache_bytes, medians_of  # noqa: E402

CELLS = ("dense_bfloat16", "dense_float32", "pt8_bfloat16", "pt8_float32", "plugin_bfloat16", "plugin_float32", "steps",
         "start")
CONFIGS = {"dense": "dense_125m", "pt8": "pt8_125m", "tiny": "tiny_1x16"}
STEP_JOBS, PLUGIN_JOBS = [(1, 8, 48), (32, 8, 48)], [(1, 16, 64), (32, 128, 32)]
PLUGIN_ENGINES = ["Llama eager", "plugin eager", "Llama compiled", "plugin compiled"]
LARGE = 100  # requests
HIGHER = {"output_tokens_per_s": True, "ttft_ms": False, "tpot_ms": False, "tokens_per_processor_s": True}


def parse_job(text):
    requests, given, wanted = (int(part) for part in text.split("x"))
    return requests, given, wanted


class Compare:
    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.commands, self.source, self.vocabulary = [], random.Random(1), None

    def model(self, shape, dtype):
        path = self.folder / f"{CONFIGS[shape]}.{dtype}.h5"
        if not path.exists():
            config = ROOT / "perf" / "configs" / f"{CONFIGS[shape]}.json"
            subprocess.run([self.args.ptrt, "init", config, "-o", path, "--seed", "1", "--dtype", dtype], check=True,
                           stdout=subprocess.DEVNULL)
        return path

    def checkpoint(self, shape, dtype):
        """The same weights for vLLM's own Llama model."""
        path = self.folder / f"{CONFIGS[shape]}.{dtype}.hf"
        if not path.exists():
            write_hf(self.model(shape, dtype), path)
        return path

    def engine(self, name, model, dtype, cache, batch):
        options = ["--dtype", dtype, "--max-batch", batch, "--kv-cache-bytes", cache, *(["--compiled"] if "compiled" in name else [])]
        packages = [self.args.zentorch] if "zentorch" in name else []
        engine = Engine(self.args, model, self.folder / f"{name.replace(' ', '_')}.log",
                        env=environment(self.args, self.args.threads, self.folder, *packages), options=options)
        self.commands.append(f"engine.py {Path(model).name} {' '.join(map(str, options))}{' with zentorch' if packages else ''}")
        return engine

    def prompts(self, requests, given):
        return [[self.source.randrange(3, self.vocabulary) for _ in range(given)] for _ in range(requests)]

    def ptrt(self, model, dtype, prompts, wanted, cache):
        requests, report = self.folder / "requests.jsonl", self.folder / "bench.json"
        requests.write_text("".join(json.dumps({"tokens": prompt, "max_tokens": wanted}) + "\n" for prompt in prompts),
                            encoding="utf-8")
        command = [self.args.ptrt, "bench", model, "--quiet", "--dataset", requests, "--max-batch", str(len(prompts)),
                   "--warmup", str(min(len(prompts), 2)), "--threads", str(self.args.threads), "--compute", dtype,
                   "--kv-cache-bytes", str(cache), "--json", report]
        subprocess.run(command, check=True, capture_output=True, text=True)
        shown = " ".join(Path(word).name if "/" in str(word) else str(word) for word in command)
        self.commands.append(shown.replace("requests.jsonl", f"{len(prompts)}x{len(prompts[0])}x{wanted}.jsonl"))
        found = json.loads(report.read_text(encoding="utf-8"))
        return {"output_tokens_per_s": found["output_tokens_per_s"], "ttft_ms": found["ttft_ms"]["p50"],
                "tpot_ms": found["tpot_ms"]["p50"], "memory_bytes": found["peak_resident_bytes"]}

    def greedy(self, model, prompts, wanted):
        requests, results = self.folder / "greedy.jsonl", self.folder / "greedy.out.jsonl"
        requests.write_text("".join(json.dumps({"tokens": prompt, "max_tokens": wanted, "ignore_eos": True}) + "\n"
                                    for prompt in prompts), encoding="utf-8")
        subprocess.run([self.args.ptrt, "generate", model, requests, "-o", results, "--quiet", "--compute", "float32"],
                       check=True, capture_output=True)
        return [json.loads(line)["tokens"] for line in results.read_text(encoding="utf-8").splitlines()]

    def cell(self, shape, dtype, jobs=None, engines=None):
        jobs, names = jobs or self.args.jobs, engines or self.args.engines
        model = self.model(shape, dtype)
        config = json.loads((ROOT / "perf" / "configs" / f"{CONFIGS[shape]}.json").read_text(encoding="utf-8"))
        self.vocabulary = config["vocab_size"]
        cache = kv_cache_bytes(config, dtype, jobs)
        models = {"plugin": model} | ({"Llama": self.checkpoint(shape, dtype)} if shape == "dense" else {})
        engines = {}
        try:
            for name in names:
                which = name.split()[0]
                if which in models:
                    engines[name] = self.engine(name, models[which], dtype, cache, max(requests for requests, *_ in jobs))
                    engines[name].ready()
            return self.rounds(engines, model, dtype, cache, jobs)
        finally:
            for engine in engines.values():
                engine.close()

    def rounds(self, engines, model, dtype, cache, jobs):
        for job in jobs:  # every shape once: what is made or compiled for it is there
            for engine in engines.values():
                engine.run(self.prompts(*job[:2]), min(job[2], 4))
        found = {"engines": {name: {"ready_s": engine.ready()["seconds"], "idle_processors": engine.idle_share()}
                             for name, engine in engines.items()},
                 "vllm": next(iter(engines.values())).ready()["vllm"], "threads": self.args.threads,
                 "preload": [Path(path).name for path in self.args.preload], "jobs": {}}
        for turn in range(self.args.rounds):
            for job in (job for job in jobs if job[0] < LARGE or turn < self.args.large):
                prompts, ways = self.prompts(*job[:2]), ["ptrt", *engines]
                cell = found["jobs"].setdefault("x".join(map(str, job)), {"rounds": []})
                seen = {}
                for name in ways[turn % len(ways):] + ways[:turn % len(ways)]:
                    if name == "ptrt":
                        seen[name] = self.ptrt(model, dtype, prompts, job[2], cache)
                    else:
                        answer = engines[name].run(prompts, job[2])
                        seen[name] = medians_of(answer, job[2]) | {"memory_bytes": answer["memory_bytes"]}
                cell["rounds"].append(seen)
        for cell in found["jobs"].values():
            cell |= summary(cell["rounds"])
        if dtype == "float32" and "tiny" not in model.name:
            prompts = self.prompts(4, 16)
            ours = self.greedy(model, prompts, 32)
            for name, engine in engines.items():
                theirs = engine.run(prompts, 32)["tokens"]
                found["engines"][name]["greedy_tokens_as_ptrt"] = [
                    sum(a == b for x, y in zip(ours, theirs) for a, b in zip(x, y)), 4 * 32]
        return found

    def dense_bfloat16(self):
        return self.cell("dense", "bfloat16")

    def dense_float32(self):
        return self.cell("dense", "float32")

    def pt8_bfloat16(self):
        return self.cell("pt8", "bfloat16")

    def pt8_float32(self):
        return self.cell("pt8", "float32")

    def plugin(self, dtype):
        found = self.cell("dense", dtype, PLUGIN_JOBS, PLUGIN_ENGINES)
        for _ in range(self.args.starts - 1):
            again = self.cell("dense", dtype, PLUGIN_JOBS, PLUGIN_ENGINES)
            for name, job in found["jobs"].items():
                job["rounds"] += again["jobs"][name]["rounds"]
        for job in found["jobs"].values():
            job |= summary(job["rounds"])
        return found | {"starts": self.args.starts}

    def plugin_bfloat16(self):
        return self.plugin("bfloat16")

    def plugin_float32(self):
        return self.plugin("float32")

    def steps(self):
        return self.cell("tiny", "float32", STEP_JOBS, ["plugin eager"])

    def start(self):
        model, checkpoint = self.model("dense", "bfloat16"), self.checkpoint("dense", "bfloat16")
        requests, results = self.folder / "one.jsonl", self.folder / "one.out.jsonl"
        requests.write_text('{"tokens": [1], "max_tokens": 1}\n', encoding="utf-8")
        command = [self.args.ptrt, "generate", model, requests, "-o", results, "--quiet", "--threads", str(self.args.threads)]
        rounds = []
        for _ in range(self.args.rounds + 1):
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            ours, begin = time.perf_counter() - begin, time.perf_counter()
            engine = self.engine("start", checkpoint, "bfloat16", 64 << 20, 1)
            engine.run([[1]], 1)
            rounds.append({"ptrt_s": ours, "vllm_s": time.perf_counter() - begin})
            engine.close()
        rounds = rounds[1:]  # the first one brings vLLM's own files into the page cache
        self.commands.append("ptrt generate dense_125m.bfloat16.h5 one.jsonl -o one.out.jsonl --quiet --threads "
                             f"{self.args.threads}")
        return {"rounds": rounds, "ptrt_s": statistics.median(turn["ptrt_s"] for turn in rounds),
                "vllm_s": statistics.median(turn["vllm_s"] for turn in rounds),
                "ratio": statistics.median(turn["vllm_s"] / turn["ptrt_s"] for turn in rounds)}


def summary(rounds):
    """Medians by program; ptrt's ratio to the best engine of each round, and the plugin's to vLLM's own model in the same mode.
    Above 1 is better."""
    names = list(rounds[0])
    medians = {name: {key: round(statistics.median(turn[name][key] for turn in rounds), 3) for key in rounds[0][name]}
               for name in names}

    def ratios(ours, theirs):
        def ratio(turn, key, higher):
            pick = max if higher else min
            a, b = (pick(turn[name][key] for name in group) for group in (ours, theirs))
            return a / b if higher else b / a
        return {key: round(statistics.median(ratio(turn, key, higher) for turn in rounds), 3)
                for key, higher in HIGHER.items() if all(key in rounds[0][name] for name in (*ours, *theirs))}

    found = {"median": medians, "ptrt_to_best_vllm": ratios(["ptrt"], [name for name in names if name != "ptrt"])}
    for name in names:
        theirs = name.replace("plugin", "Llama")
        if theirs != name and theirs in names:
            found[f"{name} to {theirs}"] = ratios([name], [theirs])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    add_options(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["Llama compiled", "plugin compiled"],
                        help="vLLM's in the cells dense and pt8: each word of Llama or plugin, eager or compiled, and zentorch "
                        "if wanted")
    parser.add_argument("--zentorch", metavar="DIR", help="where AMD's package of that name is, for engines \"... zentorch\"")
    parser.add_argument("--jobs", type=parse_job, nargs="+", metavar="RxIxO",
                        default=[(1, 16, 64), (1, 128, 128), (32, 128, 128), (128, 128, 128)])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, help=f"rounds of jobs with {LARGE} requests or more (default: all)")
    parser.add_argument("--starts", type=int, default=3, help="of the engines of the cells plugin")
    parser.add_argument("--only", default=",".join(CELLS))
    parser.add_argument("--out", required=True)
    parser.set_defaults(old=None)
    args = parser.parse_args()
    args.large = args.rounds if args.large is None else args.large
    unknown = set(args.only.split(",")) - set(CELLS)
    if unknown:
        parser.error(f"--only: no cell {', '.join(sorted(unknown))}")
    for name in args.engines:
        if not re.fullmatch(r"(Llama|plugin) (eager|compiled)( zentorch)?", name):
            parser.error(f"--engines: {name!r} is none")
        if "zentorch" in name and not args.zentorch:
            parser.error(f"--engines: {name!r} needs --zentorch")
    record_cells(Compare, args)


if __name__ == "__main__":
    main()
