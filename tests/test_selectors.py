"""Which real images a step compares with, where classes are of different sizes."""

import torch

from gendistil.data.datasets import Split
from gendistil.matching.selectors import Dream, Uniform

SIZES = (30, 8, 50, 4)


class Points:
    """A pool in whose eyes an image is its own first values."""

    def __init__(self, split):
        self.split, self.seen = split, []

    def draw(self, generator):
        return "the network"

    def embed(self, network, rows):
        self.seen.append(rows)
        return self.split.images[rows].float()


def dream(split, classes, pool, candidates):
    selector = Dream(split, classes, 8, 0, interval=10, candidates=candidates)
    selector.pool = pool
    return selector


def split_of(sizes):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Split(torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0)), labels)


def test_a_class_is_used_up_before_an_image_comes_again():
    selector = Uniform(split_of(SIZES), len(SIZES), 20, 0)
    assert torch.equal(selector.indices(torch.arange(4), 3), selector.indices([0, 1, 2, 3], 3))
    for label, rows in enumerate(selector.indices(torch.arange(4), 3)):
        count = rows.bincount()[rows.unique()]
        assert len(rows) == 20
        assert len(rows.unique()) == min(20, SIZES[label])
        assert count.max() - count.min() <= 1


def test_dream_takes_an_image_of_every_cluster():
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(8)
    images = centres.repeat_interleave(5, 0) + 0.01 * torch.randn(40, 8, generator=draw)
    split = Split(images, torch.zeros(40, dtype=torch.int64))
    chosen, = dream(split, 1, Points(split), 40).indices([0], 0)
    assert len(chosen.div(5, rounding_mode="floor").unique()) == 8


def test_a_small_class_leaves_the_choice_of_the_others_as_it_is():
    split = split_of(SIZES)
    pool = Points(split)
    selector = dream(split, len(SIZES), pool, 40)
    classes = torch.tensor([3, 2, 0, 1])
    rows, later = selector.indices(classes, 0), selector.indices(classes, 1)
    assert (split.labels[rows] == classes[:, None]).all()
    assert sorted(len(rows) for rows in pool.seen) == [30, 40]  # of classes that have more than are wanted
    assert torch.equal(rows[1:3], later[1:3])  # clustered
    assert not torch.equal(rows[0], later[0])  # drawn anew
    assert sorted(rows[3].tolist()) == list(range(30, 38))  # all of them
    alike = split_of((30, 30, 30))
    pool = Points(alike)
    dream(alike, 3, pool, 20).indices(torch.arange(3), 0)
    assert [len(rows) for rows in pool.seen] == [60]  # classes of one size are clustered together
