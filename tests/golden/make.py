#!/usr/bin/env python3
"""Makes the golden models of tests/golden: tiny, random, and what transformers says of them.

    pip install transformers==5.23.0 torch safetensors numpy
    python tests/golden/make.py [NAME ...]

Each folder is an ordinary Hugging Face folder with `expected.safetensors` beside it:

    tokens         [220] int32    random token ids
    logprobs       [220, vocab]   log-softmax in float32 of a float32 run (weights as stored)
    logprobs_bf16  [220, vocab]   the same of a bfloat16 run (only where asked for)
    inv_freq       [head_dim / 2] rotary frequencies
    rope_scale     [1]            attention factor
    adapter_in/out [rows, width]  a user vector before and after the adapter (only where there is one)

`ropes.json` holds rotary frequencies for configs of published models.

Weights are drawn wide (matrices 0.18, norms 1 +- 0.25), so that logits are far from uniform and an error shows.
Some configs are rewritten with the keys of transformers 4 (rope_theta, rope_scaling, torch_dtype); every folder is
loaded again after that and must give the same log-probabilities.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

assert transformers.__version__ == "5.23.0", transformers.__version__
HERE = pathlib.Path(__file__).parent
POSITIONS = 220
VOCAB = 128
torch.set_num_threads(1)

SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=256,
    attn_implementation="eager",
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


def small(**changes):
    return {**SMALL, **changes}


def rope(kind="default", theta=10000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


# name -> (config, dtype, extras)
MODELS = {
    "llama2": (
        LlamaConfig(**small(num_key_value_heads=3, rope_parameters=rope(), rms_norm_eps=1e-5)),
        torch.bfloat16,
        {"old_keys"},
    ),
    "llama3": (
        LlamaConfig(
            **small(
                hidden_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=3,
                intermediate_size=72,
                rms_norm_eps=1e-5,
                eos_token_id=[2, 3, 5],
                rope_parameters=rope(
                    "llama3",
                    500000.0,
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=64,
                ),
            )
        ),
        torch.bfloat16,
        {"old_keys", "bf16"},
    ),
    "llama_linear": (
        LlamaConfig(**small(rope_parameters=rope("linear", factor=2.5))),
        torch.float32,
        set(),
    ),
    "llama_f16_bias": (
        LlamaConfig(**small(attention_bias=True, rope_parameters=rope(), head_dim=32)),
        torch.float16,
        set(),
    ),
    "qwen2_window": (
        Qwen2Config(
            **small(
                num_hidden_layers=3,
                intermediate_size=64,
                use_sliding_window=True,
                sliding_window=40,
                max_window_layers=1,
                rope_parameters=rope(theta=1000000.0),
            )
        ),
        torch.bfloat16,
        set(),
    ),
    "qwen2_yarn": (
        Qwen2Config(
            **small(
                num_attention_heads=2,
                hidden_size=64,
                tie_word_embeddings=True,
                rope_parameters=rope(
                    "yarn", 10000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=16, beta_slow=1
                ),
            )
        ),
        torch.bfloat16,
        {"old_keys"},
    ),
    "qwen3": (
        Qwen3Config(
            **small(
                hidden_size=64,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                tie_word_embeddings=True,
                rope_parameters=rope(theta=1000000.0),
            )
        ),
        torch.bfloat16,
        {"bf16", "beams"},
    ),
    "qwen3_sharded": (
        Qwen3Config(
            **small(
                hidden_size=40,
                num_attention_heads=6,
                num_key_value_heads=2,
                head_dim=16,
                num_hidden_layers=3,
                rope_parameters=rope(),
            )
        ),
        torch.bfloat16,
        {"shards", "adapter"},
    ),
    "mistral": (
        MistralConfig(**small(sliding_window=37, head_dim=16, rope_parameters=rope())),
        torch.bfloat16,
        {"old_keys"},
    ),
}


def fill(model, seed):
    """Draws the weights: wide, and norms that are not 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if "norm" in name:
                p.copy_(1 + 0.25 * noise)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(0.3 * noise)
            else:
                p.copy_(0.18 * noise)


def round_weights(model, dtype):
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(dtype).float())


@torch.no_grad()
def logprobs(model, tokens):
    return torch.log_softmax(model(tokens[None]).logits[0].float(), -1)


def use_old_keys(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    # Both spellings of the kind occur in the wild.
    key = "type" if kind == "yarn" else "rope_type"
    config["rope_scaling"] = None if kind == "default" else {key: kind, **parameters}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def add_adapter(folder, hidden, expected, seed):
    draw = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(24, 36), torch.nn.GELU(), torch.nn.Linear(36, hidden))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=draw))
        x = 2 * torch.randn((5, 24), generator=draw)
        expected["adapter_in"] = x
        expected["adapter_out"] = net(x).contiguous()
    save_file({f"adapter.{k}": v.contiguous() for k, v in net.state_dict().items()}, folder / "adapter.safetensors")


# Two types of three levels with eight codes each; opener and closer before them.
OPEN, CLOSE, FIRST, CODES, LEVELS, TYPES = 60, 61, 64, 8, 3, ["book", "film"]


def token(kind, level, code):
    return FIRST + (kind * LEVELS + level) * CODES + code


def make_catalog(folder):
    """A trie that is dense in some places and a single path in others."""
    draw = np.random.default_rng(11)
    sids = []
    for kind, name in enumerate(TYPES):
        seen = set()
        while len(seen) < (70 if kind == 0 else 25):
            # Squares crowd the small codes; film has no first code above 4.
            c = (draw.random(LEVELS) ** 2 * CODES).astype(int)
            c[0] = c[0] if kind == 0 else c[0] % 5
            seen.add(tuple(int(v) for v in c))
        sids += [(kind, name, s) for s in sorted(seen)]
    with open(folder / "catalog.jsonl", "w") as out:
        for i, (_, name, sid) in enumerate(sids):
            row = {"id": f"{name}:{i}", "type": name, "title": f"{name} {i}", "popularity": i % 7, "sid": list(sid)}
            out.write(json.dumps(row) + "\n")
    layout = {
        "open": "<|sid_begin|>",
        "close": "<|sid_end|>",
        "types": [{"name": n, "levels": [CODES] * LEVELS, "token": f"<{n}_{{level}}_{{code}}>"} for n in TYPES],
    }
    (folder / "sid_layout.json").write_text(json.dumps(layout, indent=2) + "\n")
    vocabulary = {"<|sid_begin|>": OPEN, "<|sid_end|>": CLOSE}
    for kind, name in enumerate(TYPES):
        for level in range(LEVELS):
            for code in range(CODES):
                vocabulary[f"<{name}_{level}_{code}>"] = token(kind, level, code)
    return sids, vocabulary


def make_beams(folder, model):
    """Beam search of transformers with a prefix constraint, score: the whole vocabulary, no length penalty."""
    sids, vocabulary = make_catalog(folder)
    paths = {tuple(token(k, level, c) for level, c in enumerate(s)): (n, s) for k, n, s in sids}
    children = {}
    for path in paths:
        for level in range(LEVELS):
            children.setdefault(path[:level], set()).add(path[level])
    draw = np.random.default_rng(12)
    cases = []
    for width, length in [(1, 9), (4, 30), (8, 17), (32, 40), (32, 5), (128, 21)]:
        prompt = [int(t) for t in draw.integers(3, 60, length)] + [OPEN]

        def allowed(_, ids):
            return sorted(children[tuple(ids.tolist()[len(prompt):])])

        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=LEVELS,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            renormalize_logits=False,
            length_penalty=0.0,
            early_stopping=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences, scores = out.sequences, getattr(out, "sequences_scores", None)
        if scores is None:  # one beam is greedy search: score it by hand
            full = logprobs(model, sequences[0])
            scores = [sum(full[len(prompt) - 1 + i, sequences[0, len(prompt) + i]] for i in range(LEVELS))]
        found = []
        for sequence, score in zip(sequences.tolist(), scores):
            if float(score) < -1e6:
                continue  # a filler: fewer continuations than beams
            name, sid = paths[tuple(sequence[len(prompt):])]
            found.append({"type": name, "sid": list(sid), "score": float(score)})
        best = [f["score"] for f in found]
        assert best == sorted(best, reverse=True)
        assert len({(f["type"], tuple(f["sid"])) for f in found}) == len(found) > 0
        gap = min((a - b for a, b in zip(best, best[1:])), default=9.0)
        print(f"  beams {width}: {len(found)} paths, smallest gap {gap:.1e}")
        cases.append({"width": width, "prompt": prompt, "paths": found})
    text = json.dumps({"score": "vocabulary", "tokens": vocabulary, "cases": cases}, separators=(",", ":"))
    (folder / "beams.json").write_text(text.replace('{"width"', '\n{"width"') + "\n")


def make(name, seed):
    config, dtype, extras = MODELS[name]
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    fill(model, seed)
    model.tie_weights()
    round_weights(model, dtype)
    tokens = torch.randint(0, VOCAB, (POSITIONS,), generator=torch.Generator().manual_seed(seed))
    reference = logprobs(model, tokens)
    rotary = model.model.rotary_emb
    expected = {
        "tokens": tokens.int(),
        "logprobs": reference,
        "inv_freq": rotary.inv_freq.float().clone(),
        "rope_scale": torch.tensor([rotary.attention_scaling], dtype=torch.float32),
    }
    if "adapter" in extras:
        add_adapter(folder, config.hidden_size, expected, seed)
    if "beams" in extras:
        make_beams(folder, model)
    wide = (logprobs(model.double(), tokens) - reference).abs().max()
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB" if "shards" in extras else "1GB")
    if "old_keys" in extras:
        use_old_keys(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    difference = (logprobs(again, tokens) - reference).abs().max()
    assert difference <= 1e-5, f"{name}: the saved model differs by {difference}"
    assert torch.allclose(again.model.rotary_emb.inv_freq, expected["inv_freq"], rtol=0, atol=0)
    coarse = float("nan")
    if "bf16" in extras:
        half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval()
        expected["logprobs_bf16"] = logprobs(half, tokens).contiguous()
        coarse = (expected["logprobs_bf16"] - reference).abs().mean()
    save_file(expected, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    spread = reference.max(-1).values.mean()
    print(f"{name}: {size / 1024:.0f} KiB, float64 differs by {wide:.1e}, bf16 by {coarse:.1e}, best {spread:.2f}")


# Ropes as they occur in published models, in old and new spelling; no weights needed.
YARN = dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768)
ROPES = {
    "llama 3.1": dict(
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "llama 3.2": dict(
        head_dim=64,
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500000.0,
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "qwen3": dict(rope_theta=1000000, rope_scaling=None),
    "qwen2.5 yarn": dict(
        rope_theta=1000000.0, rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32768)
    ),
    "yarn without truncation": dict(rope_parameters={**YARN, "truncate": False, "beta_fast": 24, "beta_slow": 2}),
    "yarn with mscale": dict(rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn with one mscale": dict(rope_parameters={**YARN, "mscale": 0.707}),
    "yarn with attention factor": dict(rope_parameters={**YARN, "attention_factor": 1.25}),
    "yarn, original length beside": dict(
        original_max_position_embeddings=4096,
        rope_theta=10000.0,
        rope_scaling=dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=8192),
    ),
    "linear": dict(rope_theta=10000.0, rope_scaling=dict(type="linear", factor=4.0)),
    "dynamic": dict(rope_theta=10000.0, rope_scaling=dict(type="dynamic", factor=2.0)),
    "nothing said": dict(),
}


def make_ropes():
    """Frequencies for ROPES: what is written in a config.json, and what transformers computes from it."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rows = []
    for name, keys in ROPES.items():
        written = dict(
            architectures=["LlamaForCausalLM"],
            hidden_size=4096,
            num_attention_heads=32,
            num_key_value_heads=8,
            num_hidden_layers=1,
            intermediate_size=64,
            vocab_size=8,
            rms_norm_eps=1e-5,
            bos_token_id=None,
            eos_token_id=None,
            max_position_embeddings=131072,
            **{"head_dim": 128, **keys},
        )
        rope = LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(written))))
        # A float32 has one shortest spelling that reads back as itself.
        frequencies = [float(str(np.float32(f))) for f in rope.inv_freq.tolist()]
        rows.append({"name": name, "config": written, "scale": rope.attention_scaling, "inv_freq": frequencies})
    text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / "ropes.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    if len(sys.argv) == 1 or "ropes" in sys.argv[1:]:
        make_ropes()
    for i, key in enumerate(MODELS):
        if len(sys.argv) == 1 or key in sys.argv[1:]:
            make(key, 100 + i)
