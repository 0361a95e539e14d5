"""Requests made from the OpenAPI document, good and bad ones: nothing fails on the server's side, nothing hangs, nothing is left behind."""

import os
import pathlib
import re
import subprocess
import sys

from served import Server

EXAMPLES = 60
SECONDS = 20


def test_the_document_is_one(server):
    document = server.get("/openapi.json")
    assert document["openapi"].startswith("3.")
    for path in ("/v1/items", "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/catalog", "/tokenize", "/detokenize", "/version"):
        assert path in document["paths"], path
    # Every reference leads somewhere.
    text = str(document)
    for name in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"], name


def run(server: Server, *options: str) -> None:
    """Runs schemathesis; lines of JSON, which it does not write, are test_batch.py's."""
    command = [
        pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json", "--exclude-path", "/v1/batch",
        "--checks", "not_a_server_error,response_schema_conformance,content_type_conformance", "--seed", "1",
        "--request-timeout", str(SECONDS), "--continue-on-failure", "--no-color", "--suppress-health-check", "all", *options,
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment, cwd=server.folder)
    assert ran.returncode == 0, ran.stdout[-12000:] + ran.stderr[-2000:]


def test_no_request_breaks_the_server():
    with Server() as server:
        run(server, "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", str(EXAMPLES))
        # As many again of good ones, so that they get to the engine.
        run(server, "--phases", "fuzzing", "--mode", "positive", "--max-examples", str(EXAMPLES))
        assert server.process.poll() is None
        server.until("no request is left", server.idle)
        assert server.metric("sidereal:gate_violations_total") == 0
        for route in ("/v1/items", "/v1/chat/completions", "/v1/completions", "/tokenize"):
            answered = re.search(rf'sidereal:http_requests_total{{handler="{route}",status="200"}} (\d+)', server.get("/metrics"))
            assert answered and int(answered[1]) >= EXAMPLES // 4, f"hardly a request of {route} got to the engine"
        answer = server.post("/v1/items", {"prompt": "harbour", "n": 1})
        assert len(answer["items"]) == 1
