"""Models on a hub: a small server of the hub's protocol on this machine, and what is uploaded to it and loaded from it."""

import argparse
import hashlib
import json
import shutil
import socket
import threading
import time
import traceback
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import NAME, TOKEN, Handler, Hub

import sample
import validate
from gendistil.common import hub
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import load_dataset
from gendistil.evaluation.card import card
from gendistil.sources import LatentSet, PixelSet, Reading, Rows, balanced_labels, load_source
from generators import NETWORKS


@pytest.fixture(autouse=True)
def no_other_host(monkeypatch):
    """Nothing but this machine is asked for anything."""
    resolve, others = socket.getaddrinfo, []

    def guarded(host, *rest, **options):
        if host != "127.0.0.1":
            of_the_client = any("_detect_agent" in frame.filename for frame in traceback.extract_stack())  # asks itself
            others.extend([] if of_the_client else [host])
            raise OSError(f"{host} is another host")
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)
    yield
    assert not others  # here, because what looks for a host takes an error for its absence


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub on this machine, the only one that is known, an empty cache, and a token that may write to `owner/`."""
    with Hub() as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", hub_server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # What the client read from the environment before this test. The server knows the older way to upload large files.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        yield hub_server
        hub_server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def spec():
    return load_dataset("digits").spec


def make_gan():
    torch.manual_seed(0)
    return NETWORKS["pyramid"][0](size=8, channels=1, num_classes=10, dim_noise=16, width=8).eval()


def make_pixels():
    source = PixelSet(8, 1, 10, ipc=2)
    source.pixels.data = torch.randn(source.pixels.shape, generator=stream(0)).clamp(-1, 1)
    return source.eval()


def make_latents():
    source = LatentSet.of(make_gan(), ipc=2)
    source.vectors.data = torch.randn(source.vectors.shape, generator=stream(0))
    return source.eval()


FILES = {"config.json", "diffusion_pytorch_model.safetensors", "gendistil.json", "README.md"}
ROW = {"source": "gan", "data": "digits", "sampling": "fresh", "ipc": 10, "model": "convnet", "mean": 91.25, "std": 1.5,
       "ci95": 3.7, "n": 3, "seconds": 1.0, "protocol": "default", "bytes": 12_345, "diversity": 0.5}
COMMAND = ["validate.py", "--pretrain-weight", "results/gan", "--push-to-hub", NAME]
CONFIG = {"commands": [["pool_match.py", "--tag", "a b", "--data-dir", "/home/me/data"], ["pool_match.py", "--resume"]],
          "method": "dm", "data_dir": "/home/me", "steps": 7,
          "versions": {"torch": "2.15"}, "commit": "abc"}


def same(source, other):
    labels = balanced_labels(10, 2)
    return type(source) is type(other) and torch.equal(source.sample(labels, 5), other.sample(labels, 5))


def test_folders_of_this_machine_are_not_published(spec):
    words = ["--lr", 0.1, "--output-dir", "/a/b c/d", "x=/home/me/gan", "results/gan", "hub:a/b", "/", "/a/"]
    assert hub.public(words) == ["--lr", "0.1", "--output-dir", "d", "x=gan", "results/gan", "hub:a/b", "/", "a/"]
    facts = hub.facts_of(make_pixels(), CONFIG, spec, 0.1)
    text = card(NAME, [ROW], facts, [[*COMMAND, "--output-dir", "/home/me/results"]]) + json.dumps(facts)
    assert "--data-dir data" in text
    assert "--output-dir results" in text
    assert "/home" not in text


@pytest.mark.parametrize("mode", ["lfs", "regular"])
@pytest.mark.parametrize("make", [make_gan, make_pixels, make_latents])
def test_what_is_pushed_comes_back(server, spec, monkeypatch, make, mode):
    monkeypatch.setattr(server, "mode", lambda path: mode)
    source = make()
    facts = hub.facts_of(source, CONFIG | {"whiten": "zca"}, spec, 0.2)
    assert hub.push(source, NAME, card(NAME, [ROW], facts, [COMMAND]), facts) == f"{server.address}/{NAME}"
    assert set(server.newest()) == FILES
    for path in (f"hub:{NAME}", Path(f"hub:{NAME}"), f"hub:{NAME}@main", f"hub:{NAME}@{1:040x}"):
        assert same(load_source(path), source)
    assert hub.read_facts(Path(f"hub:{NAME}")) == json.loads(json.dumps(facts))
    assert facts["image_size"] == 8
    assert (facts["held_out"], facts["whiten"]) == (0.2, "zca")
    assert "data_dir" not in facts


def test_rows_of_a_teacher_go_with_the_images(server, spec):
    source = make_pixels()
    source.rows = Rows(torch.randn(10, 2, 10, generator=stream(0)).half(), "convnet", 90.0)
    hub.push(source, NAME, "card", hub.facts_of(source, CONFIG, spec, 0.2))
    loaded = load_source(f"hub:{NAME}").rows
    assert torch.equal(loaded.values, source.rows.values)
    assert (loaded.name, loaded.held_out_accuracy) == ("convnet", 90.0)
    hub.push(make_pixels(), NAME, "card", hub.facts_of(source, CONFIG, spec, 0.2))
    assert load_source(f"hub:{NAME}").rows is None


def test_the_card_says_what_it_is(spec):
    facts = hub.facts_of(make_gan(), CONFIG, spec, 0.1)
    text = card(NAME, [ROW, ROW | {"source": "random real images", "mean": 80.0, "protocol": "dsa"}], facts, [COMMAND])
    assert huggingface_hub.ModelCard(text).data.to_dict() == {
        "library_name": "diffusers", "tags": ["gendistil", "dataset-distillation", "dm"], "datasets": ["digits"],
        "pipeline_tag": "unconditional-image-generation"}
    for words in ("91.25 ± 1.50 (±3.70)", "80.00 ± 1.50", "scored once at the last step", "`--protocol dsa`", "12,345",
                  "Student's t", "10 classes (0, 1,", "1×8×8", "Method `dm`",
                  "```\npool_match.py --tag 'a b' --data-dir data\npool_match.py --resume\n```", " ".join(COMMAND),
                  "torch 2.15", "commit abc", f'load_source("hub:{NAME}")', "10 % of the training images"):
        assert words in text, words
    assert "were refined" not in text
    assert "were refined (noise 1.2)" in card(NAME, [ROW | {"refinement": "noise 1.2"}], facts, [COMMAND])
    stored = card(NAME, [ROW], hub.facts_of(make_pixels(), {}, spec, 0.1), [COMMAND])
    assert "How it was made is not recorded." in stored
    assert "Stored images" in stored
    own = make_pixels()
    own.__class__ = type("OwnSet", (PixelSet,), {})
    assert card(NAME, [ROW], hub.facts_of(own, {}, spec, 0.1), [COMMAND]) == stored
    assert "pipeline_tag" not in stored


def test_only_json_and_safetensors_are_downloaded(server, tmp_path):
    run = tmp_path / "run"
    make_gan().save_pretrained(run / "generator")
    (run / "config.json").write_text(json.dumps(CONFIG | {"data": "digits", "held_out": 0.3, "whiten": "zca"}))
    names = ("checkpoint.pt", "generator/diffusion_pytorch_model.bin", "samples/a.png", "report.json", "ipc10/set.safetensors")
    server.put(run, **dict.fromkeys(names, b"no"))
    assert same(load_source(f"hub:{NAME}"), make_gan())
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path in server.asked if "/resolve/" in path}
    assert fetched == {"config.json", "generator/config.json", "generator/diffusion_pytorch_model.safetensors"}
    facts = hub.read_facts(f"hub:{NAME}")
    assert (facts["data"], facts["held_out"], facts["method"], facts["whiten"]) == ("digits", 0.3, "dm", "zca")
    assert "data_dir" not in facts


def test_a_pipeline_on_a_hub_is_a_source(server, tmp_path):
    flow = NETWORKS["unet"][0](8, 1, 10, width=8, sample_steps=1)
    flow.as_pipeline().save_pretrained(tmp_path / "flow")
    server.put(tmp_path / "flow", **{"unet/diffusion_pytorch_model.bin": b"no", "run.py": b"no"})
    found, labels = load_source(f"hub:{NAME}"), torch.tensor([3, 4])
    assert torch.equal(found.sample(labels), load_source(tmp_path / "flow").sample(labels))
    assert not any(path.endswith((".bin", ".py")) for path in server.asked if "/resolve/" in path)


def test_a_new_model_takes_the_place_of_the_old_one(server, spec, tmp_path):
    run = tmp_path / "run"
    make_latents().save_pretrained(run / "latents")
    server.put(run, notes=b"mine", **{"diffusion_pytorch_model.safetensors.index.json": b"{}"})
    source = make_pixels()
    facts = hub.facts_of(source, {}, spec, 0.1)
    hub.push(source, NAME, "card", facts)
    assert server.newest()["notes"] == b"mine"
    assert set(server.newest()) == FILES | {"notes"}
    assert same(load_source(f"hub:{NAME}"), source)


def test_samples_of_a_model_on_a_hub(server, command, tmp_path):
    make_gan().save_pretrained(tmp_path / "gan")
    server.put(tmp_path / "gan")
    sets = []
    for path in (tmp_path / "gan", f"hub:{NAME}"):
        command(sample, "--pretrain-weight", path, "--ipc", 2, "--output-dir", tmp_path / "set")
        sets.append((tmp_path / "set" / "set.safetensors").read_bytes())
    assert sets[0] == sets[1]


def test_facts_of_a_stranger_are_taken_with_care(server, tmp_path):
    assert hub.read_facts(None) == hub.read_facts(tmp_path) == hub.read_facts(tmp_path / "nowhere") == {}
    mixed = b'{"data": 3, "image_size": "8", "held_out": 0.1, "x": 1}'
    odd = (b'{"classes": [[1]], "image_size": -5, "held_out": NaN, "dataset": {"classes": 5}, "data": "/etc", "commands": [3],'
           b' "method": "dm"}')
    folders = [(json.dumps({"data": name}).encode(), {}) for name in ("~/Pictures", "pictures", ".", "./digits", "")]
    known = [(b'{"data": "mnist"}', {"data": "mnist"})]
    for content, facts in ((b"{", {}), (b"[1]", {}), (mixed, {"held_out": 0.1}), (odd, {"method": "dm"}), *folders, *known):
        server.put(tmp_path, **{"gendistil.json": content})
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        server.repositories[NAME] = {hashlib.sha1(content).hexdigest(): server.newest()}
        assert hub.read_facts(f"hub:{NAME}") == facts


def test_the_pictures_of_a_model_of_a_folder_are_asked_for(server, fails, spec, tmp_path):
    source = make_pixels()
    hub.push(source, NAME, "card", hub.facts_of(source, {}, replace(spec, name="pets"), 0.1))
    error = fails(2, validate, "--pretrain-weight", f"hub:{NAME}", "--output-dir", tmp_path)
    assert f"hub:{NAME} learned pets, a folder of whoever made it: give --data" in error


def refused(call, *words, seconds=5):
    """`call()` raises a UserError of one line with these words, soon."""
    began = time.perf_counter()
    with pytest.raises(UserError) as raised:
        call()
    assert time.perf_counter() - began < seconds
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["hub:", "hub:x", "hub:a/b/c", "hub:a/b@", "hub:../x", "hub:a/b c", "hub:a/--b", "hub:/a/b"])
def test_a_bad_name(server, text):
    refused(lambda: load_source(text), text, "owner/name")
    assert not server.asked


@pytest.mark.parametrize("text", ["x", "a/b/c", "", "a b/c", "/x"])
def test_a_bad_name_to_push_to(text):
    with pytest.raises(argparse.ArgumentTypeError, match="owner/name"):
        hub.repository(text)


def test_an_unknown_model_or_revision(server, tmp_path):
    refused(lambda: load_source("hub:owner/nothing"), "hub:owner/nothing", "has no such model", "hf auth login")
    server.put(tmp_path)
    refused(lambda: load_source(f"hub:{NAME}@v2"), f"hub:{NAME}@v2", "no revision 'v2'")


def test_an_error_is_all_that_a_command_says(server, fails, tmp_path):
    server.put(tmp_path, "owner/empty")
    for name, reason in (("owner/nothing", "has no such model"), ("owner/empty", "holds no saved generator")):
        error = fails(2, sample, "--pretrain-weight", f"hub:{name}", "--output-dir", tmp_path / "set")
        assert f"hub:{name}" in error
        assert reason in error
        assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_repository_without_a_model(server, tmp_path):
    server.put(tmp_path, notes=b"x")
    refused(lambda: load_source(f"hub:{NAME}"), f"hub:{NAME} holds no saved generator")
    make_gan().save_pretrained(tmp_path, safe_serialization=False)
    server.put(tmp_path, "owner/pickles")
    refused(lambda: load_source("hub:owner/pickles"), "hub:owner/pickles holds a damaged generator")


def test_pickles_that_another_program_left_are_not_read(server, tmp_path):
    make_gan().save_pretrained(tmp_path / "gan", safe_serialization=False)
    server.put(tmp_path / "gan")
    folder = huggingface_hub.snapshot_download(NAME, endpoint=server.address, cache_dir=tmp_path / "cache" / "hub")
    assert (Path(folder) / "diffusion_pytorch_model.bin").exists()
    refused(lambda: load_source(f"hub:{NAME}"), "holds a damaged generator")


def test_without_a_network_the_cache_serves(server, tmp_path, monkeypatch):
    make_gan().save_pretrained(tmp_path / "gan")
    server.put(tmp_path / "gan")
    load_source(f"hub:{NAME}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert same(load_source(f"hub:{NAME}"), make_gan())
    assert same(load_source(f"hub:{NAME}@{'a' * 40}"), make_gan())
    other = "hub:owner/other"
    refused(lambda: load_source(other), f"{other} was not downloaded before", "cannot be reached", "HF_ENDPOINT")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert same(load_source(f"hub:{NAME}"), make_gan())


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as deaf:  # takes connections, and nobody serves them
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.server_port}")
        refused(lambda: load_source(f"hub:{NAME}"), f"hub:{NAME}", "cannot be reached")
        refused(lambda: hub.make_repository(NAME), f"--push-to-hub {NAME}", "cannot be reached")


def test_a_refused_upload(server, spec, monkeypatch):
    source = make_pixels()
    facts = hub.facts_of(source, {}, spec, 0.1)
    refused(lambda: hub.push(source, "somebody/else", "card", facts), "--push-to-hub somebody/else", "does not let you write")
    monkeypatch.setattr(server, "mode", lambda path: "none")
    refused(lambda: hub.push(source, NAME, "card", facts), f"--push-to-hub {NAME}", "did not take it")
    monkeypatch.delenv("HF_TOKEN")
    refused(lambda: hub.push(source, NAME, "card", facts), f"--push-to-hub {NAME}", "hf auth login", "HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    refused(lambda: hub.make_repository(NAME), f"--push-to-hub {NAME}", "cannot be reached")


QUICK = ("--ipc", 1, "--epochs", 1, "--min-steps", 1, "--num-eval", 1, "--aug-type", "none")


@pytest.fixture
def run(tmp_path, spec):
    """The folder of a run that made a small generator, of digits with a fifth held out."""
    make_gan().save_pretrained(tmp_path / "gan" / "generator")
    classes = ["zero", *spec.classes[1:]]
    (tmp_path / "gan" / "config.json").write_text(json.dumps(
        CONFIG | {"data": "digits", "image_size": None, "held_out": 0.2, "dataset": {"classes": classes}}))
    return tmp_path / "gan"


def test_validate_pushes_what_it_judged(server, command, run, tmp_path, capsys):
    words = ("--output-dir", tmp_path / "results", *QUICK)
    command(validate, "--tag", "a", "--pretrain-weight", f"mine={run}", "--push-to-hub", NAME, "--compare", "random", *words)
    assert f"uploaded: {server.address}/{NAME}" in capsys.readouterr().out
    assert set(server.newest()) == FILES
    rows = json.loads((tmp_path / "results" / "a" / "report.json").read_text())
    text = server.newest()["README.md"].decode()
    assert [row["source"] for row in rows] == ["mine", "random real images"]
    assert all(f"{row['mean']:.2f}" in text for row in rows)
    assert f"--push-to-hub {NAME}" in text
    assert "pool_match.py --tag 'a b'" in text
    facts = json.loads(server.newest()["gendistil.json"])
    assert (facts["data"], facts["image_size"], facts["held_out"], facts["method"]) == ("digits", 8, 0.2, "dm")
    assert same(load_source(f"hub:{NAME}"), load_source(run))

    # What was uploaded is judged as the run itself, with the data and the held-out part that it was made with.
    command(validate, "--tag", "b", "--pretrain-weight", f"mine=hub:{NAME}", "--compare", "random", *words)
    again = json.loads((tmp_path / "results" / "b" / "report.json").read_text())
    assert [row["accuracies"] for row in again] == [row["accuracies"] for row in rows]
    config = json.loads((tmp_path / "results" / "b" / "config.json").read_text())
    assert (config["data"], config["image_size"], config["held_out"]) == ("digits", 8, 0.2)


def test_a_published_set_is_pushed_as_it_was_read(server, command, tmp_path):
    torch.save([torch.rand(20, 1, 8, 8), torch.arange(10).repeat_interleave(2)], tmp_path / "data.pt")
    command(validate, "--pretrain-weight", tmp_path / "data.pt", "--factor", 2, "--push-to-hub", NAME, "--output-dir",
            tmp_path / "results", "--compile", "off", *QUICK)
    pushed = load_source(f"hub:{NAME}")
    assert same(pushed, load_source(tmp_path / "data.pt", reading=Reading(2)))
    assert pushed.decoded(2) == 8


def test_a_refusal_comes_before_the_work(server, fails, run, tmp_path, monkeypatch):
    monkeypatch.setattr(validate, "evaluate", lambda *_, **__: pytest.fail("students were trained"))
    words = ("--output-dir", tmp_path / "results", *QUICK)

    def refuses(name, reason, *weights):
        error = fails(2, validate, "--push-to-hub", name, "--pretrain-weight", *weights, *words)
        assert "--push-to-hub" in error
        assert reason in error
        assert error.count("\n") == 1

    refuses("somebody/else", "does not let you write", run)
    refuses("name", "owner/name", run)
    refuses(NAME, "give one --pretrain-weight, not 2", run, f"b={run}")
    monkeypatch.delenv("HF_TOKEN")
    refuses(NAME, "hf auth login", run)
    assert fails(2, validate, "--push-to-hub", NAME, "--compare", *words).count("\n") == 1
    assert not server.repositories
    assert not (tmp_path / "results").exists()
