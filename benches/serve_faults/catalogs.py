"""The catalog changes under load: swaps and denials."""

import fcntl
import http.client
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time

from .client import native, request
from .harness import Run, Server, address, idle, median, percentile

# ---- swaps


def build_snapshots(run: Run, server: Server, folder: str, items: int) -> list[str]:
    """Two snapshots of the same ids and titles with different SIDs, for the types of the server's catalog."""
    types = server.get("/v1/catalog")[1]["types"]
    layout = os.path.join(folder, "layout.json")
    with open(layout, "w") as file:
        spelled = [{"name": one["name"], "levels": one["levels"], "token": f"<{one['name']}_{{level}}_{{code}}>"} for one in types]
        json.dump({"open": "<|sid_begin|>", "close": "<|sid_end|>", "types": spelled}, file)
    rng = random.Random(run.seed)
    made = []
    for name in ("one", "two"):
        source, snapshot = os.path.join(folder, f"{name}.jsonl"), os.path.join(folder, f"{name}.sidcat")
        with open(source, "w") as file:
            for at in range(items):
                kind = types[at % len(types)]
                sid = [rng.randrange(codes) for codes in kind["levels"]]
                line = {"id": f"{kind['name']}:{at}", "type": kind["name"], "title": f"{name} {at}", "popularity": items - at, "sid": sid}
                file.write(json.dumps(line) + "\n")
        argv = [run.bin, "catalog", "build", source, "--layout", layout, "--out", snapshot]
        run.command(argv)
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        made.append(snapshot)
    return made


class Swapper(threading.Thread):
    """Loads one snapshot after the other, and rolls back now and then."""

    def __init__(self, server: Server, snapshots: list[str], gap: float, seed: int):
        super().__init__(daemon=True)
        self.server, self.snapshots, self.gap = server, snapshots, gap
        self.rng = random.Random(seed)
        self.swaps = 0
        self.resident = 0
        self.failed: list[str] = []
        self.took: list[float] = []
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.wait(self.gap):
            begin = time.monotonic()
            if self.swaps > 2 and self.rng.random() < 0.25:
                path, body = "/admin/catalog/rollback", None
            else:
                path, body = "/admin/catalog/load", {"file": self.snapshots[self.swaps % 2], "carry": False}
            try:
                status, answer = self.server.post(path, body, admin=True)
            except OSError as error:
                status, answer = 0, str(error)
            self.took.append((time.monotonic() - begin) * 1e3)
            if status == 200:
                self.swaps += 1
            else:
                self.failed.append(f"{path}: {status} {answer}")
            self.resident = max(self.resident, self.server.get("/admin/catalog", admin=True)[1]["resident"])

    def stop(self) -> None:
        self.ending.set()
        self.join()


class OneSnapshot(threading.Thread):
    """Asks for lists and holds each against the snapshot it names: titles say where an item comes from."""

    def __init__(self, server: Server):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(*address(server.url), timeout=30)
        self.answers = self.mixed = 0
        self.of_snapshot: dict[str, set[str]] = {}
        self.failed: list[str] = []
        self.ending = threading.Event()

    def run(self) -> None:
        path, body = native("items", n=20)
        data = json.dumps(body)
        while not self.ending.is_set():
            try:
                self.connection.request("POST", path, data, {"content-type": "application/json"})
                response = self.connection.getresponse()
                answer = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failed.append(str(error))
                return
            if response.status != 200:
                self.failed.append(f"{response.status}: {answer}")
                continue
            origins = {item["title"].split()[0] for item in answer["items"]}
            self.answers += 1
            self.mixed += len(origins) != 1
            self.of_snapshot.setdefault(answer["snapshot"], set()).update(origins)

    def stop(self) -> None:
        self.ending.set()
        self.join()


def swap(run: Run) -> None:
    """Snapshots are swapped under load: no request fails, every answer is of one snapshot."""
    pairs, seconds, gap = run.pick((2, "3s", 0.1), (10, "10s", 0.075))
    with tempfile.TemporaryDirectory() as folder, run.serve(*run.device_args(1), admin=True) as server:
        snapshots = build_snapshots(run, server, folder, run.pick(3000, 20_000))
        for snapshot in snapshots:
            server.must_post("/admin/catalog/load", {"file": snapshot, "carry": False})
        load = ["--concurrency", "8", "--duration", seconds, "--mix", "search=3,recommend=3,mixed=2,text=1", "--max-tokens", "16"]
        load += [word for snapshot in snapshots for word in ("--verify", snapshot)]
        still, moving, swaps, failed, resident, took = [], [], 0, [], 0, []
        checks = []
        run.bench(server.url, *load)  # Warm caches.
        for turn in range(pairs):
            check = OneSnapshot(server)
            check.start()
            still.append(run.bench(server.url, *load))
            swapper = Swapper(server, snapshots, gap, run.seed + turn)
            swapper.start()
            moving.append(run.bench(server.url, *load))
            swapper.stop(), check.stop()
            checks.append(check)
            swaps, failed, resident = swaps + swapper.swaps, failed + swapper.failed, max(resident, swapper.resident)
            took += swapper.took
        for text in [*failed, *(text for check in checks for text in check.failed)][:5]:
            run.say(f"seen: {text}")
        for report in moving + still:
            for message in report["error_messages"] + report["invalid_messages"]:
                run.say(f"seen: {message}")
        swap_figures(run, still, moving, checks)
        run.none("swaps that failed", len(failed), swaps)
        state = server.get("/admin/catalog", admin=True)[1]
        run.most("snapshots resident at most", max(resident, state["most_resident"]), 2)
        run.note("a swap took", f"median {percentile(took, 0.5):.1f} ms, p99 {percentile(took, 0.99):.1f} ms")
        run.none("gate violations", int(server.metrics()["gate_violations_total"]))


def swap_figures(run: Run, still: list[dict], moving: list[dict], checks: list[OneSnapshot]) -> None:
    done = sum(report["done"] for report in moving)
    run.none("requests failed or refused while swapping", sum(report["errors"] + report["refused"] for report in moving), done)
    invalid = sum(report["invalid_items"] for report in moving + still)
    run.none("items that are not in the named snapshot under their SIDs", invalid, sum(report["items"] for report in moving + still))
    answers = sum(check.answers for check in checks)
    wrong = sum(check.mixed for check in checks) + sum(len(origins) > 1 for check in checks for origins in check.of_snapshot.values())
    run.none("lists with titles of two snapshots, or names of snapshots with both", wrong, answers)
    run.none("lists that failed", sum(len(check.failed) for check in checks), answers)
    ratios = [with_swaps["latency_ms"]["e2e"]["p99"] / without["latency_ms"]["e2e"]["p99"] for with_swaps, without in zip(moving, still)]
    seen = f"x {median(ratios):.2f} (median of {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    run.figure("p99 with swaps over p99 without", "<= 1.10", seen, median(ratios) <= 1.10)


# ---- denials

STREAMS = 24


class Stream:
    """A connection, and all bytes read from it. A slow one has small windows and is read in small pieces: its answer lies in the server's buffers."""

    def __init__(self, where: tuple[str, int], data: bytes, slow: bool):
        self.sock = socket.socket()
        if slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        self.sock.connect(where)
        self.sock.setblocking(False)
        self.data, self.slow, self.seen = data, slow, bytearray()
        self.port = self.sock.getsockname()[1]
        self.sock.sendall(data)

    def queued(self) -> int:
        """Bytes that the kernel holds for us on our side."""
        return struct.unpack("i", fcntl.ioctl(self.sock, termios.FIONREAD, struct.pack("i", 0)))[0]

    def take(self) -> bool:
        """Reads what there is; whether there may be more later."""
        try:
            piece = self.sock.recv(1 << 10 if self.slow else 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            piece = b""
        self.seen += piece
        return bool(piece)


def unsent(port: int) -> dict[int, int]:
    """Bytes that the kernel holds on the server's side, by the client's port."""
    held = {}
    with open("/proc/net/tcp") as table:
        next(table)
        for line in table:
            words = line.split()
            if int(words[1].split(":")[1], 16) == port:
                held[int(words[2].split(":")[1], 16)] = int(words[4].split(":")[0], 16)
    return held


class Takedown:
    """Streams that go on while items are denied."""

    def __init__(self, run: Run, server: Server, titles: dict[str, str]):
        self.server, self.titles = server, titles
        self.where = server.address
        self.rng = random.Random(run.seed)
        self.kinds = [
            request(*native("mixed", max_tokens=400, **{"ignore_eos": True}), sse=True, close=True),
            request(*native("items", n=50), close=True),
            request(*native("items", n=50), sse=True, close=True),
            request("/v1/chat/completions", {"messages": [{"role": "user", "content": "Find an item."}], "output": "mixed", "max_tokens": 400, "ignore_eos": True, "stream": True}, close=True),
            request("/v1/batch", (json.dumps(native("items", n=50)[1]).encode() + b"\n") * 100, close=True),
        ]
        self.selector = selectors.DefaultSelector()
        self.streams: set[Stream] = set()
        self.after = self.held = self.later = self.cut = self.begun = self.rounds = 0
        self.recent: list[str] = []
        self.evidence: list[str] = []

    def open(self, count: int) -> None:
        while len(self.streams) < count:
            slow = self.begun % 3 == 0
            # What a slow one is sent must be longer than what the kernel takes.
            stream = Stream(self.where, self.kinds[-1] if slow else self.rng.choice(self.kinds[:-1]), slow)
            self.streams.add(stream)
            self.selector.register(stream.sock, selectors.EVENT_READ, stream)
            self.begun += 1

    def close(self, stream: Stream) -> None:
        self.selector.unregister(stream.sock)
        stream.sock.close()
        self.streams.discard(stream)

    def turn(self, seconds: float) -> None:
        """Reads for a while; streams that end make room for new ones."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                if not key.data.take():
                    self.note(key.data)
                    self.close(key.data)
            self.open(STREAMS)

    def note(self, stream: Stream) -> None:
        found = [name for name in self.titles if f'"{name}"'.encode() in stream.seen]
        self.recent = (found + self.recent)[:200]

    def names(self, data: bytes, name: str) -> bool:
        return f'"{name}"'.encode() in data or self.titles[name].encode() in data

    def deny(self) -> None:
        """One denial: what came of it on every connection, those begun later included."""
        if not self.recent:
            return
        name = self.rng.choice(self.recent)
        self.server.must_post("/admin/catalog/deny", {"ids": [name]})
        # What the kernel holds now was sent before the call returned.
        marks = {stream: len(stream.seen) + stream.queued() for stream in self.streams}
        held = unsent(self.where[1]) if any(stream.slow for stream in self.streams) else {}
        for stream in self.streams:
            if stream.slow:
                # More than it was, by what was not acknowledged: for these the test is that much weaker.
                marks[stream] = len(stream.seen) + stream.queued() + held.get(stream.port, 0)
        had = {stream: len(stream.seen) for stream in self.streams}
        self.rounds += 1
        before = set(self.streams)
        end = time.monotonic() + 0.15
        everything = set(self.streams)
        while (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                if not key.data.take():
                    self.close(key.data)
            self.open(STREAMS)
            everything |= self.streams
        for stream in everything:
            mark, start = marks.get(stream, 0), had.get(stream, 0)
            # An id may lie across the mark: what began before it was sent before.
            tail = bytes(stream.seen[mark:])
            if self.names(tail, name):
                self.after += stream in before
                self.later += stream not in before
                self.evidence.append(f"{name}: {stream.data[:30]!r}… {tail[-300:]!r}")
            if stream in before:
                self.held += self.names(bytes(stream.seen[start:mark]), name)
        self.server.must_post("/admin/catalog/allow", {"ids": [name]})


def takedown(run: Run) -> None:
    """After a denial has returned, no connection is sent the item any more."""
    rounds = run.pick(40, 1000)
    with run.serve(*run.device_args(1), admin=True) as server:
        found = server.get("/v1/catalog/search?q=&limit=100")[1]["items"]
        titles = {item["id"]: item["title"] for item in found}
        # Most lists hold these: they are denied while they are under way.
        seen = Takedown(run, server, titles)
        path, body = native("items", n=50)
        for item in server.post(path, body)[1]["items"]:
            seen.titles.setdefault(item["id"], item["title"])
        run.say(f"{rounds} denials of items that were just named, beside {STREAMS} connections: lists of 50 items, texts with items, whole and as events; a third are batches read slowly")
        seen.open(STREAMS)
        seen.turn(1.0)
        before = server.metrics()
        for _ in range(rounds):
            seen.deny()
            seen.turn(0.05)
        after = server.metrics()
        for text in seen.evidence[:3]:
            run.say(f"seen: {text}")
        run.none("connections on which a byte sent after the call named the item", seen.after, seen.rounds)
        run.none("answers begun after the call that named it", seen.later, seen.begun)
        run.note("in the kernel's hands already when the call returned", f"{seen.held} times")
        grown = {name: int(after[name] - before[name]) for name in ("items_denied_in_flight_total", "connections_cut_total")}
        run.note("denied in flight", f"{grown['items_denied_in_flight_total']} items dropped by the engine, {grown['connections_cut_total']} connections cut")
        for stream in list(seen.streams):
            seen.close(stream)
        done, took, _ = server.wait_for(idle, 2)
        run.figure("engine idle afterwards", "<= 2 s", f"{took:.2f} s" if done else "no", done)
