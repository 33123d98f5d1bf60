"""Sets in the files of other repositories and of sample.py: what is in them arrives as it was, or one line says why not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_CLASSIFIER
from safetensors.torch import save_file

import sample
import validate
from gendistil.common.errors import UserError
from gendistil.data import Spec, Whitened, to_signed
from gendistil.sources import PixelSet, Reading, Rows, draw_set, load_source, weights_digest

SHORT = ("--eval-model", SMALL_CLASSIFIER, "--sampling", "fixed", "--epochs", 1, "--min-steps", 1, "--num-eval", 1,
         "--compile", "off")


def spec_of(name="cifar10", classes=10, channels=3, size=8):
    return Spec(name, tuple(map(str, range(classes))), channels, size, (0.4,) * channels, (0.3,) * channels, True)


def pictures(count, channels=3, size=8):
    """8-bit images [count, C, H, W], all different, with both ends of the range among their values."""
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8)
    images[:, :, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    return images


def normalised(images, mean, std):
    """As torchvision's ToTensor and Normalize have them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return images.float().div(255).sub(mean).div(std)


def labels_of(classes, ipc):
    """As the published code of DC and those after it makes them."""
    return torch.tensor(np.array([np.ones(ipc) * i for i in range(classes)]), dtype=torch.long).view(-1)


CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DC = {"mnist": ((0.1307,), (0.3081,)), "fashion": ((0.2861,), (0.3530,)),
      "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)), "cifar10": CIFAR10,
      "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)), "tinyimagenet": IMAGENET}
MTT = {"cifar10": CIFAR10, "cifar100": CIFAR10, "tinyimagenet": IMAGENET}


def save_dc(path, images, norms=CIFAR10, ipc=2):
    """As main.py and main_DM.py of VICO-UoE/DatasetCondensation save the last of two experiments."""
    values, labels = normalised(images, *norms), labels_of(len(images) // ipc, ipc)
    torch.save({"data": [[torch.zeros_like(values), labels], [values, labels]],
                "accs_all_exps": {"ConvNet": [np.float64(0.25), np.float64(0.5)]}}, path)
    return path


def save_mtt(folder, images, name="best", norms=CIFAR10, ipc=2):
    """As distill.py of GeorgeCazenavette/mtt-distillation saves a set."""
    folder.mkdir(exist_ok=True)
    torch.save(normalised(images, *norms) if norms else images, folder / f"images_{name}.pt")
    torch.save(labels_of(len(images) // ipc, ipc), folder / f"labels_{name}.pt")
    return folder / f"images_{name}.pt"


@pytest.mark.parametrize(("name", "norms"), DC.items())
def test_sets_of_dc_dsa_and_dm(tmp_path, capsys, name, norms):
    channels = len(norms[0])
    images, spec = pictures(20, channels), spec_of(f"{name}-few", channels=channels)
    path = save_dc(tmp_path / "res_DM_X_ConvNet_2ipc.pt", images, norms)
    source = load_source(path, reading=Reading(), spec=spec)
    drawn, labels = draw_set(source, 2, seed=4)
    assert torch.equal(drawn, images)
    assert torch.equal(labels, labels_of(10, 2))
    assert (source.max_ipc, source.soft, source.step_size, source.remark) == (2, False, None, "")
    assert "res_DM_X_ConvNet_2ipc.pt is read as a set of DC, DSA or DM, the last of its 2 exp" in capsys.readouterr().err


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    data = [[torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)]]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(1)]}}, tmp_path / "res.pt",
               _use_new_zipfile_serialization=False)
    pickled = (tmp_path / "res.pt").read_bytes()
    older = pickled.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    newer = pickled.replace(b"numpy.core.multiarray\n", b"numpy._core.multiarray\n")
    assert older != newer
    for written in (older, newer):
        (tmp_path / "res.pt").write_bytes(written)
        assert load_source(tmp_path / "res.pt", reading=Reading(), spec=spec_of(classes=1)).num_classes == 1


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_sets_of_idc_dream_and_ncfm(tmp_path, factor):
    """As condense.py of IDC and DREAM saves them; NCFM's come rank by rank, so that labels need not be sorted."""
    values = torch.rand(30, 3, 8, 8) * 1.2 - 0.1
    labels = torch.cat([labels_of(10, 2), labels_of(10, 1)])
    torch.save([values, labels], tmp_path / "data.pt")
    source = load_source(tmp_path / "data.pt", reading=Reading(factor), spec=spec_of("anything"))
    ours = PixelSet(8, 3, 10, 3, factor)
    for label in range(10):
        ours.pixels.data[label] = values[labels == label] * 2 - 1
    assert torch.equal(source.pixels, ours.pixels)
    images, targets = draw_set(source, 3, seed=0)
    assert torch.equal(images, draw_set(ours, 3, seed=0)[0])
    assert targets.bincount().tolist() == [3 * factor**2] * 10
    assert source.stored_bytes(3) == 30 * 3 * 8 * 8


def test_a_report_says_how_many_values_were_cut(tmp_path):
    values = torch.full((10, 3, 8, 8), 0.5)
    values[:, :, 0, 0] = 1.3
    values[:, :, 0, 1] = -0.001  # which rounds to 0
    torch.save([values, torch.arange(10)], tmp_path / "data.pt")
    source = load_source(tmp_path / "data.pt", reading=Reading(1))
    assert source.remark == "1.6 % of its values cut to [0, 1]"  # one in 64
    assert draw_set(source, 1, 0)[0][0, 0, 0, :3].tolist() == [255, 0, 128]


@pytest.mark.parametrize(("name", "norms"), MTT.items())
def test_sets_of_mtt(tmp_path, capsys, name, norms):
    images, spec = pictures(20), spec_of(name)
    save_mtt(tmp_path / "run", pictures(20), 500)
    path = save_mtt(tmp_path / "run", images, norms=norms)
    for place in (path, tmp_path / "run"):
        source = load_source(place, reading=Reading(), spec=spec)
        assert torch.equal(draw_set(source, 2, 0)[0], images)
        assert source.step_size is None
    assert "without a step size (--lr takes its place)" in capsys.readouterr().err


def whitened():
    spec = Whitened.of(spec_of(), torch.cat([pictures(300), torch.full((300, 3, 8, 8), 120, dtype=torch.uint8)]))
    return spec, pictures(20)


def test_whitened_sets_of_mtt(tmp_path):
    spec, images = whitened()
    path = save_mtt(tmp_path / "run", spec.whiten(to_signed(images)), norms=None)
    assert torch.equal(draw_set(load_source(path, reading=Reading(), spec=spec), 2, 0)[0], images)
    # The published code also writes such images as pixels again, beside labels of the same step.
    save_mtt(tmp_path / "run", spec.whiten(to_signed(images)), 500, norms=None)
    torch.save(images.float() / 255, tmp_path / "run" / "images_zca_500.pt")
    source = load_source(tmp_path / "run" / "images_zca_500.pt", reading=Reading())
    assert torch.equal(draw_set(source, 2, 0)[0], images)


def save_datm(folder, images):
    """As DATM.py of NUS-HPC-AI-Lab/DATM saves a set, whose labels are being learned; gives their logits."""
    path = save_mtt(folder, images)
    logits = torch.randn(len(images), 10, requires_grad=True)
    torch.save(logits * 1.0, folder / "labels_best.pt")
    torch.save(torch.tensor(0.03), folder / "lr_best.pt")
    return path, logits.detach()


def test_sets_of_datm(tmp_path):
    images = pictures(20)
    path, logits = save_datm(tmp_path / "Normal", images)
    source = load_source(path.parent, reading=Reading(), spec=spec_of())
    drawn, targets = draw_set(source, 2, 0)
    assert torch.equal(drawn, images)  # class by class, whatever the logits are highest for
    assert torch.equal(targets, logits.half().float().softmax(1))
    assert source.soft
    assert source.step_size == pytest.approx(0.03)
    source.save_pretrained(tmp_path / "ours")
    again = load_source(tmp_path / "ours")
    assert torch.equal(draw_set(again, 2, 0)[1], targets)


def test_a_set_is_known_by_all_its_files(tmp_path):
    path, logits = save_datm(tmp_path / "Normal", pictures(20))
    digests = [weights_digest(path), weights_digest(path.parent)]
    torch.save(logits + 1, tmp_path / "Normal" / "labels_best.pt")
    digests.append(weights_digest(path))
    torch.save(torch.tensor(0.04), tmp_path / "Normal" / "lr_best.pt")
    digests.append(weights_digest(path))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def stored(learned=None, **options):
    source = PixelSet(8, 1, 10, ipc=3, **options)
    torch.nn.init.uniform_(source.pixels, -1.1, 1.1)
    if learned is not None:
        name = "learned with the images" if learned else "convnet of step 9"
        source.rows = Rows(torch.randn(10, source.decoded(3), 10), name, None if learned else 50.0, learned)
    return source


@pytest.mark.parametrize(("learned", "options"), [(None, {"factor": 2}), (True, {"step_size": 0.25}), (False, {})])
def test_an_export_is_read_again(call, tmp_path, learned, options):
    source = stored(learned, **options)
    source.save_pretrained("model")
    if source.rows:
        source.rows.save("model")
    call(sample, "--pretrain-weight", "model", "--ipc", 2, "--output-dir", "set")
    found = [load_source(path, reading=Reading()) for path in ("set", "set/set.safetensors")]
    images, targets = draw_set(source, 2, 0)
    for again in found:
        drawn, labels = draw_set(again, again.max_ipc, 0)
        assert torch.equal(drawn, images)
        assert torch.equal(labels, targets)
        assert (again.step_size, again.soft, again.remark) == (source.step_size, bool(learned), "")
        if learned is False:
            assert (again.rows.name, again.rows.held_out_accuracy) == ("convnet of step 9", None)
            assert torch.equal(again.rows.logits(drawn, labels), source.rows.logits(images, labels))


def save_idc(path, images=None, ipc=2):
    images = torch.rand(10 * ipc, 1, 8, 8) if images is None else images
    torch.save([images, labels_of(10, ipc)], path)


def test_students_of_published_sets(call, tmp_path):
    save_idc("data.pt")
    stored(False).save_pretrained("model")
    stored(False).rows.save("model")
    call(sample, "--pretrain-weight", "model", "--ipc", 3, "--output-dir", "set")
    call(validate, "--pretrain-weight", "idc=data.pt", "set", "--factor", 2, "--ipc", 2, *SHORT)
    rows = {row["source"]: row for row in json.loads(Path("results/test/report.json").read_text())}
    assert {name: (row["bytes"], row["ipc"]) for name, row in rows.items()} == {
        "idc": (10 * 2 * 64, 2), "set": (10 * 2 * 64, 2)}
    assert rows["idc"]["weights"] == weights_digest("data.pt")
    call(validate, "--tag", "rows", "--pretrain-weight", "set", "--ipc", 3, "--labels", "rows", "--compare", "none", *SHORT)
    row, = json.loads(Path("results/rows/report.json").read_text())
    assert row["teacher"] == "convnet of step 9, temperature 2"


def test_an_evaluation_takes_a_published_set_later(call, tmp_path):
    stored().save_pretrained("model")
    save_idc("data.pt")
    call(validate, "--pretrain-weight", "model", "--ipc", 1, *SHORT)
    call(validate, "--pretrain-weight", "model", "data.pt", "--factor", 2, "--resume")
    rows = json.loads(Path("results/test/report.json").read_text())
    assert {row["source"] for row in rows} == {"model", "data.pt"}


def test_an_export_in_a_refined_run_is_no_generator(call, tmp_path, capsys):
    stored().save_pretrained("run/generator")
    Path("run/config.json").write_text(json.dumps({"commands": [["x"]], "refinement": {"noise_std": 1.5}}))
    stored().save_pretrained("model")
    call(sample, "--pretrain-weight", "model", "--ipc", 1, "--output-dir", "run/set")
    call(validate, "--pretrain-weight", "run/set", "--ipc", 1, *SHORT)
    assert "refine" not in capsys.readouterr().err


def test_an_export_keeps_what_is_known_of_it(call, tmp_path, capsys):
    source = stored(step_size=[0.5, 0.25])
    source.save_pretrained("run/pixels")
    spec = {"name": "letters", "classes": [*"abcdefghij"], "whitening": "zca"}
    Path("run/config.json").write_text(json.dumps({"commands": [["x"]], "dataset": spec}))
    call(sample, "--pretrain-weight", "run", "--ipc", 3, "--output-dir", "whole")
    call(sample, "--pretrain-weight", "run", "--ipc", 2, "--output-dir", "part")
    call(sample, "--pretrain-weight", "whole", "--ipc", 1, "--output-dir", "again")
    assert Path("again/images/j/00000.png").exists()
    capsys.readouterr()
    letters = replace(spec_of("letters", channels=1), classes=tuple("abcdefghij"))
    whole, part = (load_source(folder, reading=Reading(), spec=letters) for folder in ("whole", "part"))
    assert whole.step_size == [0.5, 0.25]
    assert part.step_size is None  # its images are not those of these steps
    assert "whole/set.safetensors was learned for networks that see whitened images" in capsys.readouterr().err


def test_pictures_of_a_published_set(call, tmp_path):
    save_idc("data.pt")
    call(sample, "--pretrain-weight", "data.pt", "--factor", 2, "--ipc", 1, "--output-dir", "set")
    assert len(list(Path("set/images").rglob("*.png"))) == 40


def several(folder):
    save_mtt(folder, pictures(20), 500)
    save_mtt(folder, pictures(20), 1000)


def alone(folder):
    save_mtt(folder, pictures(20))
    (folder / "labels_best.pt").unlink()


def rate(folder, value):
    save_mtt(folder, pictures(20, 1), norms=DC["mnist"])
    torch.save(value, folder / "lr_best.pt")


def save_logits(folder, logits):
    rate(folder, torch.tensor(0.1))
    torch.save(logits, folder / "labels_best.pt")


def config(folder):
    other_classes(folder)
    (folder / "config.json").write_text("{}")


def other_classes(folder):
    folder.mkdir()
    facts = {"name": "letters", "classes": [*"abcdefghij"]}
    save_file({"images": pictures(20, 1), "labels": labels_of(10, 2)}, folder / "set.safetensors",
              metadata={"set": json.dumps(facts)})


def cut(folder):
    folder.mkdir()
    (folder / "set.safetensors").write_bytes(b"nothing")


WRONG = {
    "no-factor": (lambda path: save_idc(path), "wrong does not say how many images each of its own holds: give --factor 1"),
    "unequal": (lambda path: torch.save([torch.rand(3, 1, 8, 8), torch.tensor([0, 0, 1])], path),
                "wrong holds 1 to 2 images of a class: only sets with as many of each are taken", "--factor", 1),
    "no-images": (lambda path: torch.save([torch.rand(3), torch.tensor([0, 0, 1])], path), "wrong holds a damaged set (",
                  "--factor", 1),
    "nan": (lambda path: save_idc(path, torch.full((20, 1, 8, 8), torch.nan)), "damaged set (ValueError: NaN", "--factor", 1),
    "oblong": (lambda path: save_idc(path, torch.rand(20, 1, 8, 9)), "wrong holds a damaged set (ValueError", "--factor", 1),
    "bytes": (lambda path: save_idc(path, pictures(20, 1)), "damaged set (ValueError: images of torch.uint8", "--factor", 1),
    "labels": (lambda path: torch.save([torch.rand(2, 1, 8, 8), torch.tensor([0, torch.inf])], path), "damaged set (OverflowE",
               "--factor", 1),
    "logits": (lambda path: save_logits(path, torch.randn(20, 10, 1)), "images_best.pt holds a damaged set (ValueError: "),
    "large": (lambda path: save_logits(path, torch.full((20, 10), 1e5)), "images_best.pt holds a damaged set (ValueError: NaN"),
    "none": (lambda path: save_logits(path, torch.zeros(20, 0)), "images_best.pt holds a damaged set (ZeroDivisionError"),
    "config": (config, "wrong holds a config.json that is not of a model: for the set there name wrong/set.safetensors"),
    "parts": (lambda path: save_idc(path), "--factor 5: of images of 8 pixels", "--factor", 5),
    "empty": (lambda path: torch.save({"data": []}, path), "wrong holds a damaged set (IndexError"),
    "colours": (lambda path: save_dc(path, pictures(20)), "wrong makes 10 classes of 3x8x8 images, but the data set "),
    "unknown": (lambda path: save_dc(path, pictures(20, 1), DC["mnist"]), "mean and std are known for mnist, fashion, svhn,"),
    "tensor": (lambda path: torch.save(torch.rand(20, 1, 8, 8), path), "wrong holds images alone: call it images_NAME.pt"),
    "alone": (alone, "images_best.pt holds images alone"),
    "several": (several, "wrong holds 2 sets, and none is images_best.pt: name one, as"),
    "rate": (lambda path: rate(path, torch.tensor(-1.0)), "images_best.pt holds a damaged set (ValueError: a step size of -1"),
    "rates": (lambda path: rate(path, torch.ones(2)), "images_best.pt holds a damaged set (ValueError: only one"),
    "other": (lambda path: torch.save({"weights": torch.zeros(2)}, path), "wrong is not a checkpoint of the published DiM or "
              "IT-GAN code and no published set that is known"),
    "classes": (other_classes, "set.safetensors is of the classes a b c d e ..., and those of digits are 0 1 2 3 4 ...: give"),
    "cut": (cut, "set.safetensors is no readable set (SafetensorError): write it again"),
    "nothing": (lambda path: path.mkdir(), "wrong holds no saved generator and no published set: name a run"),
}


@pytest.mark.parametrize(("make", "message", "words"), [
    pytest.param(*case[:2], case[2:], id=name) for name, case in WRONG.items()])
def test_what_is_wrong_is_said_in_a_line(fails, tmp_path, monkeypatch, make, message, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "wrong")
    error = fails(2, validate, "--pretrain-weight", "wrong", *words)
    assert message in error
    assert error.count("\n") == 1
    assert not Path("results").exists()


def test_a_factor_that_nothing_is_read_by_is_refused(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored().save_pretrained("model")
    for words in ((validate, "--pretrain-weight", "model"), (validate, "--compare", "random"),
                  (sample, "--pretrain-weight", "model")):
        assert "--factor is for published sets that do not say it" in fails(2, *words, "--factor", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_sample_cannot_export_is_refused(fails, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_dc(Path("res.pt"), pictures(20))
    assert "res.pt holds standardised images, and not the name" in fails(2, sample, "--pretrain-weight", path)
    assert not Path("results").exists()
    stored().save_pretrained("model")
    command(sample, "--pretrain-weight", "model", "--ipc", 2, "--output-dir", "set")
    for place in ("set", "set/set.safetensors"):
        assert "would be removed with the earlier set" in fails(2, sample, "--pretrain-weight", place, "--ipc", 1,
                                                                "--output-dir", "set")


def test_without_a_reading_a_set_is_none(tmp_path):
    save_idc(tmp_path / "data.pt")
    with pytest.raises(UserError, match="is not a checkpoint of the published DiM or IT-GAN code \\("):
        load_source(tmp_path / "data.pt")
