#!/usr/bin/env python3
"""Draws a part of a trace of --trace as an SVG: one row a rank, time to the right.

    scripts/trace_picture.py trace.json -o trace.svg --kind decode --steps 2
"""
import argparse
import json
from html import escape
from pathlib import Path

COLOURS = {"products": "#4878a8", "attention": "#e49444", "sync, moving and adding": "#6a9f58",
           "sync, waiting": "#d1615d", "other ops": "#b0b0b0"}
WIDTH, LEFT, ROW, GAP = 900, 90, 26, 10


def kind_of(name):
    if "linear" in name or name == "moe_ffn":
        return "products"
    if name in ("attention", "rope_append"):
        return "attention"
    if name == "wait":
        return "sync, waiting"
    return "sync, moving and adding" if name.startswith("sync") else "other ops"


def chosen_steps(events, kind, count):
    """The time between the start and the end of `count` steps of rank 0 in the middle of the trace."""
    steps = [e for e in events if e["pid"] == 0 and e["name"] == f"{kind} step"]
    if len(steps) < count:
        raise SystemExit(f"the trace has {len(steps)} {kind} steps")
    first = (len(steps) - count) // 2
    return steps[first]["ts"], steps[first + count - 1]["ts"] + steps[first + count - 1]["dur"]


def draw(events, names, begin, end):
    ranks = sorted(names)
    scale = (WIDTH - LEFT - 10) / (end - begin)
    height = 46 + len(ranks) * (ROW + GAP) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
           f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>']
    x = LEFT
    for label, colour in COLOURS.items():
        out.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/><text x="{x + 17}" y="21">{label}</text>')
        x += 45 + 7 * len(label)
    for row, rank in enumerate(ranks):
        y = 40 + row * (ROW + GAP)
        out.append(f'<text x="8" y="{y + 17}">rank {rank}</text>'
                   f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 10}" height="{ROW}" fill="#f2f2f2"/>')
        for event in events:  # what lies within another comes after it, and so on top
            start, stop = max(event["ts"], begin), min(event["ts"] + event["dur"], end)
            if event["pid"] != rank or stop <= start or event["name"].endswith(" step") or event["name"] == "tracks":
                continue
            out.append(f'<rect x="{LEFT + (start - begin) * scale:.2f}" y="{y}" width="{(stop - start) * scale:.2f}" '
                       f'height="{ROW}" fill="{COLOURS[kind_of(event["name"])]}">'
                       f'<title>{escape(event["name"])} {event["dur"]:.1f} us</title></rect>')
    bottom = 40 + len(ranks) * (ROW + GAP) + 10
    for i in range(6):
        x = LEFT + i / 5 * (WIDTH - LEFT - 10)
        anchor = "end" if i == 5 else "middle"
        out.append(f'<text x="{x:.0f}" y="{bottom + 8}" text-anchor="{anchor}">{(end - begin) * i / 5:.0f} us</text>')
    return "\n".join([*out, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--kind", choices=("prefill", "decode"), default="decode")
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    events = json.loads(args.trace.read_text(encoding="utf-8"))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    timed = sorted((e for e in events if e["ph"] == "X"), key=lambda e: (e["ts"], -e["dur"]))
    args.output.write_text(draw(timed, names, *chosen_steps(timed, args.kind, args.steps)), encoding="utf-8")


if __name__ == "__main__":
    main()
