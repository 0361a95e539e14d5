"""Requests made from the OpenAPI document, good and bad ones: nothing fails on the server's side, nothing hangs, nothing is left behind."""

import pathlib
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


def test_no_request_breaks_the_server():
    with Server() as server:
        command = [
            pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json",
            "--checks", "not_a_server_error,response_schema_conformance,content_type_conformance",
            "--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1",
            "--request-timeout", str(SECONDS), "--continue-on-failure", "--no-color", "--suppress-health-check", "all",
        ]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
        assert server.process.poll() is None
        server.until("no request is left", server.idle)
        assert server.metric("sidereal:gate_violations_total") == 0
        answer = server.post("/v1/items", {"prompt": "harbour", "n": 1})
        assert len(answer["items"]) == 1
