#!/usr/bin/env python3
"""Removes one barrier, wait, fence or bound at a time from the kernels, and looks whether a kernel test notices.

    .ci/mutate.py                       every place of every kernel
    .ci/mutate.py gemm.cu sid.cuh       of some files
    .ci/mutate.py --sample 40           of 40 places, drawn (--seed)
    .ci/mutate.py --kinds barrier,wait  of some kinds
    .ci/mutate.py --list                names the places, changes nothing
    .ci/mutate.py --output FILE         writes the tables there as well

For each place a shared object of the changed kernels is built (kernels/host/build_object.sh), and the tests of that family run with it:
first as they are, then under the other orders of threads and completions of asynchronous copies, then under the thread and address
sanitizers. The first that fails, crashes or does not end has noticed. Fences between memory proxies and scopes have no effect on a host, so
theirs are counted apart. Exit code 1 if something went unnoticed that is not a fence and not named in .ci/unnoticed.txt.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
ACCEPTED = ROOT / ".ci" / "unnoticed.txt"
# What every kernel rests on: their tests are the emulator's.
BASE = {"args.cuh", "device.cuh", "hopper.cuh", "probe.cu"}
# Test module of a file, where it is not called like the file up to its first underscore.
TESTS = {
    "gemm": "products", "skinny": "products", "products": "products", "combine": "attention",
    "elementary": "",
}  # fmt: skip

CONDITION = r"\((?P<condition>(?:[^();{}]|\((?:[^();{}]|\([^();{}]*\))*\))*(?:[<>]|==|!=)(?:[^();{}]|\((?:[^();{}]|\([^();{}]*\))*\))*)\)"
# Kind, what to look for, what to put in its place.
MUTATIONS = [
    ("barrier", r"__syncthreads\(\);", ";"),
    ("barrier", r"__syncwarp\([^;]*\);", ";"),
    ("barrier", r"(?<![\w:])(?:dev::)?barrier_(?:sync|arrive)\([^;]*\);", ";"),
    ("wait", r"(?:dev::)?cp_async_wait<[^<>;]*>\([^;]*\);", ";"),
    ("wait", r"(?:dev::)?wgmma_wait<[^<>;]*>\([^;]*\);", ";"),
    ("wait", r"(?:dev::)?mbarrier_wait\w*\([^;]*\);", ";"),
    ("wait", r"(?:dev::)?dependency_wait\(\);", ";"),
    ("wait", r"(?:dev::)?mbarrier_arrive\w*\([^;]*\);", ";"),
    ("fence", r"__threadfence\w*\(\);", ";"),
    ("fence", r"(?:dev::)?(?:fence_\w+|wgmma_fence|mbarrier_fence\w*)\([^;]*\);", ";"),
    ("bound", r"if (?=\([^;{]* (?:<|<=|>|>=) )" + CONDITION + r" (?P<exit>return|continue|break)\b[^;]*;", ";"),
    ("bound", r"if (?=\([^;{]* <=? )(?![^;{]*(?:threadIdx|lane|warp))" + CONDITION + r"(?! (?:return|continue|break)\b)", "if (true)"),
    ("bound", r"(?P<compare> < )(?=\w[^;\n]* \? )", " <= "),
    ("bound", r"(?<![:\w])min\((?P<first>[^,();]+), (?P<second>[^,();]+)\)", r"\g<first>"),
    ("bound", r"(?P<head>const bool \w+ = )[^;=,]* (?:<|<=|>|>=) [^;,]*;", r"\g<head>true;"),
    ("bound", r"(?P<head>cp_async16\([^;]*, )(?P<valid>[^,;]* (?:<|<=|>|>=) [^,;]*)\);", r"\g<head>true);"),
]  # fmt: skip
ORDERS = [(o, a) for o in ("forward", "reverse", "random", "warps", "warps-reverse") for a in ("late", "early")]


class Place(typing.NamedTuple):
    file: str
    line: int
    kind: str
    before: str
    text: str  # of the whole file, changed

    @property
    def name(self) -> str:
        return f"{self.file}: {self.kind}: {self.before}"


def places(path: pathlib.Path) -> list[Place]:
    """Every place of a file, comments left out."""
    text = path.read_text()
    found = []
    for kind, pattern, replacement in MUTATIONS:
        for match in re.finditer(pattern, text):
            start = text.rfind("\n", 0, match.start()) + 1
            line = text[start : text.find("\n", match.start())]
            if "//" in text[start : match.start()] or line.lstrip().startswith(("#", "static_assert", "constexpr")):
                continue
            changed = text[: match.start()] + match.expand(replacement) + text[match.end() :]
            shown = match[0] if len(match[0]) > 8 else line
            found.append(Place(path.name, text.count("\n", 0, match.start()) + 1, kind, " ".join(shown.split())[:90], changed))
    distinct = {place.text: place for place in found}
    return sorted(distinct.values(), key=lambda place: place.line)


def family(file: str) -> str:
    stem = pathlib.Path(file).stem
    first = stem.split("_")[0]
    module = TESTS.get(stem, TESTS.get(first, first))
    return f"kernels::{module}"


class Tree:
    """A copy of what a shared object of kernels is built from. Its copies share files, objects included, until they are replaced."""

    def __init__(self, folder: pathlib.Path, origin: "Tree | None" = None):
        self.folder = folder
        if origin is None:
            shutil.copytree(KERNELS, folder / "kernels")
        else:
            shutil.copytree(origin.folder, folder, dirs_exist_ok=True, copy_function=os.link)

    def replace(self, file: str, text: str) -> None:
        path = self.folder / "kernels" / file
        path.unlink()
        path.write_text(text)

    def build(self, sanitizer: str = "none") -> pathlib.Path | None:
        """Builds the object; none if the compiler refuses."""
        out = self.folder / f"{sanitizer}.so"
        command = ["sh", "kernels/host/build_object.sh", str(out.relative_to(self.folder)), sanitizer]
        ran = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if ran.returncode and os.environ.get("MUTATE_DEBUG"):
            sys.stderr.write(ran.stderr)
        return None if ran.returncode else out


def runtime(sanitizer: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    name = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    return subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()


class Tests:
    """The test binary, and how long it may take."""

    def __init__(self, binary: str, threads: int):
        self.binary, self.threads = binary, threads

    def fails(self, kernels: pathlib.Path, filter_: str, limit: float, environment: dict[str, str]) -> tuple[bool, str]:
        """Whether a run with these kernels fails, and the last it said."""
        command = [self.binary, filter_, f"--test-threads={self.threads}", "--skip", "kernels::emulator"]
        environment = os.environ | {"SIDEREAL_HOST_KERNELS": str(kernels), "RUST_BACKTRACE": "0"} | environment
        ran = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace", start_new_session=True)  # fmt: skip
        try:
            said, _ = ran.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(ran.pid, signal.SIGKILL)
            ran.communicate()
            return True, "does not end"
        if ran.returncode == 0 and not re.search(r"test result: ok\. [1-9]", said):
            sys.exit(f"no test is called {filter_}*: name it in TESTS of .ci/mutate.py")
        return ran.returncode != 0, said


SANITIZERS = {
    "thread": {"TSAN_OPTIONS": f"halt_on_error=1 report_signal_unsafe=0 ignore_noninstrumented_modules=1 suppressions={ROOT / '.ci' / 'tsan.txt'}"},
    "address": {"ASAN_OPTIONS": "detect_leaks=0 halt_on_error=1 handle_segv=0"},
}


def noticed(place: Place, origin: Tree, tests: Tests, limits: dict[str, float], sanitizers: list[str]) -> str:
    """Who notices: `compiler`, `tests`, `orders`, a sanitizer, or nobody (empty)."""
    with tempfile.TemporaryDirectory(dir=origin.folder.parent) as name:
        tree = Tree(pathlib.Path(name), origin)
        tree.replace(place.file, place.text)
        kernels = tree.build()
        if kernels is None:
            return "compiler"
        filter_ = family(place.file)
        limit = limits[filter_]
        if tests.fails(kernels, filter_, limit, {})[0]:
            return "tests"
        for order, completion in ORDERS:
            chosen = {"SIDEREAL_EMULATED_ORDER": order, "SIDEREAL_EMULATED_ASYNC": completion, "SIDEREAL_EMULATED_SEED": "1"}
            if tests.fails(kernels, filter_, limit, chosen)[0]:
                return "orders"
        for sanitizer in sanitizers:
            kernels = tree.build(sanitizer)
            loaded = SANITIZERS[sanitizer] | {"LD_PRELOAD": runtime(sanitizer)}
            if kernels is not None and tests.fails(kernels, filter_, 10 * limit, loaded)[0]:
                return sanitizer
    return ""


def test_binary() -> str:
    command = ["cargo", "test", "--locked", "--features", "emulated", "--test", "it", "--no-run", "--message-format=json"]
    for line in subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["kind"] == ["test"]:
            return message["executable"]
    sys.exit("cargo names no test binary")


def tables(results: list[tuple[Place, str]], accepted: set[str]) -> str:
    """Counts by file and kind, and the places that nobody noticed."""
    columns = ["compiler", "tests", "orders", "thread", "address", ""]
    rows = ["| file | kind | places | refused by the compiler | noticed by the tests | by other orders | by the thread sanitizer | "
            "by the address sanitizer | unnoticed |", "|---|---|" + "---:|" * 7]  # fmt: skip
    counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
    for place, who in results:
        counts[place.file, place.kind][who] += 1
    total: collections.Counter = collections.Counter()
    for (file, kind), counter in sorted(counts.items()):
        total += counter
        rows.append(f"| {file} | {kind} | {counter.total()} | " + " | ".join(str(counter[c]) for c in columns) + " |")
    rows.append(f"| **all** | | {total.total()} | " + " | ".join(str(total[c]) for c in columns) + " |")
    survivors = [place for place, who in results if not who]
    if survivors:
        rows += ["", "Unnoticed:", ""]
        for place in survivors:
            known = " (known)" if place.name in accepted else ""
            rows.append(f"- `{place.file}:{place.line}` {place.kind}: `{place.before}`{known}")
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of kernels/ (default: all but the base headers)")
    parser.add_argument("--kinds", default="barrier,wait,fence,bound")
    parser.add_argument("--sample", type=int, help="so many places, drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--sanitizers", default="thread,address", help="for what the orders do not notice; empty: none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--binary", help="the test binary (default: as cargo builds it)")
    parser.add_argument("--output", type=pathlib.Path)
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[Place]:
    files = options.files or sorted(p.name for p in KERNELS.iterdir() if p.suffix in (".cu", ".cuh") and p.name not in BASE)
    kinds = options.kinds.split(",")
    found = [place for file in files for place in places(KERNELS / file) if place.kind in kinds]
    if options.sample is not None and options.sample < len(found):
        found = sorted(random.Random(options.seed).sample(found, options.sample), key=lambda p: (p.file, p.line))
    return found


def baseline(tree: Tree, tests: Tests, families: set[str], sanitizers: list[str]) -> dict[str, float]:
    """How long each family may take; all of them pass as they are, under every sanitizer too."""
    limits = {}
    kernels = tree.build()
    if kernels is None:
        sys.exit("the kernels do not compile as they are")
    for filter_ in sorted(families):
        begun = time.monotonic()
        failed, said = tests.fails(kernels, filter_, 1800, {})
        limits[filter_] = 30 + 5 * (time.monotonic() - begun)
        if failed:
            sys.exit(f"{filter_} fails without a change:\n{said[-3000:]}")
    for sanitizer in sanitizers:
        kernels = tree.build(sanitizer)
        for filter_ in sorted(families):
            failed, said = (True, "does not compile") if kernels is None else tests.fails(
                kernels, filter_, 10 * limits[filter_], SANITIZERS[sanitizer] | {"LD_PRELOAD": runtime(sanitizer)})  # fmt: skip
            if failed:
                sys.exit(f"{filter_} fails under the {sanitizer} sanitizer without a change:\n{said[-3000:]}")
    return limits


def main() -> None:
    options = arguments()
    found = chosen(options)
    if options.list:
        for place in found:
            print(f"{place.file}:{place.line}: {place.kind}: {place.before}")
        print(f"{len(found)} places")
        return
    sanitizers = [name for name in options.sanitizers.split(",") if name]
    tests = Tests(options.binary or test_binary(), 1)
    accepted = set(ACCEPTED.read_text().splitlines()) if ACCEPTED.exists() else set()
    printing = threading.Lock()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        origin = Tree(pathlib.Path(folder) / "origin")
        limits = baseline(origin, tests, {family(place.file) for place in found}, sanitizers)

        def one(place: Place) -> tuple[Place, str]:
            who = noticed(place, origin, tests, limits, [] if place.kind == "fence" else sanitizers)
            with printing:
                print(f"{place.file}:{place.line}: {place.kind}: {place.before}: {who or 'UNNOTICED'}", flush=True)
            return place, who

        results = list(pool.map(one, found))
    report = tables(results, accepted)
    print("\n" + report)
    if options.output:
        options.output.write_text(report + "\n")
    sys.exit(any(not who and place.kind != "fence" and place.name not in accepted for place, who in results))


if __name__ == "__main__":
    main()
