"""The command lines of validate.py and sample.py."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

import pool_match
import sample
import validate
from gendistil.data import load_dataset
from gendistil.evaluation import PROTOCOLS, Result, protocols
from gendistil.evaluation.report import told_apart
from gendistil.evaluation.rows import KEYS, read_report
from gendistil.evaluation.settings import first_seed
from gendistil.evaluation.tables import tables
from gendistil.sources import CHOICES, MODEL_FOLDER, DistilledDataset, PixelSet
from pools import ClassifierPool

QUICK = ("--epochs", 1, "--min-steps", 2, "--num-eval", 2, "--aug-type", "color_crop")
RESULT = Result((90.0, 92.0), images=10, epochs=1, steps=1, seconds=1.0)


def test_report(call, gan, tmp_path, capsys):
    call(validate, "--tag", "t", "--pretrain-weight", gan, "--ipc", 3, "--sampling", "fixed", "fresh", "--compare",
         "--full-epochs", 1, *QUICK)
    folder = tmp_path / "results" / "t"
    rows = json.loads((folder / "report.json").read_text())
    assert all(set(KEYS) <= set(row) for row in rows)
    assert {(row["source"], row["sampling"], row["ipc"]) for row in rows} == {
        (source, sampling, 3) for source in ("gan", "random real images") for sampling in ("fixed", "fresh")
    } | {("whole training set", "all", None)}
    assert {(row["data"], row["n"], row["model"], row["scored_on"]) for row in rows} == {("digits", 2, "convnet", "test")}
    assert all(0 <= row["mean"] <= 100 and row["steps"] >= 2 and row["seconds"] > 0 for row in rows)
    assert {row["images"] for row in rows} == {30, 1437}
    table = (folder / "report.md").read_text()
    assert "--full-epochs 1" in table
    assert table.split("\n`")[0].strip() in capsys.readouterr().out
    assert all((folder / name).stat().st_size > 1000 for name in ("accuracy.png", "bytes.png"))
    page = (folder / "report.html").read_text()
    assert page.count("<img ") == 4  # two plots, and a sheet of each source that stores or draws images
    assert "<strong>gan</strong>, a row for each of the classes of digits: 0, 1, 2" in page
    assert (folder / "config.json").exists()


def test_settings_are_chosen_on_held_out_images(call, fails, gan, tmp_path, monkeypatch):
    load = validate.load_asked

    monkeypatch.setattr(validate, "load_asked", lambda *args: dataclasses.replace(load(*args), test=None))
    words = ("--pretrain-weight", gan, "--ipc", 3, "--compare", "--full-epochs", 1, *QUICK)
    call(validate, "--tag", "t", "--scored-on", "held_out", *words)
    folder = tmp_path / "results" / "t"
    rows = read_report(folder / "report.json")
    assert {row["scored_on"] for row in rows} == {"held_out"}
    assert {row["seed"] for row in rows} == {first_seed(3407, "held_out")} != {first_seed(3407, "test")}  # none is reported
    assert {(row["source"], row["images"]) for row in rows if row["sampling"] == "all"} == {
        ("training set without its held-out images", len(load_dataset("digits").train))}
    assert "accuracy on the held-out images" in (folder / "report.md").read_text()
    error = fails(2, validate, "--tag", "t", "--resume", *words)  # on the test set: another evaluation
    assert "--scored-on is not what the run was started with" in error


def test_a_table_names_the_flags_that_changed_a_protocol(call, gan, tmp_path):
    for tag, flags in (("plain", ()), ("mixed", ("--cutmix", 0.5, "--aug-single"))):
        call(validate, "--tag", tag, "--pretrain-weight", gan, "--ipc", 1, *QUICK, *flags)
    plain, mixed = (read_report(tmp_path / f"results/{tag}/report.json")[0]["flags"] for tag in ("plain", "mixed"))
    assert (plain, mixed) == ("--aug-type color_crop", "--aug-type color_crop --aug-single --cutmix 0.5")
    both = told_apart({tmp_path / tag: read_report(tmp_path / f"results/{tag}/report.json") for tag in ("plain", "mixed")})
    text = tables([row for rows in both.values() for row in rows])
    assert text.count("**convnet on digits**") == 2
    assert "scored once at the last step, students by `--aug-type color_crop --aug-single --cutmix 0.5`" in text


def test_a_student_that_diverges_is_named(call, fails, gan, tmp_path):
    words = ("--output-dir", tmp_path, "--pretrain-weight", gan, "--ipc", 1, *QUICK, "--lr", 1e6, "--min-steps", 60)
    error = fails(2, validate, *words)
    assert "students of gan (convnet, fresh, hard labels): the loss of a classifier is" in error
    assert "lower its --lr" in error


def test_rows_survive_an_interruption(call, gan, tmp_path, monkeypatch):
    results = iter([RESULT])

    def interrupted(*args, **kwargs):
        result = next(results, None)
        if result is None:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(validate, "evaluate", interrupted)
    with pytest.raises(SystemExit) as leaving:
        call(validate, "--pretrain-weight", gan, "--ipc", 1, 2, *QUICK)
    assert leaving.value.code == 130
    assert [row["ipc"] for row in json.loads((tmp_path / "results/test/report.json").read_text())] == [1]


def test_one_set_is_fixed_also_where_an_earlier_report_called_it_fresh(call, tmp_path, monkeypatch):
    PixelSet(size=8, channels=1, num_classes=10, ipc=1).save_pretrained(tmp_path / "stored")
    call(validate, "--pretrain-weight", tmp_path / "stored", "--ipc", 1, *QUICK)
    file = tmp_path / "results/test/report.json"
    row, = read_report(file)
    assert row["sampling"] == "fixed"  # --sampling is fresh
    file.write_text(json.dumps([{**row, "sampling": "fresh"}]))
    monkeypatch.setattr(validate, "evaluate", lambda *args, **options: pytest.fail("its students are there"))
    call(validate, "--pretrain-weight", tmp_path / "stored", "--resume")
    assert read_report(file) == [row]


def test_published_protocol_is_labelled(call, gan, tmp_path):
    call(validate, "--pretrain-weight", f"mine={gan}", "--ipc", 1, "--protocol", "dim", "--epochs", 5, "--num-eval", 1)
    row, = json.loads((tmp_path / "results/test/report.json").read_text())
    assert (row["source"], row["protocol"], row["steps"], row["images"]) == ("mine", "dim", 5, 128)
    assert "best accuracy seen in five looks" in (tmp_path / "results/test/report.md").read_text()


@pytest.mark.parametrize("name", ["dc", "dsa", "idc", "ncfm"])
def test_published_trainings(call, gan, tmp_path, name):
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--sampling", "fixed", "--protocol", name, "--epochs", 3,
         "--num-eval", 1)
    row, = json.loads((tmp_path / "results/test/report.json").read_text())
    assert (row["protocol"], row["epochs"], row["steps"]) == (name, 3, 3)
    config = json.loads((tmp_path / "results/test/config.json").read_text())
    assert config["students"] == {"convnet": dataclasses.asdict(dataclasses.replace(PROTOCOLS[name], epochs=3))}
    assert "scored once at the last step" in (tmp_path / "results/test/report.md").read_text()


def test_a_field_of_the_protocol_is_a_flag(call, gan, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(validate, "evaluate", lambda *_, protocol, **__: asked.append(protocol) or RESULT)
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--protocol", "idc", "--cutmix", 0, "--aug-single", "--momentum", 0.5,
         "--schedule", "half", "--weight-decay", 0, "--lr", 0.1, "--batch-size", 32, "--min-steps", 7, "--aug-type", "crop",
         "--num-eval", 1)
    assert asked == [dataclasses.replace(PROTOCOLS["idc"], cutmix=0.0, aug_single=True, schedule="half", momentum=0.5,
                                         weight_decay=0.0, lr=0.1, batch_size=32, min_steps=7, aug_type="crop")]


def test_a_rate_or_momentum_of_sgd_is_not_for_another_optimizer(call, fails, tmp_path):
    PixelSet(size=8, channels=1, num_classes=10, ipc=1, step_size=0.02).save_pretrained(tmp_path / "stored")
    words = ("--pretrain-weight", tmp_path / "stored", "--ipc", 1, "--sampling", "fixed", "--num-eval", 1, "--protocol", "bptt",
             "--min-steps", 2)
    assert "stored has learned a step size for SGD, and students take steps by adam" in fails(2, validate, *words)
    assert "--momentum is for SGD" in fails(2, validate, *words, "--no-own", "--momentum", 0.5)
    assert "--aug-single does nothing beside --aug-type none" in fails(2, validate, *words, "--no-own", "--aug-single",
                                                                       "--aug-type", "none")
    assert not (tmp_path / "results").exists()
    for tag, more, rate in (("none", ["--no-own"], 0.001), ("rate", ["--lr", 0.003], 0.003),
                            ("own", ["--optimizer", "sgd", "--momentum", 0.5], 0.02)):
        call(validate, *words, "--tag", tag, *more)
        row, = read_report(tmp_path / f"results/{tag}/report.json")
        assert (row["lr"], row["steps"]) == (pytest.approx(rate), 2)


def test_a_protocol_knows_its_data_sets(call, gan, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(validate, "evaluate", lambda *_, protocol, **__: asked.append(protocol) or RESULT)
    values = next(row.values for row in protocols.PRESETS if row.protocol == "dc" and row.data == ("mnist",))
    monkeypatch.setattr(protocols, "PRESETS", [*protocols.PRESETS, protocols.Preset("dc", values, data=("digits",))])
    for tag, words in (("a", ()), ("b", ("--epochs", 9))):
        call(validate, "--tag", tag, "--pretrain-weight", gan, "--ipc", 1, "--protocol", "dc", "--num-eval", 1, *words)
    mnist = protocols.protocol_for("dc", "mnist")
    assert asked == [mnist, dataclasses.replace(mnist, epochs=9)]


def test_students_are_named_with_their_options_and_in_sets(call, gan, tmp_path, monkeypatch):
    asked = []
    preset = protocols.Preset("default", {"lr": 0.2, "min_steps": 9}, models=("mlp",))
    monkeypatch.setattr(protocols, "PRESETS", [*protocols.PRESETS, preset])
    monkeypatch.setattr(validate, "evaluate", lambda *args, protocol, **_: asked.append((args[2], protocol.lr)) or RESULT)
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--num-eval", 1, "--eval-model",
         "convnet:width=128", "P", "mlp")
    rows = read_report(tmp_path / "results/test/report.json")
    names = ["convnet", "convnet:pooling=none", "convnet:pooling=max", "mlp"]
    assert [row["model"] for row in rows] == names
    assert [rate for _, rate in asked] == [0.05, 0.05, 0.05, 0.2]
    assert [name for name, _ in asked] == names
    config = json.loads((tmp_path / "results/test/config.json").read_text())
    assert {name: (values["lr"], values["min_steps"]) for name, values in config["students"].items()}["mlp"] == (0.2, 9)
    assert (tmp_path / "results/test/students.png").stat().st_size > 1000
    assert "**Students of several architectures on digits**" in (tmp_path / "results/test/report.md").read_text()
    asked.clear()
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--num-eval", 1, "--eval-model", "mlp", "--overwrite", "--lr", 0.3)
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--num-eval", 1, "--eval-model", "mlp", "--overwrite", "--protocol",
         "dc")
    assert asked == [("mlp", 0.3), ("mlp", PROTOCOLS["dc"].lr)]


def test_a_student_with_options_is_kept_and_opened(call, gan, tmp_path):
    call(validate, "--pretrain-weight", gan, "--ipc", 1, "--keep-students", "--eval-model", "convnet:width=8,norm=batch",
         *QUICK)
    row, = read_report(tmp_path / "results/test/report.json")
    pool = ClassifierPool.open(tmp_path / "results/test/students" / row["student"])
    assert row["model"] == pool.table()[0]["name"] == "convnet:norm=batch,width=8"
    assert pool[0].norms[0].num_features == 8


def test_a_report_marks_what_a_source_was_learned_with(call, tmp_path):
    call(pool_match, "--tag", "dm", "--method", "dm", "--ipc", 1, "--steps", 1, "--match-batch", 4, "--eval-epochs", 1,
         "--pool", "convnet:width=8", "lenet", "--eval-model", "convnet:width=8")
    call(pool_match, "--tag", "random", "--method", "random", "--ipc", 1, "--eval-epochs", 1)
    call(validate, "--pretrain-weight", "results/dm", "results/random", "--ipc", 1, "--sampling", "fixed",
         "--eval-model", "mlp", "lenet", "--num-eval", 1, *QUICK[:4])
    rows = read_report(tmp_path / "results/test/report.json")
    assert [(row["source"], row["learned_with"]) for row in rows[:2]] == [("dm", ["convnet:width=8", "lenet"]), ("random", [])]
    assert (tmp_path / "results/test/report.md").read_text().count("†") == 2  # of the heading and of one cell


def test_too_small_classes_drop_the_real_rows_only(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validate, "evaluate", lambda *_, **__: RESULT)
    monkeypatch.setattr(validate, "evaluate_full", lambda *_, **__: RESULT)
    call(validate, "--compare", "--ipc", 1, 900)
    rows = json.loads((tmp_path / "results/test/report.json").read_text())
    assert [(row["source"], row["ipc"]) for row in rows] == [("random real images", 1), ("whole training set", None)]
    assert "no row of random real images above --ipc" in capsys.readouterr().err


def test_an_evaluation_takes_what_was_not_asked_for_before(call, gan, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "evaluate", lambda *_, **__: RESULT)
    monkeypatch.setattr(validate, "evaluate_full", lambda *_, **__: RESULT)
    words = ("--pretrain-weight", gan, "--ipc", 1, "--sampling", "fixed")
    (tmp_path / "plugin.py").write_text("")
    call(validate, *words)
    call(validate, *words, "--compare", "whole", "--full-epochs", 2, "--plugin", tmp_path / "plugin.py", "--resume")
    rows = json.loads((tmp_path / "results/test/report.json").read_text())
    assert [row["source"] for row in rows] == ["gan", "whole training set"]


def test_names_that_a_table_or_a_plot_would_read_as_its_own(call, gan, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "evaluate", lambda *_, **__: RESULT)
    call(validate, "--pretrain-weight", f"a|b $x={gan}", "--ipc", 1, 10)
    assert "| a\\|b $x | fresh" in (tmp_path / "results/test/report.md").read_text()


@pytest.mark.parametrize(("choice", "sources"), [("random", {"random real images"}), ("whole", {"whole training set"})])
def test_one_comparison_alone(call, tmp_path, monkeypatch, choice, sources):
    monkeypatch.setattr(validate, "evaluate", lambda *_, **__: RESULT)
    monkeypatch.setattr(validate, "evaluate_full", lambda *_, **__: RESULT)
    call(validate, "--ipc", 1, "--compare", choice)
    assert {row["source"] for row in json.loads((tmp_path / "results/test/report.json").read_text())} == sources


@pytest.mark.parametrize("choice", CHOICES)
def test_export(call, gan, tmp_path, choice):
    call(sample, "--pretrain-weight", gan, "--ipc", 3, "--seed", 4, "--sampling", choice, "--output-dir", "set")
    tensors = load_file(tmp_path / "set" / "set.safetensors")
    ours = DistilledDataset(gan, ipc=3, seed=4, transform=lambda image: image, choice=choice)
    assert torch.equal(tensors["images"], torch.stack([image for image, _ in ours]))
    assert tensors["labels"].tolist() == [label for _, label in ours]
    assert tensors["images"].dtype == torch.uint8
    with safe_open(tmp_path / "set" / "set.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["set"])
    assert (facts["seed"], facts["ipc"], facts["sampling"], facts["classes"]) == (4, 3, choice, list("0123456789"))
    pictures = ImageFolder(tmp_path / "set" / "images", loader=Image.open)
    assert pictures.classes == list("0123456789")
    assert [label for _, label in pictures] == tensors["labels"].tolist()
    for (picture, _), image in zip(pictures, tensors["images"]):
        assert picture.mode == "L"
        assert list(picture.tobytes()) == image.flatten().tolist()
    with Image.open(tmp_path / "set" / "sheet.png") as sheet:
        assert sheet.size == (2 + 3 * 34, 2 + 10 * 34)


def test_colour_pictures_keep_their_pixels():
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    picture = sample.to_picture(image)
    assert (picture.mode, picture.size) == ("RGB", (5, 4))
    assert picture.getpixel((2, 1)) == tuple(image[:, 1, 2].tolist())


def read_all(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_writes_the_same_bytes(call, gan, tmp_path):
    def export(folder, seed, ipc):
        call(sample, "--pretrain-weight", gan, "--ipc", ipc, "--seed", seed, "--output-dir", folder)

    export("a", 1, 2)
    export("b", 2, 5)
    assert read_all(tmp_path / "a")["sheet.png"] != read_all(tmp_path / "b")["sheet.png"]
    export("b", 1, 2)  # replaces the larger set, and leaves nothing of it
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_class_names_of_the_run_become_folders(call, gan, tmp_path):
    run = tmp_path / "run"
    names = ["T-shirt/top", "a b", "..", *"3456789"]
    shutil.copytree(gan, run / MODEL_FOLDER)
    (run / "config.json").write_text(json.dumps({"commands": [["gen_condense.py"]], "dataset": {"classes": names}}))
    call(sample, "--pretrain-weight", run, "--ipc", 1, "--output-dir", "set")
    folders = sorted(path.name for path in (tmp_path / "set" / "images").iterdir())
    assert folders[:3] == ["0_T-shirt_top", "1_a_b", "2_"]
    with safe_open(tmp_path / "set" / "set.safetensors", "pt") as file:
        assert json.loads(file.metadata()["set"])["classes"] == names


def test_images_of_someone_else_are_left_alone(call, gan, tmp_path, capsys):
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(SystemExit) as leaving:
        call(sample, "--pretrain-weight", gan, "--output-dir", "set")
    assert leaving.value.code == 2
    assert "name another folder" in capsys.readouterr().err


BAD = [
    (validate, ["--ipc", "1"], "nothing to judge"),
    (validate, ["--compare", "random", "--ipc", "5000"], "--ipc 5000: the smallest class has"),
    (validate, ["--pretrain-weight", "{gan}", "--full-epochs", "3"], "--full-epochs is for all real images"),
    (validate, ["--pretrain-weight", "nowhere"], "nowhere does not exist"),
    (validate, ["--pretrain-weight", "{gan}", "--pretrain-weight", "nowhere"], "--pretrain-weight is given twice"),
    (validate, ["--compare", "--ipc", "1", "--ipc", "50"], "--ipc is given twice: write all its values behind one"),
    (validate, ["--compare", "--eval-model", "mlp", "--eval-model", "convnet"], "--eval-model is given twice"),
    (validate, ["--compare", "random", "--compare"], "--compare is given twice"),
    (validate, ["--pretrain-weight", "{gan}", "--ipc", "0"], "--ipc: 0 is out of range"),
    (validate, ["--pretrain-weight", "{gan}", "--ipc", "2.5"], "'2.5' is not a whole number"),
    (validate, ["--pretrain-weight", "{gan}", "--num-eval", "0"], "--num-eval"),
    (validate, ["--pretrain-weight", "{gan}", "--lr", "0"], "--lr"),
    (validate, ["--pretrain-weight", "{gan}", "--lr", "nan"], "--lr"),
    (validate, ["--pretrain-weight", "{gan}", "--eval-model", "vgg"], "--eval-model"),
    (validate, ["--pretrain-weight", "{gan}", "--eval-model", "convnet:wide=9"], "--eval-model: unknown option of convnet"),
    (validate, ["--pretrain-weight", "{gan}", "--eval-model", "convnet:norm=big"], "--eval-model convnet:norm=big: unknown"),
    (validate, ["--pretrain-weight", "{gan}", "--eval-model", "timm:no"], "--eval-model: timm"),
    (validate, ["--pretrain-weight", "{gan}", "--eval-model", "torchvision:vit_b_16:side=30"], "side=30: it does not work"),
    (validate, ["--pretrain-weight", "{gan}", "--sampling", "both"], "--sampling"),
    (validate, ["--pretrain-weight", "{gan}", "--aug-type", "blur"], "'blur'"),
    (validate, ["--pretrain-weight", "{gan}", "--cutmix", "1.5"], "--cutmix: 1.5 is out of range"),
    (validate, ["--pretrain-weight", "{gan}", "--momentum", "1"], "--momentum: 1 is out of range"),
    (validate, ["--pretrain-weight", "{gan}", "--schedule", "linear"], "--schedule"),
    (validate, ["--pretrain-weight", "{gan}", "--protocol", "kip"], "--protocol"),
    (validate, ["--pretrain-weight", "{gan}", "--looks", "9"], "unrecognized arguments: --looks"),
    (validate, ["--pretrain-weight", "{gan}", "--image-size", "16"], "makes 10 classes of 1x8x8 images, but"),
    (validate, ["--pretrain-weight", "{gan}", "{gan}"], "two sources are called 'gan'"),
    (validate, ["--pretrain-weight", "{gan}", "--protocol", "dim", "--sampling", "fixed"], "use --sampling fresh"),
    (validate, ["--pretrain-weight", "{gan}", "--output-dir", "{gan}/..", "--tag", "gan"], "choose another --tag"),
    (validate, ["--pretrain-weight", "{gan}", "--labels", "teacher", "--teacher", "results/test/students/00"],
     "--teacher results/test/students/00 lies in the folder that --tag test writes"),
    (validate, ["--pretrain-weight", "{gan}", "--tag", "a/b"], "--tag"),
    (validate, ["--pretrain-weight", "{gan}", "--data", "nothing"], "nothing"),
    (sample, ["--ipc", "3"], "--pretrain-weight"),
    (sample, ["--pretrain-weight", "nowhere"], "nowhere does not exist"),
    (sample, ["--pretrain-weight", "{gan}", "--ipc", "-1"], "--ipc"),
    (sample, ["--pretrain-weight", "{gan}", "--seed", "x"], "--seed"),
    (validate, ["--pretrain-weight", "{gan}", "--tag", "x" * 300], "--tag: a name of more than 200 bytes"),
    (validate, ["--pretrain-weight", "{gan}", "--labels", "rows", "--sampling", "fixed", "--teacher", "nowhere"],
     "nowhere holds no pool of classifiers: give --teacher"),
    (sample, ["--pretrain-weight", "{gan}", "--output-dir", "{gan}/config.json"], "cannot be made"),
]


@pytest.mark.parametrize(("script", "words", "message"), BAD)
def test_bad_input_gives_one_line_and_exit_code_2(call, gan, capsys, tmp_path, script, words, message):
    with pytest.raises(SystemExit) as leaving:
        call(script, *(word.format(gan=gan) for word in words))
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert ("unrecognized" in error) == ("unrecognized" in message)
    assert not (tmp_path / "results").exists()


def test_a_run_needs_no_git(call, gan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    call(validate, "--pretrain-weight", gan, "--ipc", 1, *QUICK)
    assert json.loads((tmp_path / "results/test/config.json").read_text())["commit"] is None


@pytest.mark.parametrize("words", [["--plugin", "{file}"], ["--plugin={file}"]])
def test_a_plugin_is_run_whatever_its_name(call, tmp_path, capsys, words):
    file = tmp_path / "random.py"
    file.write_text("print('the plugin runs')")
    with pytest.raises(SystemExit):
        call(pool_match, *(word.format(file=file) for word in words), "--list-methods")
    assert "the plugin runs" in capsys.readouterr().out
