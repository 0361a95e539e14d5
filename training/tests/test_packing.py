"""Packed rows are the samples alone, side by side."""

import json
import random
import shutil

import pytest
import torch
from conftest import write_samples
from packing import IGNORED, PackedRows, best_fit, read_samples, sample_of
from transformers import AutoModelForCausalLM

EOS, PAD = 2, 0


def some_samples(count: int, draw: random.Random) -> list[tuple[list[int], list[int]]]:
    def ids(most: int) -> list[int]:
        return [draw.randrange(3, 290) for _ in range(draw.randint(1, most))]

    return [(ids(20), ids(9) + [EOS]) for _ in range(count)]


def test_labels_cover_exactly_the_answer(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5, 6, 7], [8, 9, EOS])])
    (sample,) = read_samples(path, EOS, answer_only=True)
    assert (sample.ids, sample.labels) == ([5, 6, 7, 8, 9, EOS], [IGNORED] * 3 + [8, 9, EOS])
    assert (sample.positions, sample.branches) == (list(range(6)), [0, 0, 1, 1, 1, 1])
    assert sample.reaches == [2] * 6


def test_every_answer_is_learnt_behind_the_prompt():
    sample = sample_of([([5, 6, 7], [8, 9, EOS]), ([5, 6, 7], [3, 4])])
    assert sample.ids == [5, 6, 7, 8, 9, EOS, 7, 3, 4]
    assert sample.labels == [IGNORED] * 3 + [8, 9, EOS] + [IGNORED, 3, 4]
    assert sample.positions == [0, 1, 2, 3, 4, 5, 2, 3, 4]
    assert sample.branches == [0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_prompts_that_begin_alike_share_it(tmp_path):
    path = tmp_path / "samples.jsonl"
    others = [{"prompt_token_ids": [5, 6, 9], "answer_token_ids": [3]}, {"prompt_token_ids": [4, 6], "answer_token_ids": [3, 4]}]
    path.write_text(json.dumps({"prompt_token_ids": [5, 6, 7, 9], "answer_token_ids": [8, EOS], "others": others}))
    (sample,) = read_samples(path, EOS, answer_only=True)
    assert sample.ids == [5, 6, 7] + [9, 8, EOS] + [9, 3] + [4, 6, 3, 4]
    assert sample.positions == [0, 1, 2] + [3, 4, 5] + [2, 3] + [0, 1, 2, 3]
    assert sample.reaches == [3] * 6 + [2] * 2 + [0] * 4
    assert [id for id, label in zip(sample.ids, sample.labels) if label != IGNORED] == [8, EOS, 3, 3, 4]


def test_language_labels_cover_all_but_the_first_token(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5, 6], [8, EOS]), ([5], [8, EOS])])
    assert [sample.labels for sample in read_samples(path, EOS, answer_only=False)] == [[IGNORED, 6, 8, EOS], [IGNORED, 8, EOS]]


def test_an_answer_without_an_end_is_given_one(tmp_path):
    path = write_samples(tmp_path / "samples.jsonl", [([5], [8])])
    (sample,) = read_samples(path, EOS, answer_only=True)
    assert (sample.ids, sample.labels) == ([5, 8, EOS], [IGNORED, 8, EOS])


@pytest.mark.parametrize("length", [1, 7, 30, 64])
def test_every_sample_is_in_one_row(length):
    draw = random.Random(length)
    sizes = [draw.randint(1, length) for _ in range(300)]
    rows = best_fit(sizes, length)
    assert sorted(member for row in rows for member in row) == list(range(300))
    assert all(sum(sizes[member] for member in row) <= length for row in rows)


def test_what_is_too_long_is_counted():
    rows = PackedRows([sample_of([([1], [1] * size)]) for size in (8, 7, 2)], 8, PAD)
    assert (len(rows), rows.left_out, rows.tokens) == (2, 1, 11)


def losses(network, samples, rows) -> tuple[float, float]:
    """Summed loss of each answer alone, and of the rows."""

    def loss(ids, labels, **how):
        return network(input_ids=ids, labels=labels, num_items_in_batch=torch.tensor(1), **how).loss.item()

    alone = 0.0
    for pairs in samples:
        for prompt, answer in pairs:
            alone += loss(torch.tensor([prompt + answer]), torch.tensor([[IGNORED] * len(prompt) + answer]))
    row = [rows[at] for at in range(len(rows))]
    stacked = {name: torch.stack([one[name] for one in row]) for name in row[0]}
    return alone, loss(stacked.pop("input_ids"), stacked.pop("labels"), **stacked)


@pytest.fixture
def answered():
    """Prompts with one to five answers, some of these of prompts that begin alike."""
    draw = random.Random(1)

    def others(at: int, prompt: list[int]):
        for turn in range(at % 5):
            kept = draw.randint(0, len(prompt)) if turn % 2 else len(prompt)
            tail = [draw.randrange(3, 290) for _ in range(draw.randint(1, 4))] if turn % 2 else []
            yield prompt[:kept] + tail, [draw.randrange(3, 290) for _ in range(3)]

    return [[(prompt, answer), *others(at, prompt)] for at, (prompt, answer) in enumerate(some_samples(40, draw))]


def packed(answered, additive: bool = True) -> PackedRows:
    return PackedRows([sample_of(pairs) for pairs in answered], 128, PAD, additive)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_lose_what_answers_lose_alone(base, answered, attention):
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention).eval()
    alone, rows = losses(network, answered, packed(answered, additive=attention == "eager"))
    assert rows == pytest.approx(alone, rel=1e-5)


def test_packing_changes_no_logits(base):
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    samples = some_samples(6, random.Random(2))
    length = sum(len(prompt) + len(answer) for prompt, answer in samples) + 3
    row = PackedRows([sample_of([(prompt, answer)]) for prompt, answer in samples], length, PAD)[0]
    with torch.no_grad():
        together = network(**{name: value[None] for name, value in row.items() if name != "labels"}).logits[0]
        at = 0
        for ids in sorted((prompt + answer for prompt, answer in samples), key=lambda ids: -len(ids)):
            alone = network(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(together[at : at + len(ids)], alone, rtol=1e-5, atol=1e-6)
            at += len(ids)


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled_rows_lose_what_answers_lose_alone(base, answered):
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    alone, _ = losses(network, answered, packed(answered))
    with torch.no_grad():
        _, compiled = losses(torch.compile(network), [], packed(answered))
    assert compiled == pytest.approx(alone, rel=1e-5)
