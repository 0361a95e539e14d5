"""What the README and the examples print is run as printed."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile

import pytest
from served import ROOT, Server

# Has curl itself say when an answer is an error.
SHIM = '#!/bin/sh\nexec "{curl}" --fail-with-body --max-time 60 "$@"\n'


def blocks(text: str) -> list[str]:
    """Fenced blocks that begin with `curl`, a prompt before it or not."""
    found = re.findall(r"^```[a-z]*\n(.*?)^```$", text, re.M | re.S)
    return [re.sub(r"^\$ ", "", block, flags=re.M) for block in found if re.match(r"(\$ )?curl\b", block)]


@contextlib.contextmanager
def shimmed():
    """An environment in which curl fails where the server refuses."""
    curl = subprocess.check_output(["sh", "-c", "command -v curl"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        shim = pathlib.Path(folder) / "curl"
        shim.write_text(SHIM.format(curl=curl))
        shim.chmod(0o755)
        yield os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_readme_runs_as_printed():
    commands = blocks((ROOT / "README.md").read_text())
    if not commands:
        pytest.skip("README.md has no block that begins with curl")
    port = 8000
    if taken(port):
        # Somebody else's server: everything but the number is as printed.
        with Server() as server, shimmed() as environment:
            run_all([command.replace(":8000", f":{server.port}").replace(":8001", f":{server.admin_port}") for command in commands], environment)
        return
    with Server(port=port) as server, shimmed() as environment:
        run_all([command.replace(":8001", f":{server.admin_port}") for command in commands], environment)


def run_all(commands: list[str], environment: dict) -> None:
    for command in commands:
        ran = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, env=environment, timeout=120)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
        assert ran.stdout.strip(), f"no output: {command}"
        assert '"error"' not in ran.stdout, f"{command}\n{ran.stdout}"


def test_blocks_are_found():
    text = "a\n```\n$ curl x \\\n  -d y\n```\n```sh\ncurl z\n```\n```\nother curl\n```\n"
    assert blocks(text) == ["curl x \\\n  -d y\n", "curl z\n"]


def test_the_example_of_curl(server):
    ran = subprocess.run([ROOT / "examples" / "curl.sh", server.url], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for part in ("event: done", "[DONE]", "choice_scores", '"param":"beam_width"', "sidereal:num_requests_running"):
        assert part in ran.stdout, (part, ran.stdout)


def test_the_example_of_python(server):
    command = [sys.executable, ROOT / "examples" / "client.py", "--url", f"{server.url}/v1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "tokens)" in ran.stdout and "temperature" in ran.stdout.splitlines()[-1], ran.stdout
