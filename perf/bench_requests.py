#!/usr/bin/env python3
"""Large request files: requests a second, memory by rank, resuming, and a job with a slow replica; writes one JSON.

    perf/bench_requests.py --out perf/results/requests_cpu.json [--old OTHER_PTRT] [--only rate,memory,resume,slow,mixed,stream]

The model is perf/configs/tiny_1x16.json with random weights; a request is 4 token ids in, 1 token out.

    rate    4 replicas, --requests of them, rounds with --old in turn. requests_per_s is the program's own figure, from the
            start of reading the requests to the last result; whole_s is that of mpirun
    memory  the largest resident set of every rank (ru_maxrss) with 10,000 requests and with --many
    resume  a job of --many requests ends before it publishes, its journal whole (PTRT_FAULT at=publish); --resume checks
            the journal, reads it back and publishes. whole_s includes MPI's start
    slow    --slow requests of 16 tokens out, --max-batch 4, of the model perf/configs/dense_100m_tied.json cut to one
            layer: by three replicas, and by four of which the last pauses 700 ms at every step (PTRT_FAULT). one_slow_s is
            16 times that pause. limit_s = 1.2 * three_s + one_slow_s
    mixed   200 requests of 1 to 64 tokens in and 1 to 64 out, of the one-layer model: by one replica and by four, rounds
            with --old in turn; seconds is the program's own figure. What drawing costs or gains where nobody is slow
    stream  "-" in and out, one process and 4 replicas under mpirun: a writer that gives one line every 50 ms and keeps the
            pipe open; latency_ms from a line's write to its result's read, the first line apart. Then as many lines as
            `rate` has from the pipe, against the same from a file (whole_s), and the largest resident set with --many
Results of all runs of a cell are compared byte for byte.
"""
import argparse
import hashlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_end_to_end import ROOT, record_cells

REPLICAS = 4
PAUSE_MS = 700
SLOW_TOKENS = 16
# Runs one rank and writes its largest resident set.
MEASURE = ("import os,resource,subprocess,sys\n"
           "status = subprocess.call(sys.argv[2:])\n"
           "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
           "open(f'{sys.argv[1]}.{os.environ.get(\"OMPI_COMM_WORLD_RANK\", 0)}', 'w').write(str(peak))\n"
           "sys.exit(status)\n")


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.commands = []
        self.env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        self.env.pop("PTRT_FAULT", None)

    def model(self, config):
        path = self.folder / (Path(config).stem + ".h5")
        if not path.exists():
            subprocess.run([self.args.ptrt, "init", config, "-o", path, "--seed", "1"], check=True, stdout=subprocess.DEVNULL)
        return path

    def requests(self, count, tokens_out=1):
        path = self.folder / f"requests-{count}-{tokens_out}.jsonl"
        if path.exists():
            return path
        numbers = random.Random(1)
        with path.open("w", encoding="ascii") as file:
            for _ in range(count):
                tokens = [numbers.randrange(256) for _ in range(4)]
                file.write(json.dumps({"tokens": tokens, "max_tokens": tokens_out}) + "\n")
        return path

    def mixed_requests(self):
        path, numbers = self.folder / "mixed.jsonl", random.Random(2)
        with path.open("w", encoding="ascii") as file:
            for _ in range(200):
                tokens = [numbers.randrange(256) for _ in range(numbers.randint(1, 64))]
                file.write(json.dumps({"tokens": tokens, "max_tokens": numbers.randint(1, 64)}) + "\n")
        return path

    def run(self, ptrt, model, requests, *options, ranks=REPLICAS, fault=None, measured=False, status=0, keep=False):
        """One job: seconds of the whole, the program's requests a second, peaks in KiB, and a digest of the results."""
        results, peaks = self.folder / "results.jsonl", self.folder / "peak"
        command = [ptrt, "generate", model, requests, "-o", results, "--threads", "1", *options]
        shown = " ".join(map(str, command)).replace(f"{self.folder}/", "")
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
        env = dict(self.env, **({"PTRT_FAULT": fault} if fault else {}))
        self.commands.append((f"PTRT_FAULT={fault} " if fault else "") + " ".join(launcher) + " " + shown)
        if measured:
            launcher += [sys.executable, "-c", MEASURE, peaks]
        start = time.monotonic()
        done = subprocess.run([*map(str, launcher), *map(str, command)], env=env, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        if done.returncode != status:
            raise RuntimeError(f"{shown}: status {done.returncode}\n{done.stdout}{done.stderr}")
        found = {"whole_s": seconds}
        told = re.search(r"to last result +([\d.]+) s", done.stdout + done.stderr)
        if told:
            found["seconds"] = float(told.group(1))
        rate = re.search(r"([\d.]+) requests/s", done.stdout + done.stderr)
        if rate:
            found["requests_per_s"] = float(rate.group(1))
        if measured:
            found["peak_kib"] = [int(Path(f"{peaks}.{rank}").read_text()) for rank in range(ranks)]
        if not keep:
            found["results"] = hashlib.sha256(results.read_bytes()).hexdigest()
            for suffix in ("", ".done"):
                Path(f"{results}{suffix}").unlink()
        return found

    def same(self, cells):
        digests = {cell.pop("results") for cell in cells}
        if len(digests) != 1:
            raise RuntimeError("the results differ")
        return cells

    def rate(self):
        model, requests = self.model(self.args.config), self.requests(self.args.requests)
        rounds = {name: [] for name in self.programs()}
        for _ in range(self.args.rounds):
            for name, program in self.programs().items():
                rounds[name].append(self.run(program, model, requests))
        self.same([cell for cells in rounds.values() for cell in cells])
        median = {name: statistics.median(cell["requests_per_s"] for cell in cells) for name, cells in rounds.items()}
        return {"requests": self.args.requests, "median_requests_per_s": median, "rounds": rounds}

    def memory(self):
        model = self.model(self.args.config)
        few = self.run(self.args.ptrt, model, self.requests(10000), measured=True)
        many = self.run(self.args.ptrt, model, self.requests(self.args.many), measured=True)
        more = [(b - a) / 1024 for a, b in zip(few["peak_kib"], many["peak_kib"])]
        return {"requests": [10000, self.args.many], "peak_kib": [few["peak_kib"], many["peak_kib"]],
                "more_mib": more, "many": {name: many[name] for name in ("whole_s", "requests_per_s")}}

    def resume(self):
        model, requests = self.model(self.args.config), self.requests(self.args.many)
        self.run(self.args.ptrt, model, requests, fault="rank=0,at=publish", status=1, keep=True)
        bytes_of_journal = (self.folder / "results.jsonl.partial").stat().st_size
        found = self.run(self.args.ptrt, model, requests, "--resume", measured=True)
        plain = self.run(self.args.ptrt, model, requests)
        self.same([found, plain])
        return {"lines": self.args.many, "journal_bytes": bytes_of_journal, **found}

    def one_layer(self):
        config = json.loads((ROOT / "perf/configs/dense_100m_tied.json").read_text(encoding="utf-8"))
        config.update(name="dense_100m_tied, one layer", layers=1, sync_layers=[1])
        path = self.folder / "one_layer.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return self.model(path)

    def programs(self):
        return {"new": self.args.ptrt, **({"old": self.args.old} if self.args.old else {})}

    def mixed(self):
        model, requests, found = self.one_layer(), self.mixed_requests(), {}
        cells = []
        for ranks in (1, REPLICAS):
            rounds = {name: [] for name in self.programs()}
            for _ in range(self.args.rounds):
                for name, program in self.programs().items():
                    rounds[name].append(self.run(program, model, requests, ranks=ranks))
            cells += [cell for of_name in rounds.values() for cell in of_name]
            found[f"{ranks} replicas"] = {name: statistics.median(cell["seconds"] for cell in of_name)
                                          for name, of_name in rounds.items()}
        self.same(cells)
        return {"median_seconds": found}

    def stream(self):
        model, found = self.model(self.args.config), {}
        for ranks in (1, REPLICAS):
            command = ["generate", model, "-", "-o", "-", "--threads", "1"]
            launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
            self.commands.append(" ".join(map(str, [*launcher, self.args.ptrt, *command])).replace(f"{self.folder}/", ""))
            run = subprocess.Popen([*launcher, self.args.ptrt, *map(str, command), "--quiet"], env=self.env,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            latencies = []
            for index in range(201):
                time.sleep(0.05)
                start = time.monotonic()
                run.stdin.write(b'{"tokens": [%d, 2, 3, 4], "max_tokens": 1}\n' % index)
                run.stdin.flush()
                run.stdout.readline()
                latencies.append(1000 * (time.monotonic() - start))
            run.stdin.close()
            if run.wait() != 0:
                raise RuntimeError("a run with a slow writer failed")
            first, rest = latencies[0], sorted(latencies[1:])
            found["one process" if ranks == 1 else f"{ranks} replicas"] = {
                "first_ms": first, "latency_ms": {"p50": statistics.median(rest), "p99": rest[197], "max": rest[-1]}}
        few, many = self.requests(self.args.requests), self.requests(self.args.many)
        seconds = {"file": [], "pipe": []}
        for _ in range(self.args.rounds):
            for name, cells in seconds.items():
                cells.append(self.one_process(model, few, name == "pipe")[0])
        peaks = [self.one_process(model, requests, True)[1] for requests in (self.requests(10000), many)]
        return {**found, "requests": self.args.requests, "whole_s": seconds, "many": self.args.many,
                "median_pipe_over_file": statistics.median(seconds["pipe"]) / statistics.median(seconds["file"]),
                "more_mib": (peaks[1] - peaks[0]) / 1024}

    def one_process(self, model, requests, piped):
        """Seconds, and the largest resident set in KiB."""
        start, peak = time.monotonic(), self.folder / "peak"
        command = [sys.executable, "-c", MEASURE, peak, self.args.ptrt, "generate", model, "-" if piped else requests,
                   "-o", self.folder / "piped.jsonl", "--threads", "1", "--quiet"]
        source = subprocess.Popen(["cat", requests if piped else "/dev/null"], stdout=subprocess.PIPE)
        subprocess.run([*map(str, command)], env=self.env, check=True, stdin=source.stdout)
        source.wait()
        seconds = time.monotonic() - start
        for path in self.folder.glob("piped.jsonl*"):
            path.unlink()
        return seconds, int(Path(f"{peak}.0").read_text())

    def slow(self):
        model, requests = self.one_layer(), self.requests(self.args.slow, SLOW_TOKENS)
        options = ("--max-batch", "4")
        cells = [self.run(self.args.ptrt, model, requests, *options, ranks=3),
                 self.run(self.args.ptrt, model, requests, *options, fault=f"rank=3,at=step,pause_ms={PAUSE_MS}")]
        three, four = self.same(cells)
        one = SLOW_TOKENS * PAUSE_MS / 1000
        limit = 1.2 * three["whole_s"] + one
        return {"requests": self.args.slow, "three_s": three["whole_s"], "four_with_a_slow_one_s": four["whole_s"],
                "one_slow_s": one, "limit_s": limit, "within": four["whole_s"] <= limit}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--old", help="another build, measured in turn with this one")
    parser.add_argument("--old-commit", help="of that build, for the record")
    parser.add_argument("--config", default=str(ROOT / "perf" / "configs" / "tiny_1x16.json"))
    parser.add_argument("--requests", type=int, default=100000)
    parser.add_argument("--many", type=int, default=1000000)
    parser.add_argument("--slow", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="rate,memory,resume,slow,mixed,stream")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    record_cells(Bench, args, with_old=("rate", "mixed"))


if __name__ == "__main__":
    main()
