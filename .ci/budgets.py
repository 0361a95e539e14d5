#!/usr/bin/env python3
"""Checks registers, static shared memory and stack of every kernel against kernels/budgets.txt; nothing may spill.

    .ci/budgets.py                  compile for sm_90a and compare
    .ci/budgets.py --update         write the table from what was measured
    .ci/budgets.py --arch 80        compile for another architecture: no table, but no spills either

nvcc is taken from SIDEREAL_NVCC, else from .ci/nvcc.sh. Exit code 1 if a kernel spills, takes more than the table says, is not in
the table, or is in the table and nowhere else.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "kernels" / "budgets.txt"
HEADER = """# What every kernel takes on sm_90a, as ptxas counts: registers of a thread, bytes of static shared memory of a block, bytes of stack of a
# thread. Spills are always an error. Checked by .ci/budgets.py; written by .ci/budgets.py --update.
"""
# What ptxas says when it cannot do what a kernel relies on: registers not handed over, matrix instructions waited for one by one.
WARNINGS = re.compile(r"setmaxnreg|wgmma\.mma_async instructions are serialized|warpgroup\.(arrive|wait) is injected|Potential Performance Loss", re.I)


class Use(typing.NamedTuple):
    registers: int
    shared: int
    stack: int


class Compiled(typing.NamedTuple):
    source: str
    uses: dict[str, Use]
    complaints: list[str]


def entries(source: pathlib.Path) -> set[str]:
    """The names of the kernels of a file: KERNEL(name, ... on a line of its own."""
    return set(re.findall(r"^\s*KERNEL\(\s*(\w+)\s*,", source.read_text(), re.M))


def parse(source: str, log: str) -> Compiled:
    """Reads what `ptxas -v` prints: one block per function, in which properties come before registers."""
    uses: dict[str, Use] = {}
    complaints: list[str] = []
    function = entry = None
    stack = 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            entry = match[1]
        elif match := re.search(r"Function properties for '?(\w+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame, stores, loads = (int(number) for number in match.groups())
            if stores or loads:
                complaints.append(f"{function or entry}: spills {stores} bytes out, {loads} bytes in")
            if function == entry:
                stack = frame
            elif frame:
                complaints.append(f"{function}: is a call with a stack frame of {frame} bytes")
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            if entry is not None:
                uses[entry] = Use(int(match[1]), int(shared[1]) if shared else 0, stack)
            function, entry, stack = None, None, 0
        elif WARNINGS.search(line):
            complaints.append(line.strip())
    return Compiled(source, uses, complaints)


def compile_one(nvcc: str, source: pathlib.Path, arch: str, folder: str) -> Compiled:
    command = [nvcc, "-std=c++20", "-O3", f"-I{ROOT / 'kernels'}", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    command += ["-Xptxas", "-v", "-cubin", "-o", f"{folder}/{source.stem}.cubin", str(source)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.stderr.write(ran.stdout + ran.stderr)
        sys.exit(f"{source.name}: does not compile for sm_{arch}")
    compiled = parse(source.name, ran.stdout + ran.stderr)
    for name in sorted(entries(source) - compiled.uses.keys()):
        compiled.complaints.append(f"{name}: is in the source and not in the machine code")
    if not compiled.uses:
        compiled.complaints.append("holds no kernel")
    return compiled


def read_table() -> dict[str, Use]:
    if not TABLE.exists():
        return {}
    table = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith(("#", "kernel ")):
            name, *numbers = line.split()
            table[name] = Use(*(int(number) for number in numbers))
    return table


def write_table(uses: dict[str, Use]) -> None:
    width = max(map(len, uses), default=0) + 2
    rows = [f"{'kernel':<{width}}{'registers':>9}{'shared':>9}{'stack':>7}"]
    rows += [f"{name:<{width}}{use.registers:>9}{use.shared:>9}{use.stack:>7}" for name, use in sorted(uses.items())]
    TABLE.write_text(HEADER + "\n".join(rows) + "\n")


def compare(uses: dict[str, Use], table: dict[str, Use]) -> tuple[list[str], list[str]]:
    """What breaks the budget, and what stays below it."""
    over, under = [], []
    for name, use in sorted(uses.items()):
        if name not in table:
            over.append(f"{name}: is not in {TABLE.name} ({use.registers} registers, {use.shared} shared, {use.stack} stack)")
            continue
        for field, found, allowed in zip(Use._fields, use, table[name]):
            if found > allowed:
                over.append(f"{name}: {found} {field}, {allowed} allowed")
            elif found < allowed:
                under.append(f"{name}: {found} {field}, {allowed} allowed")
    over += [f"{name}: is in {TABLE.name} and no file holds it" for name in sorted(table.keys() - uses.keys())]
    return over, under


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the table")
    parser.add_argument("--arch", default="90a", help="architecture (default 90a, which the table is for)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    options = parser.parse_args()
    nvcc = os.environ.get("SIDEREAL_NVCC") or subprocess.check_output([ROOT / ".ci" / "nvcc.sh"], text=True).strip()
    # The largest first: a long compilation at the end would run alone.
    sources = sorted((ROOT / "kernels").glob("*.cu"), key=lambda source: -source.stat().st_size)
    if not sources:
        sys.exit("kernels/ holds no *.cu")
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda source: compile_one(nvcc, source, options.arch, folder), sources))
    uses: dict[str, Use] = {}
    errors = [f"{compiled.source}: {complaint}" for compiled in done for complaint in compiled.complaints]
    for compiled in done:
        errors += [f"{compiled.source}: {name}: is in two files" for name in compiled.uses.keys() & uses.keys()]
        uses |= compiled.uses
    under: list[str] = []
    if options.arch == "90a" and options.update:
        write_table(uses)
    elif options.arch == "90a":
        over, under = compare(uses, read_table())
        errors += over
    for line in under:
        print(f"below budget: {line} (.ci/budgets.py --update)")
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    print(f"{len(uses)} kernels of {len(sources)} files for sm_{options.arch}: {len(errors)} errors")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
