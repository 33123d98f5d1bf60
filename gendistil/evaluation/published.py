"""Accuracies that others published, beside which a report draws its own: none of them was measured by this suite.

A row is here if three things about it are known: its accuracy, what has to be stored for it, and how its students were trained
and scored.
"""

from dataclasses import dataclass, field

from gendistil.data import original

STUDENTS = {"convnet": "ConvNet-3", "convnet4": "ConvNet-4", "resnet18": "ResNet-18"}
"""What the papers call the students that the suite calls so."""

_IMAGES = {"mnist": 10 * 28**2, "fashion": 10 * 28**2, "svhn": 10 * 3 * 32**2, "cifar10": 10 * 3 * 32**2,
           "cifar100": 100 * 3 * 32**2, "tinyimagenet": 200 * 3 * 64**2}
"""Bytes of one image of every class, as uint8. Several images in one (IDC, NCFM) take no more than that one."""

_DIM = 14_273_580
"""Bytes of DiM's generator of 32×32 colour images: its weights and the statistics of its batch norms, as float32."""


@dataclass(frozen=True)
class Paper:
    """Where a method was published, and the protocol of its students, all of hard labels, but for the data sets of `otherwise`.

    `weights` are the bytes of its generator, None where images are stored.
    """

    source: str
    protocol: str
    otherwise: dict = field(default_factory=dict)
    weights: int | None = None


PAPERS = {
    "DC": Paper("arXiv 2006.05929", "300 epochs, scored at the last", {"mnist": "1000 epochs, scored at the last"}),
    "DSA": Paper("arXiv 2102.08259", "1000 epochs, scored at the last"),
    "DM": Paper("arXiv 2110.04181", "1000 epochs, scored at the last"),
    "IDC-I": Paper("arXiv 2205.14959", "1000 epochs, best on the test set"),
    "IDC": Paper("arXiv 2205.14959", "1000 epochs, best on the test set"),
    "MTT": Paper("arXiv 2203.11932", "1000 epochs at a learned step size, best on the test set"),
    "NCFM": Paper("arXiv 2502.20653", "2000 epochs, best on the test set"),
    "DiM": Paper("arXiv 2303.04707", "1000 epochs of new images, best of five looks at the test set",
                  weights=_DIM),
}

# Data set, method, student, and accuracy in per cent by images per class. DC and DSA: as their common repository has them;
# IDC: as its repository has them; NCFM: its tables 1 and 4, which hold those of DM, of MTT, of DSA on CIFAR-100 and of
# TinyImageNet too; DiM: its abstract, whose ten images are new ones in every epoch.
_ROWS = (
    ("mnist", "DC", "convnet", {1: 91.7, 10: 97.4, 50: 98.8}),
    ("mnist", "DSA", "convnet", {1: 88.7, 10: 97.8, 50: 99.2}),
    ("mnist", "IDC-I", "convnet", {1: 88.9, 10: 98.0, 50: 98.8}),
    ("mnist", "IDC", "convnet", {1: 94.2, 10: 98.4, 50: 99.1}),
    ("fashion", "DC", "convnet", {1: 70.5, 10: 82.3, 50: 83.6}),
    ("fashion", "DSA", "convnet", {1: 70.6, 10: 84.6, 50: 88.7}),
    ("fashion", "IDC-I", "convnet", {1: 70.7, 10: 85.3, 50: 89.1}),
    ("fashion", "IDC", "convnet", {1: 81.0, 10: 86.0, 50: 86.2}),
    ("svhn", "DC", "convnet", {1: 31.2, 10: 76.1, 50: 82.3}),
    ("svhn", "DSA", "convnet", {1: 27.5, 10: 79.2, 50: 84.4}),
    ("svhn", "IDC-I", "convnet", {1: 46.7, 10: 77.0, 50: 87.9}),
    ("svhn", "IDC", "convnet", {1: 68.5, 10: 87.5, 50: 90.1}),
    ("cifar10", "DC", "convnet", {1: 28.3, 10: 44.9, 50: 53.9}),
    ("cifar10", "DSA", "convnet", {1: 28.8, 10: 52.1, 50: 60.6}),
    ("cifar10", "DM", "convnet", {1: 26.0, 10: 48.9, 50: 63.0, 100: 67.0, 200: 71.2, 500: 76.1,
                                 1000: 79.8, 1250: 80.8}),
    ("cifar10", "IDC-I", "convnet", {1: 36.7, 10: 58.3, 50: 69.5}),
    ("cifar10", "IDC", "convnet", {1: 50.6, 10: 67.5, 50: 74.5}),
    ("cifar10", "MTT", "convnet", {1: 46.3, 10: 65.3, 50: 71.6}),
    ("cifar10", "NCFM", "convnet", {1: 49.5, 10: 71.8, 50: 77.4}),
    ("cifar10", "NCFM", "resnet18", {10: 67.7, 50: 73.8}),
    ("cifar10", "DiM", "convnet", {10: 72.6}),
    ("cifar10", "DiM", "resnet18", {10: 75.1}),
    ("cifar100", "DC", "convnet", {1: 12.8, 10: 25.2}),
    ("cifar100", "DSA", "convnet", {1: 13.9, 10: 32.3, 50: 42.8}),
    ("cifar100", "DM", "convnet", {1: 11.4, 10: 29.7, 50: 43.6}),
    ("cifar100", "IDC-I", "convnet", {10: 36.6, 20: 41.5}),
    ("cifar100", "IDC", "convnet", {10: 45.1, 20: 49.0}),
    ("cifar100", "MTT", "convnet", {1: 24.3, 10: 40.1, 50: 47.7}),
    ("cifar100", "NCFM", "convnet", {1: 34.4, 10: 48.7, 50: 54.7}),
    ("tinyimagenet", "DM", "convnet4", {1: 3.9, 10: 12.9, 50: 24.1}),
    ("tinyimagenet", "MTT", "convnet4", {1: 8.8, 10: 23.2, 50: 28.0}),
)


@dataclass(frozen=True)
class Published:
    """What one method reached on one data set with one student.

    `name` also tells the data set, the student, the labels and the protocol; `points` are (bytes, accuracy in per cent), the
    fewest bytes first.
    """

    method: str
    name: str
    source: str
    points: tuple[tuple[int, float], ...]


def published(data, students):
    """The `Published` of a data set, or of its `original`, whose points are only near.

    Args: data, what rows call it, with a comma where its classes or its size are others, of which nothing is known; students,
    names of classifiers that stand beside them. A list, empty where nothing is known.
    """
    found = []
    for name, method, student, accuracies in _ROWS if "," not in data else ():
        if name == original(data) and student in students:
            how = PAPERS[method]
            points = tuple((how.weights or ipc * _IMAGES[name], accuracy) for ipc, accuracy in accuracies.items())
            words = f"{method} on {name}, {STUDENTS[student]}, hard labels, {how.otherwise.get(name, how.protocol)}"
            found.append(Published(method, words, how.source, points))
    return found
