#!/usr/bin/env python3
"""Runs the fuzz targets of a build for so many seconds each and writes what was executed as JSON.

    cmake --preset fuzz && cmake --build --preset fuzz --target fuzz_targets
    tests/fuzz/campaign.py build-fuzz --seconds 600 -o tests/fuzz/results/text.json

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


def run(target: str, program: Path, folder: Path, seconds: int, seed: int) -> dict:
    kept = folder / target
    kept.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=20", "-rss_limit_mb=4000", "-max_len=6000",
               "-print_final_stats=1"]
    start = time.monotonic()
    done = subprocess.run([program, *options, f"-artifact_prefix={folder}/{target}-", kept, FUZZ / "corpus" / target],
                          capture_output=True, text=True, errors="replace", check=False)
    took = time.monotonic() - start
    executed = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    finding = [line for line in done.stderr.splitlines() if re.match(r"wrong:|SUMMARY:|.*runtime error", line)]
    return {"target": target, "command": " ".join([f"fuzz_{target}", *options]),
            "executions": int(executed.group(1)) if executed else 0, "seconds": round(took, 1),
            "covered_edges": int(covered[-1]) if covered else 0, "exit_status": done.returncode, "findings": finding}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    folder = args.build.resolve() / "fuzz"
    runs = [run(target, args.build.resolve() / f"fuzz_{target}", folder, args.seconds, args.seed)
            for target in args.targets]
    result = {"machine": f"{processor()}, {platform.system()} {platform.machine()}",
              "compiler": output_of("clang++", "--version").splitlines()[0],
              "sanitizers": "address, undefined; libFuzzer",
              "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
              "executions": sum(r["executions"] for r in runs), "seconds": round(sum(r["seconds"] for r in runs), 1),
              "findings": sum(r["exit_status"] != 0 for r in runs), "targets": runs}
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['executions']} executions, {result['findings']} findings")
    return 1 if result["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
