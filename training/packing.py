"""Samples side by side in rows of one length, and answers of prompts that begin alike side by side in a sample.

A row holds several samples; a token sees what comes before it in its own sample. Of a prompt with several right answers (a search that
many works fit), and of prompts that begin alike (a history, and shorter pieces of it), what they share stands there once: each
answer has a branch of its own, with the rest of its prompt, and sees as much of the shared tokens as its prompt has, and itself, not the
other answers. Position ids are those that each answer would have alone. Rows of one length keep all shapes static, and torch.compile
compiles once.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

IGNORED = -100  # label of a token that is not learnt


class Sample(NamedTuple):
    """Per token: its id, its label, its position, its branch (0 for what is shared, else the answer's number), and how many of the shared
    tokens it sees at most."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    branches: list[int]
    reaches: list[int]


def sample_of(pairs: list[tuple[list[int], list[int]]], answer_only: bool = True) -> Sample:
    """Of prompts and answers; what they share is taken from the first prompt, all but its last token, which begins the first answer's branch.

    Never learnt is what follows no token of its own in the row: the first token, and the first of each branch but the first, where it is of a prompt."""
    shared = pairs[0][0][:-1]
    ids, labels = list(shared), [IGNORED if answer_only or at == 0 else id for at, id in enumerate(shared)]
    positions, branches, reaches = list(range(len(shared))), [0] * len(shared), [len(shared)] * len(shared)
    for branch, (prompt, answer) in enumerate(pairs, 1):
        reach = alike(shared, prompt[:-1])
        own = prompt[reach:]
        ids += own + answer
        labels += [IGNORED if answer_only or at == 0 and (branch > 1 or reach == 0) else id for at, id in enumerate(own)] + answer
        positions += range(reach, len(prompt) + len(answer))
        branches += [branch] * (len(own) + len(answer))
        reaches += [reach] * (len(own) + len(answer))
    return Sample(ids, labels, positions, branches, reaches)


def alike(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def read_samples(path: Path, eos: int, answer_only: bool) -> list[Sample]:
    """One of each line {"prompt_token_ids", "answer_token_ids", "others"}; the answer ends with `eos`. `others`, which may be missing, are learnt
    as they are: {"answer_token_ids"}, and their "prompt_token_ids" where these are others."""
    samples = []
    with open(path) as lines:
        for line in lines:
            read = json.loads(line)
            prompt, answer = read["prompt_token_ids"], read["answer_token_ids"]
            if answer[-1] != eos:
                answer = answer + [eos]
            others = [(other.get("prompt_token_ids", prompt), other["answer_token_ids"]) for other in read.get("others", [])]
            samples.append(sample_of([(prompt, answer), *others], answer_only))
    return samples


class PackedRows(Dataset):
    """Rows of `length` tokens; what is longer is left out (`left_out`), what is free is padding (`tokens` are not).

    Masks are of booleans, or with `additive` of numbers that are added to the scores, as transformers' plain attention wants them.
    """

    def __init__(self, samples: list[Sample], length: int, pad: int, additive: bool = True):
        kept = [sample for sample in samples if len(sample.ids) <= length]
        rows = best_fit([len(sample.ids) for sample in kept], length)
        self.left_out = len(samples) - len(kept)
        self.tokens = sum(len(sample.ids) for sample in kept)
        self.additive = additive
        shape = (len(rows), length)
        self.input_ids = torch.full(shape, pad, dtype=torch.int32)
        self.labels = torch.full(shape, IGNORED, dtype=torch.int32)
        self.position_ids = torch.zeros(shape, dtype=torch.int32)
        self.branches = torch.zeros(shape, dtype=torch.int16)
        self.reaches = torch.zeros(shape, dtype=torch.int16)
        self.samples = torch.full(shape, -1, dtype=torch.int16)  # number in the row
        for row, members in enumerate(rows):
            at = 0
            for number, member in enumerate(members):
                sample = kept[member]
                to = slice(at, at + len(sample.ids))
                self.input_ids[row, to] = torch.tensor(sample.ids)
                self.labels[row, to] = torch.tensor(sample.labels)
                self.position_ids[row, to] = torch.tensor(sample.positions)
                self.branches[row, to] = torch.tensor(sample.branches, dtype=torch.int16)
                self.reaches[row, to] = torch.tensor(sample.reaches, dtype=torch.int16)
                self.samples[row, to] = number
                at += len(sample.ids)

    def __len__(self) -> int:
        return len(self.input_ids)

    def most_labels(self, rows: int) -> int:
        """No `rows` rows have more tokens to learn."""
        return int((self.labels != IGNORED).sum(1).sort(descending=True).values[:rows].sum())

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        names = ("input_ids", "labels", "position_ids")
        return {name: getattr(self, name)[row].long() for name in names} | {"attention_mask": self.mask(row)[None]}

    def mask(self, row: int) -> torch.Tensor:
        """[length, length]: what each token sees. Padding sees padding, so that no token sees nothing."""
        sample, branch = self.samples[row], self.branches[row]
        shared = (branch[None, :] == 0) & (self.position_ids[row][None, :] < self.reaches[row][:, None])
        sees = (sample[:, None] == sample[None, :]) & (shared | (branch[:, None] == branch[None, :]))
        sees = sees.tril()
        if not self.additive:
            return sees
        return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)


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
