"""What PyTorch and transformers make of the GPU, at the shapes of `cargo bench --features cuda --bench kernels` and of `sidereal bench model`.

    python benches/peers/gpu.py                      every part, as a table
    python benches/peers/gpu.py products sid         some of them
    python benches/peers/gpu.py --device cpu --tiny  shows that it runs; no figure means anything

Parts: `products` (cuBLASLt behind torch.matmul), `attention` (scaled_dot_product_attention, contiguous keys), `sid` (log-softmax, mask from the
trie, top-k: what published methods do for one step of constrained beam search, eager and compiled; and compiled without the mask), `request` (transformers' constrained beam
search, host included; left out where transformers is not installed). Operands are random and rotate through more memory than the level-2 cache
holds; a figure is the median of rounds, each of which replays a graph of many launches between two events, so that the host has no part in it. Pins: torch 2.x, transformers 5.23.0.
"""

import argparse
import itertools
import statistics
import time

import torch
import torch.nn.functional as F

L2_BYTES = 64 << 20


def sets_for(size: int) -> int:
    return min(64, 4 * L2_BYTES // max(size, 1) + 2)


class Clock:
    """Times calls; prints a row of the table for each."""

    def __init__(self, device: str, rounds: int):
        self.device, self.rounds = device, rounds

    def row(self, name: str, sets: int, call) -> None:
        """`call(set)` enqueues one of what is measured."""
        calls = max(sets, 8)
        for i in range(min(3, calls)):
            call(i % sets)

        def all_calls() -> None:
            for i in range(calls):
                call(i % sets)

        if self.device == "cuda":
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                all_calls()
            graph.replay()
        # Many replays between two events: starting a graph takes microseconds.
        replays = 20 if self.device == "cuda" else 1

        def run() -> None:
            for _ in range(replays):
                graph.replay() if self.device == "cuda" else all_calls()

        self.print(name, [self.once(run) / (calls * replays) for _ in range(self.rounds)])

    def once(self, run) -> float:
        """Seconds."""
        if self.device == "cpu":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def print(self, name: str, times: list[float]) -> None:
        us = [1e6 * time for time in times]
        print(f"| {name} | {statistics.median(us):.2f} | {min(us):.2f}-{max(us):.2f} |", flush=True)


def products(clock: Clock, tiny: bool) -> None:
    matrices = [(64, 32)] if tiny else [(12288, 2048), (2048, 6144), (28672, 4096), (4096, 14336)]
    for rows in [1, 4] if tiny else [1, 8, 16, 32, 64, 256, 2048, 8192]:
        for n, k in matrices:
            sets = 2 if tiny else sets_for(2 * n * k)
            w = [torch.randn(n, k, device=clock.device, dtype=torch.bfloat16) for _ in range(sets)]
            x = torch.randn(rows, k, device=clock.device, dtype=torch.bfloat16)
            clock.row(f"product/{rows}x{n}x{k}", sets, lambda i: x @ w[i].T)


def attention(clock: Clock, tiny: bool) -> None:
    heads, kv_heads, dim = (4, 2, 16) if tiny else (32, 8, 128)
    cases = [("decode", 2, 64), ("prefill", 1, 32)] if tiny else [
        ("decode", 1, 1024), ("decode", 1, 4096), ("decode", 8, 1024), ("decode", 32, 1024), ("decode", 32, 4096), ("decode", 128, 1024),
        ("prefill", 1, 1024), ("prefill", 1, 4096), ("prefill", 8, 1024),
    ]  # fmt: skip
    for what, batch, keys in cases:
        rows = 1 if what == "decode" else keys
        sets = 2 if tiny else sets_for(4 * batch * keys * kv_heads * dim)
        random = lambda heads, rows: torch.randn(batch, heads, rows, dim, device=clock.device, dtype=torch.bfloat16)  # noqa: E731
        q = random(heads, rows)
        kv = [(random(kv_heads, keys), random(kv_heads, keys)) for _ in range(sets)]
        causal = what == "prefill"
        clock.row(
            f"attention/{what}/{batch}x{keys}", sets,
            lambda i: F.scaled_dot_product_attention(q, *kv[i], is_causal=causal, enable_gqa=True),
        )  # fmt: skip


class Trie:
    """Two levels of a trie of random SIDs, as compressed rows on the device: children of each first code."""

    def __init__(self, items: int, codes: int, skew: float, device: str):
        generator = torch.Generator().manual_seed(7)
        weights = 1.0 / torch.arange(1, codes + 1, dtype=torch.float64) ** skew
        draw = lambda: torch.multinomial(weights, items, replacement=True, generator=generator)  # noqa: E731
        pairs = torch.unique(draw() * codes + draw())  # sorted
        first = pairs // codes
        self.codes = codes
        self.begin = torch.searchsorted(first, torch.arange(codes + 1)).to(device)
        self.child = (pairs % codes).to(device)
        self.below = torch.bincount(first, minlength=codes).double()

    def nodes(self, count: int, seed: int) -> torch.Tensor:
        """First codes of random pairs, all different."""
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.below, count, generator=generator).to(self.begin.device)


def sid(clock: Clock, tiny: bool) -> None:
    """The second code of `searches` beam searches of width `width`."""
    skews = (("uniform", 0.0), ("zipf0.8", 0.8), ("zipf1.0", 1.0))
    tries = [(2000, 64, [(2, 8)])] if tiny else [(10_000_000, 8192, [(32, 64), (1, 256), (4, 256), (2, 70)]), (10_000_000, 2048, [(2, 70)])]
    for (items, codes, shapes), (skew_name, skew) in itertools.product(tries, skews):
        trie = Trie(items, codes, skew, clock.device)
        for searches, width in shapes:
            rows = searches * width
            sets = 2 if tiny else 3
            logits = [4 * torch.randn(rows, codes, device=clock.device) for _ in range(sets)]
            nodes = [torch.cat([trie.nodes(width, set * searches + s) for s in range(searches)]) for set in range(sets)]
            scores = torch.randn(rows, 1, device=clock.device)
            widest = int((trie.begin[1:] - trie.begin[:-1]).max())
            steps = torch.arange(widest, device=clock.device)

            def free(logits):
                return (scores + logits.log_softmax(-1)).view(searches, width * codes).topk(width)

            def step(logits, nodes):
                begin, end = trie.begin[nodes, None], trie.begin[nodes + 1, None]
                at = begin + steps
                children = torch.where(at < end, trie.child[at.clamp(max=len(trie.child) - 1)], codes)
                allowed = torch.zeros(rows, codes + 1, dtype=torch.bool, device=logits.device).scatter_(1, children, True)[:, :codes]
                total = (scores + logits.log_softmax(-1)).masked_fill(~allowed, float("-inf"))
                return total.view(searches, width * codes).topk(width)

            name = f"sid_step/{searches}xw{width}/v{codes}x{3 if codes == 8192 else 8}/{skew_name}/level1"
            clock.row(f"{name}/eager", sets, lambda i: step(logits[i], nodes[i]))
            torch._dynamo.reset()  # one code object, many shapes: else it gives up compiling after eight
            compiled, compiled_free = torch.compile(step, dynamic=False), torch.compile(free, dynamic=False)
            clock.row(f"{name}/compiled", sets, lambda i: compiled(logits[i], nodes[i]))
            if skew_name == "uniform":
                clock.row(f"{name}/compiled, unconstrained", sets, lambda i: compiled_free(logits[i]))


def request(clock: Clock, tiny: bool) -> None:
    """Constrained beam search of transformers: 1,000 tokens of context, three codes, width 256."""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        print("| request | transformers is not installed | |")
        return
    levels, codes, width, prompt = (3, 16, 4, 8) if tiny else (3, 8192, 256, 1000)
    text = 100 if tiny else 151_936
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    if not tiny:
        shape = dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128)
    config = Qwen3Config(vocab_size=text + levels * codes, tie_word_embeddings=True, max_position_embeddings=4096, **shape)
    with torch.device(clock.device):
        torch.set_default_dtype(torch.bfloat16)
        net = Qwen3ForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(7)
    sids = torch.randint(0, codes, (500 if tiny else 1_000_000, levels), generator=generator)
    trie: dict = {}
    for sid in (sids + text + torch.arange(levels) * codes).tolist():
        node = trie
        for token in sid:
            node = node.setdefault(token, {})

    def allowed(_, tokens):
        node = trie
        for token in tokens[prompt:].tolist():
            node = node.get(token, {})
        return list(node) or [text]

    for batch in (1, 4):
        ids = torch.randint(0, text, (batch, prompt), device=clock.device)

        def search() -> None:
            net.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=width, num_return_sequences=width, max_new_tokens=levels,
                min_new_tokens=levels, do_sample=False, prefix_allowed_tokens_fn=allowed, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip

        name = f"request/{batch}xw{width}x{levels}"
        try:
            with torch.inference_mode():
                search()
                clock.print(name, [clock.once(search) for _ in range(1 if tiny else 3)])
        except torch.cuda.OutOfMemoryError:  # it gives each beam a prompt of its own before the prefill
            print(f"| {name} | out of memory | |", flush=True)
            torch.cuda.empty_cache()


def main() -> None:
    parts = {part.__name__: part for part in (products, attention, sid, request)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *parts], metavar="PART", help=", ".join(parts))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch can use; --device cpu --tiny shows that the script runs")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n\n| measured | median us | spread |\n|---|---:|---|")
    for part in options.parts or parts:
        parts[part](Clock(options.device, options.rounds), options.tiny)


if __name__ == "__main__":
    main()
