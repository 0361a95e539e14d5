"""Packed rows are the samples alone, side by side."""

import random
import shutil

import pytest
import torch
from conftest import write_samples
from packing import IGNORED, PackedRows, best_fit, read_samples
from transformers import AutoModelForCausalLM

EOS, PAD = 2, 0


def some_samples(count: int, draw: random.Random) -> list[tuple[list[int], list[int]]]:
    def ids(most: int) -> list[int]:
        return [draw.randrange(3, 290) for _ in range(draw.randint(1, most))]

    return [(ids(20), ids(9) + [EOS]) for _ in range(count)]


def test_labels_cover_exactly_the_answer(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5, 6, 7], [8, 9, EOS])])
    assert read_samples(path, EOS, answer_only=True) == [([5, 6, 7, 8, 9, EOS], [IGNORED] * 3 + [8, 9, EOS])]


def test_language_labels_cover_all_but_the_first_token(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5, 6], [8, EOS])])
    assert read_samples(path, EOS, answer_only=False) == [([5, 6, 8, EOS], [IGNORED, 6, 8, EOS])]


def test_an_answer_without_an_end_is_given_one(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5], [8])])
    assert read_samples(path, EOS, answer_only=True) == [([5, 8, EOS], [IGNORED, 8, EOS])]


@pytest.mark.parametrize("length", [1, 7, 30, 64])
def test_every_sample_is_in_one_row(length):
    draw = random.Random(length)
    sizes = [draw.randint(1, length) for _ in range(300)]
    rows = best_fit(sizes, length)
    assert sorted(member for row in rows for member in row) == list(range(300))
    assert all(sum(sizes[member] for member in row) <= length for row in rows)


def test_what_is_too_long_is_counted():
    rows = PackedRows([([1] * 9, [1] * 9), ([1] * 8, [1] * 8), ([1] * 3, [1] * 3)], 8, PAD)
    assert (len(rows), rows.left_out, rows.tokens) == (2, 1, 11)


def losses(network, samples, rows) -> tuple[float, float]:
    """Summed loss of the samples alone, and of the rows."""
    network.config.use_cache = False  # as Trainer has it: with a cache transformers makes no mask of the position ids

    def loss(ids, labels, positions):
        out = network(input_ids=ids, labels=labels, position_ids=positions, num_items_in_batch=torch.tensor(1))
        return out.loss.item()

    alone = 0.0
    for ids, labels in samples:
        alone += loss(torch.tensor([ids]), torch.tensor([labels]), torch.arange(len(ids))[None])
    row = [rows[at] for at in range(len(rows))]
    packed = loss(*(torch.stack([one[name] for one in row]) for name in ("input_ids", "labels", "position_ids")))
    return alone, packed


@pytest.fixture
def packed(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", some_samples(40, random.Random(1)))
    samples = read_samples(path, EOS, answer_only=True)
    return samples, PackedRows(samples, 48, PAD)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_lose_what_samples_lose_alone(base, packed, attention):
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention).eval()
    alone, rows = losses(network, *packed)
    assert rows == pytest.approx(alone, rel=1e-5)


def test_packing_changes_no_logits(base):
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", use_cache=False).eval()
    samples = [(ids := prompt + answer, ids) for prompt, answer in some_samples(6, random.Random(2))]
    length = sum(len(ids) for ids, _ in samples) + 3
    row = PackedRows(samples, length, PAD)[0]
    with torch.no_grad():
        together = network(input_ids=row["input_ids"][None], position_ids=row["position_ids"][None]).logits[0]
        at = 0
        for ids, _ in sorted(samples, key=lambda sample: -len(sample[0])):
            alone = network(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(together[at : at + len(ids)], alone, rtol=1e-5, atol=1e-6)
            at += len(ids)


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled_rows_lose_what_samples_lose_alone(base, packed):
    samples, rows = packed
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    alone, _ = losses(network, *packed)
    with torch.no_grad():
        _, compiled = losses(torch.compile(network), [], rows)
    assert compiled == pytest.approx(alone, rel=1e-5)
