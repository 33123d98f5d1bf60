"""Clusterings and choices of few points that stand for many, against what the published code chose and by their purpose."""

import pytest
import torch
from parity_fixtures import load_data

from gendistil.common import clustering
from gendistil.common.clustering import herding, k_center, kmeans, representatives
from gendistil.common.rng import stream

KMEANS = load_data("kmeans/kmeans")


@pytest.mark.parametrize("k", [32, 64])
def test_clustering_from_given_starts_and_inertia_of_random_ones(k):
    points = torch.from_numpy(KMEANS.arrays["features"])[None]
    cases = {c["id"]: c for c in KMEANS.json["cases"]}
    inertia = lambda centroids: float(torch.cdist(points[0].double(), centroids[0].double()).min(1).values.square().sum())
    centroids, _ = kmeans(points, k, centroids=points[:, :k])
    assert inertia(centroids) == pytest.approx(cases[f"first_k_init_k{k}"]["inertia"], rel=1e-5)
    runs = sorted(inertia(kmeans(points, k, stream(seed, "k"))[0]) for seed in range(20))
    assert runs[10] <= cases[f"random_init_k{k}"]["quantiles_200_more_seeds"]["75"]


def test_groups_are_clustered_as_if_alone():
    points = torch.randn(3, 50, 4, generator=stream(0, "points"))
    starts = points[:, :5]
    together, labels = kmeans(points, 5, centroids=starts)
    for group in range(3):
        alone, own = kmeans(points[group : group + 1], 5, centroids=starts[group : group + 1])
        torch.testing.assert_close(together[group], alone[0])
        assert torch.equal(labels[group], own[0])


def test_representatives_are_near_the_cluster_centres():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = (centres[:, None] + torch.randn(3, 30, 2, generator=stream(0, "cloud"))).view(1, 90, 2)
    rows = representatives(points, 6, stream(0, "start"))[0]
    assert sorted(set((rows // 30).tolist())) == [0, 1, 2]
    centroids, _ = kmeans(points, 6, stream(0, "start"))
    assert (points[0, rows] - centroids[0]).norm(dim=1).max() < 1


def test_several_images_are_taken_around_each_centroid():
    points = torch.tensor([[0.0, 0], [0.1, 0], [0.3, 0], [9, 9], [9.1, 9], [9.4, 9]])[None]
    rows = representatives(points, 4, stream(0, "start"), each=2)[0]
    assert {frozenset(pair) for pair in rows.view(2, 2).tolist()} == {frozenset((0, 1)), frozenset((3, 4))}


def test_a_choice_of_distinct_rows_takes_none_twice():
    points = torch.tensor([[0.0, 0], [4, 0], [5, 0]])[None]
    centroids = torch.tensor([[0.1, 0], [0.2, 0], [5.1, 0]])[None]  # the first two are nearest to one row
    assert clustering._around(centroids, points, 1, distinct=False).tolist() == [[0, 0, 2]]
    assert clustering._around(centroids, points, 1, distinct=True).tolist() == [[0, 1, 2]]
    rows = representatives(torch.randn(3, 40, 2, generator=stream(0, "cloud")), 40, stream(0, "start"), distinct=True)
    assert all(sorted(group) == list(range(40)) for group in rows.tolist())


CORESET = load_data("coreset/coreset")


@pytest.mark.parametrize("case", CORESET.json["herding"]["cases"], ids=lambda case: case["id"])
def test_herding_chooses_as_published(case):
    features, classes = torch.from_numpy(CORESET.arrays["features"]), case["nclass"]
    groups = features.unflatten(0, (-1, classes)).transpose(0, 1)  # row j is of class j mod 4
    rows = herding(groups, case["ipc"]) * classes + torch.arange(classes)[:, None]
    assert torch.equal(rows, torch.from_numpy(CORESET.arrays[case["id"]]))


def test_k_center_chooses_as_published():
    features = torch.from_numpy(CORESET.arrays["features"])[None]
    order = torch.from_numpy(CORESET.arrays["kcenter_order_from_0"])
    assert torch.equal(k_center(features, len(order), torch.tensor([0]))[0], order)
