"""Clustering of several groups of points at once, and choices of few points that stand for many."""

import torch

from gendistil.common.device import send
from gendistil.common.rng import has_float64


def kmeans(points, k, generator=None, centroids=None, iterations=100):
    """Lloyd's algorithm for G groups at once, from k-means++ starts (Arthur and Vassilvitskii, 2007).

    points [G, N, D]; k clusters; `centroids` [G, k, D], if given, are the start. Stops when the centroids' squared movement,
    summed, falls below 1e-4 in every group. Returns (centroids [G, k, D], assignment int64 [G, N]); the assignment is
    to the centroids returned, and an empty cluster keeps its centroid.
    """
    centroids = _plus_plus(points, k, generator) if centroids is None else centroids
    for _ in range(iterations):
        moved = _means(points, _nearest(points, centroids), centroids)
        movement = (moved - centroids).square().sum((1, 2)).max()
        centroids = moved
        if movement < 1e-4:
            break
    return centroids, _nearest(points, centroids)


def _means(points, assignment, otherwise):
    """The mean of each cluster's points [G, N, D]: [G, k, D], taken from `otherwise` where a cluster is empty."""
    groups, k, dim = otherwise.shape
    firsts = k * torch.arange(groups, device=points.device).unsqueeze(1)  # a group's first cluster, counted over all groups
    sums = points.new_zeros(groups * k, dim).index_add_(0, (assignment + firsts).flatten(), points.flatten(0, 1))
    sizes = torch.zeros(groups, k, device=points.device).scatter_add_(1, assignment, torch.ones_like(points[..., 0]))
    means = sums.unflatten(0, (groups, k)) / sizes.clamp_min(1).unsqueeze(-1)
    return torch.where(sizes.unsqueeze(-1) > 0, means, otherwise)


def _nearest(points, centroids):
    """The centroid nearest to each point, by squared distances less the points' own squares, which decide nothing."""
    return (centroids.square().sum(-1).unsqueeze(1) - points @ (2 * centroids).transpose(1, 2)).argmin(-1)


def _plus_plus(points, k, generator):
    groups, count, _ = points.shape
    rows, squares = torch.arange(groups, device=points.device), points.square().sum(-1)
    draws = send(torch.rand(k, groups, generator=generator), points.device)

    def gap_to(chosen):
        """Squared distances of the points from one row of each group: [G, N], without a copy of all points."""
        products = (points @ points[rows, chosen].unsqueeze(-1)).squeeze(-1)
        return (squares + squares[rows, chosen].unsqueeze(1) - 2 * products).clamp_min(0)

    chosen = [(draws[0] * count).long()]
    gap = gap_to(chosen[0])  # to the nearest start so far
    wide = torch.float64 if has_float64(points.device) else torch.float32
    for draw in draws[1:]:
        steps = gap.to(wide).cumsum(1)
        next_row = torch.searchsorted(steps, (draw.to(wide) * steps[:, -1]).unsqueeze(1)).squeeze(1).clamp_max(count - 1)
        chosen.append(next_row)
        gap = torch.minimum(gap, gap_to(next_row))
    return points[rows.unsqueeze(1), torch.stack(chosen, 1)]


_PROJECTED = 128  # dimensions


def representatives(points, count, generator, each=1, distinct=False):
    """The rows nearest to the centroids of each group (DREAM, arXiv 2302.14416): int64 [G, count] for points [G, N, D].

    `each` of them are around one centroid, the nearest first, and a row may be near to two; count is a multiple of it. With
    `distinct` there is one around each, and none twice: the later centroid takes the nearest that is left.
    Points of many dimensions are clustered in a random projection, which keeps their distances (Johnson and Lindenstrauss,
    1984) and with them what a clustering costs (Makarychev et al., STOC 2019); three more iterations are of the points as they
    are.
    """
    dim, k = points.shape[-1], count // each
    if dim <= 2 * _PROJECTED:
        centroids, _ = kmeans(points, k, generator, iterations=30)
        return _around(centroids, points, each, distinct)
    projection = send(torch.randn(dim, _PROJECTED, generator=generator), points.device).to(points.dtype) / _PROJECTED**0.5
    assignment = kmeans(points @ projection, k, generator, iterations=30)[1]
    middle = points.mean(1, keepdim=True).expand(-1, k, -1)
    centroids, _ = kmeans(points, k, centroids=_means(points, assignment, middle), iterations=3)
    return _around(centroids, points, each, distinct)


def _around(centroids, points, each, distinct):
    """The `each` points nearest to each centroid [G, k, D], one centroid after the other: int64 [G, k * each]."""
    gaps = points.square().sum(-1).unsqueeze(1) - (2 * centroids) @ points.transpose(1, 2)  # less the centroids' own squares
    if not distinct:
        return gaps.topk(each, largest=False).indices.flatten(1) if each > 1 else gaps.argmin(-1)
    taken, rows = torch.zeros_like(gaps[:, 0]), []
    for gap in gaps.unbind(1):
        rows.append((gap + taken).argmin(1, keepdim=True))
        taken.scatter_(1, rows[-1], torch.inf)
    return torch.cat(rows, 1)


def herding(points, k):
    """`k` rows whose running mean stays nearest to the mean of all (Welling, ICML 2009): int64 [G, k] for points [G, N, D].

    In the order of choice, none twice.
    """
    mean = points.mean(1)
    total, taken, rows = torch.zeros_like(mean), points.new_zeros(points.shape[:2]), []
    for n in range(1, k + 1):
        target = n * mean - total  # G,D
        row = ((points - target.unsqueeze(1)).square().sum(-1) + taken).argmin(1, keepdim=True)
        total = total + points.gather(1, row.unsqueeze(-1).expand(-1, -1, points.shape[-1])).squeeze(1)
        taken.scatter_(1, row, torch.inf)
        rows.append(row)
    return torch.cat(rows, 1)


def k_center(points, k, first):
    """`k` rows, each the farthest from those before it (greedy k-center; Sener and Savarese, ICLR 2018): int64 [G, k].

    points [G, N, D]; first, int64 [G], the row that starts.
    """
    rows, nearest = [first], torch.full_like(points[..., 0], torch.inf)
    while len(rows) < k:
        latest = points[torch.arange(len(points), device=points.device), rows[-1]]
        nearest = torch.minimum(nearest, (points - latest.unsqueeze(1)).square().sum(-1))
        rows.append(nearest.argmax(1))
    return torch.stack(rows, 1)
