"""Samples side by side in rows of one length.

A row holds several samples, and position ids begin anew with each: transformers makes a block-diagonal mask of that, so that no
sample sees another. Rows of one length keep all shapes static, and torch.compile compiles once.
"""

import json
from pathlib import Path

import torch
from torch.utils.data import Dataset

IGNORED = -100  # label of a token that is not learnt


def read_samples(path: Path, eos: int, answer_only: bool) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each line {"prompt_token_ids", "answer_token_ids"}; an answer ends with `eos`.

    The first token is never learnt: in a row nothing of its own sample comes before it.
    """
    samples = []
    with open(path) as lines:
        for line in lines:
            sample = json.loads(line)
            prompt, answer = sample["prompt_token_ids"], sample["answer_token_ids"]
            if answer[-1] != eos:
                answer = answer + [eos]
            ids = prompt + answer
            learnt = len(prompt) if answer_only else 1
            samples.append((ids, [IGNORED] * learnt + ids[learnt:]))
    return samples


class PackedRows(Dataset):
    """Rows of `length` tokens; what is longer is left out (`left_out`), what is free is padding (`tokens` are not)."""

    def __init__(self, samples: list[tuple[list[int], list[int]]], length: int, pad: int):
        kept = [sample for sample in samples if len(sample[0]) <= length]
        rows = best_fit([len(ids) for ids, _ in kept], length)
        self.left_out = len(samples) - len(kept)
        self.tokens = sum(len(ids) for ids, _ in kept)
        shape = (len(rows), length)
        self.input_ids = torch.full(shape, pad, dtype=torch.int32)
        self.labels = torch.full(shape, IGNORED, dtype=torch.int32)
        self.position_ids = torch.zeros(shape, dtype=torch.int32)
        for row, members in enumerate(rows):
            at = 0
            for member in members:
                ids, labels = kept[member]
                to = slice(at, at + len(ids))
                self.input_ids[row, to] = torch.tensor(ids)
                self.labels[row, to] = torch.tensor(labels)
                self.position_ids[row, to] = torch.arange(len(ids))
                at += len(ids)
            self.position_ids[row, at:] = torch.arange(length - at)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        names = ("input_ids", "labels", "position_ids")
        return {name: getattr(self, name)[row].long() for name in names}


def best_fit(sizes: list[int], length: int) -> list[list[int]]:
    """Members of each row: the longest first, each into the fullest row that has room."""
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by their free tokens
    rows: list[list[int]] = []
    for member in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        size = sizes[member]
        free = next((free for free in range(size, length) if with_room[free]), length)
        if free == length:
            rows.append([])
            row = len(rows) - 1
        else:
            row = with_room[free].pop()
        rows[row].append(member)
        with_room[free - size].append(row)
    return rows
