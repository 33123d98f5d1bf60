"""Small folders of pictures, for tests."""

from PIL import Image


def write_folder(root, classes=("ant", "bee", "cat"), mode="L", size=(12, 12), count=6, test="test"):
    """A folder in ImageFolder layout; the pictures of class k are flat, of level 40 + 60 k (colour: that, 0 and 255)."""
    for part, number in (("train", count), (test, 2)):
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                level = 40 + 60 * k
                colour = level if mode == "L" else (level, 0, 255)
                Image.new(mode, size, colour).save(root / part / name / f"{i}.png")
    return root
