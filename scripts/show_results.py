#!/usr/bin/env python3
"""Prints prompts beside the texts that were generated for them: show_results.py REQUESTS.jsonl RESULTS.jsonl."""
import json
import sys


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main():
    requests, results = lines(sys.argv[1]), lines(sys.argv[2])
    prompts = [" ".join(request["prompt"].split()) for request in requests]
    width = max(map(len, prompts))
    for prompt, result in zip(prompts, results):
        answer = result["text"].strip() if "text" in result else f"error: {result['error']['message']}"
        print(f"  {prompt:<{width}}  {answer}")


if __name__ == "__main__":
    main()
