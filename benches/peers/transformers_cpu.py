"""Sidereal beside transformers on this machine's CPU: prefill and decode of random weights of a Qwen3 shape.

Both sides run in turns within one call, so that drifts of the machine meet both. Pins: torch 2.x, transformers 5.23.0.

    pip install torch transformers==5.23.0
    cargo build --release
    python benches/peers/transformers_cpu.py --rounds 5
"""

import argparse
import gc
import json
import statistics
import subprocess
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SHAPES = {
    "qwen3-0.6b": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28),
    "qwen3-1.7b": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28),
}


def model(name, dtype, extra_tokens):
    config = Qwen3Config(
        vocab_size=151936 + extra_tokens, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True, max_position_embeddings=40960, **SHAPES[name])
    torch.set_default_dtype(dtype)
    try:
        return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@torch.inference_mode()
def measure(net, prompt, decode):
    vocab = net.config.vocab_size
    ids = torch.randint(0, vocab, (1, prompt))
    start = time.perf_counter()
    net(ids, use_cache=True, logits_to_keep=1)
    prefill = time.perf_counter() - start
    out = net(torch.randint(0, vocab, (1, 16)), use_cache=True, logits_to_keep=1)
    steps = []
    for _ in range(decode):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        out = net(token, past_key_values=out.past_key_values, use_cache=True)
        steps.append(time.perf_counter() - start)
    return prefill * 1e3, statistics.median(steps) * 1e3


def sidereal(args, dtype):
    command = [args.binary, "bench", "model", "--random", args.shape, "--prompt", str(args.prompt), "--decode",
               str(args.decode), "--dtype", dtype, "--repeat", "1", "--beam-width", "30", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/sidereal")
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = {}

    def note(what, prefill, decode):
        rows.setdefault(what, []).append((prefill, decode))

    beams = []
    reads = []
    for _ in range(args.rounds):
        for dtype in ("f32", "bf16"):
            figures = sidereal(args, dtype)
            note(f"sidereal {dtype}", figures["prefill_ms"], figures["decode_ms"])
            reads.append((dtype, figures["decode_share_of_read"], figures["read_gb_s"]))
            beams.append((dtype, figures["beam"]["ratio"], figures["beam"]["request_ms"]))
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            net = model(args.shape, dtype, 2 + 3 * 8192)
            measure(net, args.prompt, 2)
            note(f"transformers {name}", *measure(net, args.prompt, args.decode))
            del net
            gc.collect()
    print(f"{args.shape}, random weights, prompt {args.prompt}, medians of {args.rounds} rounds in turns, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| system | prefill ms | decode ms/token | all rounds (prefill) | all rounds (decode) |\n|---|---|---|---|---|")
    for what, pairs in rows.items():
        prefill, decode = zip(*pairs)
        print(f"| {what} | {statistics.median(prefill):.0f} | {statistics.median(decode):.1f} | "
              f"{' '.join(f'{p:.0f}' for p in prefill)} | {' '.join(f'{d:.1f}' for d in decode)} |")
    for dtype in ("f32", "bf16"):
        share = [s for d, s, _ in reads if d == dtype]
        ratio = [r for d, r, _ in beams if d == dtype]
        cost = [m for d, _, m in beams if d == dtype]
        print(f"\nsidereal {dtype}: decode reads weights at {statistics.median(share):.2f} of the read bandwidth "
              f"({statistics.median([g for _, _, g in reads]):.1f} GB/s); beam 30 over 3 levels {statistics.median(cost):.0f} ms, "
              f"{statistics.median(ratio):.2f} of its prefill and 3 batched steps")


if __name__ == "__main__":
    main()
