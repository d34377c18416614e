#!/usr/bin/env python3
"""Runs the fuzz targets of a build, for so many seconds or inputs each, and adds what was executed to a JSON file.

    cmake --preset fuzz && cmake --build --preset fuzz --target fuzz_targets
    tests/fuzz/campaign.py build-fuzz --seconds 600 -o tests/fuzz/results/text.json    # libFuzzer
    tests/fuzz/campaign.py build --runs 100000 -o tests/fuzz/results/text.json         # the plain driver

A target that finds something leaves its input in BUILD/fuzz; the exit status is then 1.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
TARGETS = sorted(path.name.removesuffix("_fuzz.cpp") for path in FUZZ.glob("*_fuzz.cpp"))


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=FUZZ).stdout.strip()


def processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found.group(1) if found else platform.processor()


def setting(build: Path, name: str) -> str:
    found = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else ""


def run(target: str, build: Path, limit: list[str], seed: int, fuzzer: bool) -> dict:
    folder = build / "fuzz"
    kept = folder / target
    kept.mkdir(parents=True, exist_ok=True)
    options = [*limit, f"-seed={seed}", "-timeout=60", "-max_len=6000"]
    places = [FUZZ / "corpus" / target]
    if fuzzer:
        options += ["-rss_limit_mb=4000", "-print_final_stats=1"]
        places = [f"-artifact_prefix={folder}/{target}-", kept, *places]
    start = time.monotonic()
    done = subprocess.run([build / f"fuzz_{target}", *options, *places], capture_output=True, text=True,
                          errors="replace", check=False, cwd=folder)
    took = time.monotonic() - start
    said = done.stdout + done.stderr
    executed = re.search(r"number_of_executed_units:\s*(\d+)|(\d+) changed inputs", said)
    finding = [line for line in said.splitlines() if re.match(r"wrong:|SUMMARY:|.*runtime error", line)]
    result = {"target": target, "command": " ".join([f"fuzz_{target}", *options]),
              "executions": int(executed.group(1) or executed.group(2)) if executed else 0, "seconds": round(took, 1),
              "exit_status": done.returncode, "findings": finding}
    if covered := re.findall(r"cov: (\d+)", said):
        result["covered_edges"] = int(covered[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    limits = parser.add_mutually_exclusive_group(required=True)
    limits.add_argument("--seconds", type=int, help="of each target; libFuzzer only")
    limits.add_argument("--runs", type=int, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    build = args.build.resolve()
    fuzzer = setting(build, "PTRT_FUZZ") == "ON"
    limit = [f"-runs={args.runs}"] if args.runs else [f"-max_total_time={args.seconds}"]
    runs = [run(target, build, limit, args.seed, fuzzer) for target in args.targets]
    campaign = {
        "machine": f"{processor()}, {platform.system()} {platform.machine()}",
        "compiler": output_of(setting(build, "CMAKE_CXX_COMPILER"), "--version").splitlines()[0],
        "driver": "libFuzzer" if fuzzer else "plain", "sanitizers": setting(build, "PTRT_SANITIZE"),
        "commit": output_of("git", "rev-parse", "--short=12", "HEAD"),
        "executions": sum(r["executions"] for r in runs), "seconds": round(sum(r["seconds"] for r in runs), 1),
        "findings": sum(r["exit_status"] != 0 for r in runs), "targets": runs}
    before = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {"campaigns": []}
    campaigns = [*before["campaigns"], campaign]
    result = {"executions": sum(c["executions"] for c in campaigns), "campaigns": campaigns}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{campaign['executions']} executions, {campaign['findings']} findings")
    return 1 if campaign["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
