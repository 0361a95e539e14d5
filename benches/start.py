"""From the start of `sidereal serve` to its first "ready", and to its first token, on a model folder of random weights in the page cache.

    python benches/start.py --sidereal target/release/sidereal --shape 0.6b
    python benches/start.py --sidereal target/gpu/sidereal --shape 1.7b --device cuda

The folder has the shape of a Qwen3 and the built-in demonstration's tokenizer; it is written anew, so that its pages are in memory, and removed afterwards.
Python's standard library is enough.
"""

import argparse
import http.client
import json
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# hidden, feed-forward, layers, heads, key/value heads, head_dim, vocabulary
SHAPES = {
    "tiny": (256, 768, 4, 8, 4, 32, 4096),
    "0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
    "1.7b": (2048, 6144, 28, 16, 8, 128, 151_936),
    "8b": (4096, 12_288, 36, 32, 8, 128, 151_936),
}
TOKENIZER = pathlib.Path(__file__).parent.parent / "src/demo/model"
GIVE_UP = 120.0


def tensors(shape: tuple[int, ...]):
    """Names and sizes of all parameters; embeddings are tied."""
    hidden, ffn, layers, heads, kv_heads, dim, vocab = shape
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", (hidden,)
        yield f"{name}.self_attn.q_norm.weight", (dim,)
        yield f"{name}.self_attn.k_norm.weight", (dim,)
        yield f"{name}.self_attn.q_proj.weight", (heads * dim, hidden)
        yield f"{name}.self_attn.k_proj.weight", (kv_heads * dim, hidden)
        yield f"{name}.self_attn.v_proj.weight", (kv_heads * dim, hidden)
        yield f"{name}.self_attn.o_proj.weight", (hidden, heads * dim)
        yield f"{name}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{name}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{name}.mlp.down_proj.weight", (hidden, ffn)


def pattern() -> bytes:
    """bf16 of sizes between 2^-7 and 2^-5 and of both signs: 8 MB that are written over and over."""
    draw = random.Random(7).randbytes
    values = bytearray(8 << 20)
    values[0::2] = draw(4 << 20)
    values[1::2] = draw(4 << 20).translate(bytes(0x3C | bits & 0x80 for bits in range(256)))
    return bytes(values)


def write_model(folder: pathlib.Path, shape: tuple[int, ...]) -> int:
    """Bytes of the weights."""
    hidden, ffn, layers, heads, kv_heads, dim, vocab = shape
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    config = json.loads((TOKENIZER / "config.json").read_text())
    config.update(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim,
        vocab_size=vocab, max_position_embeddings=40_960, tie_word_embeddings=True, layer_types=["full_attention"] * layers, max_window_layers=layers,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, size = {}, 0
    for name, dims in tensors(shape):
        count = dims[0] * (dims[1] if len(dims) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [size, size + 2 * count]}
        size += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = pattern()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
    return size


def get(port: int, method: str, path: str, body: dict | None = None) -> int:
    """Status of the answer; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


def start(command: list[str], port: int) -> tuple[float, float]:
    """Seconds to ready, and to the first token."""
    begin = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while get(port, "GET", "/readyz") != 200:
            if server.poll() is not None:
                raise SystemExit(f"the server ended with {server.returncode}:\n{server.stderr.read()}")
            if time.perf_counter() - begin > GIVE_UP:
                raise SystemExit(f"not ready after {GIVE_UP:.0f} s")
            time.sleep(0.001)
        ready = time.perf_counter() - begin
        status = get(port, "POST", "/v1/completions", {"prompt": "A film by", "max_tokens": 1, "temperature": 0})
        if status != 200:
            raise SystemExit(f"the first token: HTTP {status}")
        return ready, time.perf_counter() - begin
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidereal", required=True, help="the binary")
    parser.add_argument("--shape", default="0.6b", choices=SHAPES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", help="where the model is written [default: the system's folder for temporary files]")
    options = parser.parse_args()
    # Whoever ends this program gets the folder removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write_model(pathlib.Path(folder), SHAPES[options.shape])
        command = [options.sidereal, "serve", "--model", folder, "--device", options.device, "--port", str(port)]
        times = [start(command, port) for _ in range(options.repeat)]
    for what, seconds in zip(("ready", "first token"), zip(*times)):
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"start to {what}, {options.shape} ({size / 1e9:.2f} GB) on {options.device}: median {statistics.median(seconds):.3f} s of {len(seconds)}, {spread}")


if __name__ == "__main__":
    main()
