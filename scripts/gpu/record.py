#!/usr/bin/env python3
"""record.py FILE NAME STATUS SECONDS COMMAND: adds a stage to the list of gpu_check.sh, a JSON object a line."""
import json
import sys


def main():
    path, name, status, seconds, command = sys.argv[1:]
    entry = {"stage": name, "status": status if status == "skipped" else int(status), "seconds": int(seconds),
             "what": command}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
