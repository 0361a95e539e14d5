#!/usr/bin/env python3
"""Measures how `sidereal serve` behaves when things go wrong, and prints one table: figure, bound, seen, verdict.

    python3 benches/reliability.py                       all parts but the soak, with target/release/sidereal
    python3 benches/reliability.py --quick drain cancel  two parts, small
    python3 benches/reliability.py soak 600 --model DIR --catalog FILE.jsonl

Servers are started on free ports of 127.0.0.1 and stopped again; load comes from `sidereal bench serve` and from sockets of our own. Only the standard
library is needed. The model is replaced by `--device hash`, whose steps take a given time, so that it and the load do not fight for the processor;
`soak` takes a real one. Ends with 1 if a bound is broken.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
import traceback

from serve_faults import catalogs, lives, load, soak
from serve_faults.harness import VERDICTS, Figure, Run, load_average

PARTS = {
    "overhead": load.overhead,
    "overload": load.overload,
    "health": load.health,
    "drain": lives.drain,
    "slow": lives.slow,
    "stalled": lives.stalled,
    "cancel": lives.cancel,
    "swap": catalogs.swap,
    "takedown": catalogs.takedown,
    "soak": soak.soak,
}
# Needs a model.
OPTIONAL = {"soak"}


def options(argv: list[str]) -> tuple[Run, list[str], str | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; `soak` may be followed by its seconds (600)")
    parser.add_argument("--bin", default="target/release/sidereal", help="the binary [target/release/sidereal]")
    parser.add_argument("--echo-bin", default="target/release/examples/echo", help="the bare axum server [target/release/examples/echo]")
    parser.add_argument("--device", choices=["hash", "cpu"], default="hash", help="cpu: the built-in demonstration in place of fixed step times")
    parser.add_argument("--quick", action="store_true", help="small counts, all parts in less than 3 minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="model folder of the soak")
    parser.add_argument("--catalog", help="catalog of the soak, JSON lines")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_intermixed_args(argv)
    seconds = 600.0
    names = []
    for word in args.parts:
        if word in PARTS:
            names.append(word)
        elif names[-1:] == ["soak"] and word.replace(".", "", 1).isdigit():
            seconds = float(word)
        else:
            parser.error(f"{word!r} is no part; expected {', '.join(PARTS)}")
    if not names:
        names = [name for name in PARTS if name not in OPTIONAL or args.model]
    if "soak" in names and not (args.model and args.catalog):
        parser.error("soak needs --model and --catalog")
    run = Run(os.path.abspath(args.bin), os.path.abspath(args.echo_bin), args.device, args.quick, args.seed, args.model, args.catalog, seconds)
    return run, names, args.json


def table(figures: list[Figure]) -> str:
    rows = [("part", "figure", "bound", "seen", "")]
    rows += [(one.part, one.name, one.bound, one.seen, VERDICTS[one.ok]) for one in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> int:
    run, names, out = options(sys.argv[1:])
    # Thousands of sockets.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begin = time.time()
    print(f"{platform.platform()}, {os.cpu_count()} processors, load average {load_average()}")
    for name in names:
        run.part = name
        print(f"\n{name}: {PARTS[name].__doc__.splitlines()[0]} (load average {load_average()})", flush=True)
        try:
            PARTS[name](run)
        except Exception as error:  # One part must not hide the others.
            traceback.print_exc()
            run.figure("the part ran to its end", "yes", f"{type(error).__name__}: {error}", False)
    failed = sum(figure.ok is False for figure in run.figures)
    took = time.time() - begin
    print(f"\n{table(run.figures)}\n\n{failed} of {len(run.figures)} figures broken, {took:.0f} s, load average {load_average()}")
    if out:
        result = {
            "quick": run.quick,
            "device": run.device,
            "seed": run.seed,
            "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "load_average": os.getloadavg()},
            "seconds": took,
            "figures": [vars(figure) for figure in run.figures],
            "commands": run.commands,
        }
        with open(out, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
