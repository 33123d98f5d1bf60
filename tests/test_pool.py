"""The pool of pretrained classifiers: what it keeps, when it trains, how it draws."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

import pools.kept
import pools.pool
from gendistil.common.engine import Engine
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import standardise, to_signed
from pools import ClassifierPool, RandomPool, accuracy, build_classifier, embed_images
from pools.pool import snapshot_steps

SETTINGS = {"members": 2, "epochs": 4, "snapshots": 3, "lr": 0.1, "aug_type": "crop", "options": {"convnet": {"width": 16}}}


def cpu():
    """An accelerator on which snapshots are scored in the precision in which they are scored again."""
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def pool(digits, folder):
    return ClassifierPool(digits, folder, cpu(), **SETTINGS)


@pytest.fixture
def trained(monkeypatch):
    """How often the training loop was started."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return train(*args, **kwargs)

    train = pools.pool.train_classifier
    monkeypatch.setattr(pools.pool, "train_classifier", counted)
    return calls


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_a_few_networks_stay_in_memory(digits, folder, pool, monkeypatch):
    monkeypatch.setattr(pools.kept, "_IN_MEMORY", 2 * pools.kept._bytes_of(pool[0]))
    again = ClassifierPool(digits, folder, cpu(), **SETTINGS)
    first = again[0]
    assert again[0] is first
    for index in (1, 0, 2):
        again[index]
    assert sorted(again._models) == [0, 2]
    assert again[0] is first
    torch.testing.assert_close(weights(again[1]), weights(pool[1]))
    monkeypatch.setattr(pools.kept, "_IN_MEMORY", 0)
    last = again[2]
    assert again._models == {2: last}  # that which is in use stays, however large


def test_networks_between_snapshots_are_drawn_from_the_line_that_joins_them(digits, folder, pool):
    mixing = ClassifierPool(digits, folder, cpu(), **SETTINGS, mix=True)
    assert mixing.dir == pool.dir
    shares = set()
    for draw in range(30):
        network, found = mixing.draw(stream(draw, "draw")), []
        for index in set(range(len(pool))) - set(pool.finished()):
            step, line = weights(network) - weights(pool[index]), weights(pool[index + 1]) - weights(pool[index])
            share = float(step @ line / line.square().sum())
            if torch.allclose(step, share * line, atol=1e-5, rtol=1e-4):
                found.append((index, round(share, 3)))
        (place,) = found
        assert 0 < place[1] < 1
        shares.add(place)
    assert len(shares) == 30
    rows = torch.arange(6)
    torch.testing.assert_close(mixing.embed(network, rows), network.embed(
        standardise(to_signed(digits.train.images[rows]), digits.spec)), atol=1e-2, rtol=1e-2)


def test_snapshots_are_kept_from_early_to_late_and_scored_on_held_out_images(pool, digits):
    rows = pool.table()
    assert len(pool) == len(rows) == 6
    assert [(row["member"], row["step"]) for row in rows] == [(m, step) for m in (0, 1) for step in (5, 21, 84)]
    for first, _, last in (rows[:3], rows[3:]):
        assert last["held_out_accuracy"] > first["held_out_accuracy"]
        assert last["held_out_accuracy"] > 85
    assert not torch.equal(weights(pool[2]), weights(pool[5]))
    held_out = digits.held_out
    for index, row in enumerate(rows):
        scored = accuracy(pool[index], held_out.images, held_out.labels, digits.spec)
        assert scored.item() == pytest.approx(row["held_out_accuracy"])
    record = json.loads((pool.dir / "pool.json").read_text())
    assert record["data"]["name"] == "digits"
    assert record["options"] == SETTINGS["options"]
    assert record["snapshots"] == rows
    assert sorted(path.name for path in pool.dir.iterdir()) == sorted(["pool.json", *(row["file"] for row in rows)])


def test_the_same_pool_is_not_trained_again_and_another_one_is(pool, digits, folder, trained):
    again = ClassifierPool(digits, folder, cpu(), **SETTINGS)
    assert not trained
    assert again.dir == pool.dir
    assert torch.equal(weights(again[4]), weights(pool[4]))
    quick = {**SETTINGS, "members": 1, "epochs": 1, "snapshots": 1}
    other = ClassifierPool(digits, folder, cpu(), **quick)
    fewer_images = ClassifierPool(replace(digits, train=digits.train[:300]), folder, cpu(), **quick)
    assert len(trained) == 2
    assert len({pool.dir, other.dir, fewer_images.dir}) == 3


def test_draws_are_uniform_and_follow_the_generator(pool):
    def sequence(seed):
        generator = stream(seed, "draw")
        return [pool.draw(generator) for _ in range(300)]

    first, members = sequence(0), [pool[index] for index in range(len(pool))]
    assert all(a is b for a, b in zip(first, sequence(0)))
    assert any(a is not b for a, b in zip(first, sequence(1)))
    counts = [sum(model is member for model in first) for member in members]
    assert sum(counts) == 300
    assert min(counts) > 25
    assert all(not model.training and not any(p.requires_grad for p in model.parameters()) for model in members)


def test_a_choice_of_images_is_made_by_a_network_that_has_learned_to_the_end(pool):
    chosen = {id(pool.last(stream(0, "last", draw))) for draw in range(30)}
    assert chosen == {id(pool[2]), id(pool[5])}


def test_a_pool_of_another_format_is_refused(digits, tmp_path):
    settings = {**SETTINGS, "members": 1, "epochs": 1, "snapshots": 1}
    record = ClassifierPool(digits, tmp_path, cpu(), **settings).dir / "pool.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
    with pytest.raises(UserError, match="has format 99 and this version reads format 1: remove the folder"):
        ClassifierPool(digits, tmp_path, cpu(), **settings)


def test_gradients_reach_the_images_through_a_frozen_member(pool):
    images = torch.randn(2, 1, 8, 8, requires_grad=True)
    pool[0](images).square().sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("damage", ["truncated", "altered", "deleted"])
def test_a_damaged_snapshot_is_trained_again_as_it_was(pool, digits, folder, trained, damage):
    path = pool.dir / pool.table()[4]["file"]
    sound = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(sound[: len(sound) // 2] if damage == "truncated" else sound[:-4] + b"\0\0\0\0")
    rebuilt = ClassifierPool(digits, folder, cpu(), **SETTINGS)
    assert len(trained) == 1  # the other member is left alone
    assert torch.allclose(weights(rebuilt[4]), weights(pool[4]), atol=1e-4)
    assert [row["step"] for row in rebuilt.table()] == [row["step"] for row in pool.table()]


def test_an_interrupted_pretraining_goes_on_with_the_missing_member(pool, digits, tmp_path, trained, monkeypatch):
    settings = {**SETTINGS, "epochs": 1}
    whole = ClassifierPool(digits, tmp_path / "whole", cpu(), **settings)
    counted, started = pools.pool.train_classifier, []

    def interrupted(*args, **kwargs):
        started.append(1)
        if len(started) == 2:
            raise KeyboardInterrupt
        return counted(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pools.pool, "train_classifier", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ClassifierPool(digits, tmp_path / "cut", cpu(), **settings)
    trained.clear()
    resumed = ClassifierPool(digits, tmp_path / "cut", cpu(), **settings)
    assert len(trained) == 1
    for index in range(len(whole)):
        assert torch.allclose(weights(resumed[index]), weights(whole[index]), atol=1e-4)


def test_an_incomplete_pool_is_not_opened(pool, tmp_path):
    shutil.copytree(pool.dir, tmp_path / "half")
    record = json.loads((pool.dir / "pool.json").read_text())
    for rows, count in ((record["snapshots"][:3], 1), (record["snapshots"][:-1], 1), ([], 0)):
        (tmp_path / "half" / "pool.json").write_text(json.dumps({**record, "snapshots": rows}))
        with pytest.raises(UserError, match=f"not complete: {count} of its 2 classifiers are there"):
            ClassifierPool.open(tmp_path / "half")


def test_a_member_that_another_run_has_made_meanwhile_is_taken_over(digits, tmp_path, monkeypatch):
    settings = {**SETTINGS, "epochs": 1}
    there = ClassifierPool(digits, tmp_path / "there", cpu(), **settings)
    here, train, members = tmp_path / "here", ClassifierPool._train_member, []

    def meanwhile(self, member, *args):
        """The first member is trained here while another run trains the second."""
        members.append(member)
        rows = train(self, member, *args)
        shutil.copytree(there.dir, self.dir, dirs_exist_ok=True)
        record = json.loads((there.dir / "pool.json").read_text())
        record["snapshots"] = [row for row in record["snapshots"] if row["member"] == 1]
        (self.dir / "pool.json").write_text(json.dumps(record))
        return rows

    monkeypatch.setattr(ClassifierPool, "_train_member", meanwhile)
    assert ClassifierPool(digits, here, cpu(), **settings).table() == there.table()
    assert members == [0]


def test_a_damaged_record_is_written_anew(digits, tmp_path):
    settings = {**SETTINGS, "members": 1, "epochs": 1, "snapshots": 1}
    first = ClassifierPool(digits, tmp_path, cpu(), **settings)
    for text in ("{", "[]", '{"snapshots": [{"member": 0}]}'):
        (first.dir / "pool.json").write_text(text)
        assert len(ClassifierPool(digits, tmp_path, cpu(), **settings)) == 1


def test_members_of_several_names(digits, tmp_path):
    pool = ClassifierPool(digits, tmp_path, cpu(), names=("convnet", "resnet10"), members=1, epochs=1,
                          snapshots=1, aug_type="none", options={"convnet": {"width": 8}, "resnet10": {"width": 8}})
    assert [row["name"] for row in pool.table()] == ["convnet", "resnet10"]
    assert pool[0](torch.zeros(1, 1, 8, 8)).shape == pool[1](torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_snapshot_steps():
    assert snapshot_steps(1600, 5) == [100, 200, 400, 800, 1600]
    assert snapshot_steps(100, 1) == [100]
    assert snapshot_steps(16, 2) == [1, 16]
    assert snapshot_steps(5, 5) == [1, 2, 3, 4, 5]
    for total in range(7, 60):
        steps = snapshot_steps(total, 7)
        assert steps == sorted(set(steps))
        assert steps[-1] == total
    with pytest.raises(UserError, match="snapshots"):
        snapshot_steps(4, 5)


def test_bad_requests(digits, tmp_path):
    with pytest.raises(UserError, match="give --pool-snapshots 2 or more"):
        ClassifierPool(digits, tmp_path, cpu(), **{**SETTINGS, "snapshots": 1}, mix=True)
    with pytest.raises(UserError, match="vgg"):
        ClassifierPool(digits, tmp_path, cpu(), names=("vgg",), members=1, epochs=1, snapshots=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ClassifierPool(digits, tmp_path / "file", cpu(), **{**SETTINGS, "epochs": 1})


def test_a_member_that_has_looked_at_enough_images_looks_at_all_and_what_it_saw_is_kept(digits, folder, pool, monkeypatch):
    looks = []

    def counted(model, images, *args, **options):
        looks.append(len(images if options["rows"] is None else options["rows"]))
        return embed_images(model, images, *args, **options)

    monkeypatch.setattr(pools.pool, "embed_images", counted)
    fresh, total, rows = ClassifierPool(digits, folder, cpu(), **SETTINGS), len(digits.train), torch.arange(0, 700, 3)
    network = fresh[2]
    try:
        seen = [fresh.embed(network, rows) for _ in range(total // len(rows) + 2)]
        again = ClassifierPool(digits, folder, cpu(), **SETTINGS)
        seen.append(again.embed(again[2], rows))
    finally:
        for path in fresh.dir.glob("*.npy"):
            path.unlink()
    assert looks == [len(rows)] * (total // len(rows)) + [total]
    try:
        assert torch.equal(fresh.embed(fresh[1], rows, whole=True), fresh.embed(fresh[1], rows))
    finally:
        for path in fresh.dir.glob("*.npy"):
            path.unlink()
    assert looks[-1] == total
    expected = embed_images(network, digits.train.images[rows], digits.spec)
    for points in seen:
        assert points.dtype == torch.float32
        torch.testing.assert_close(points, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(points, points.half().float())
    assert not list(fresh.dir.glob("*.partial*"))


@pytest.mark.parametrize("left", [0, 7, 200])  # bytes: none, a part of the header, a part of the numbers
def test_what_a_member_saw_is_seen_anew_where_the_file_is_cut_off(digits, folder, pool, left):
    rows = torch.arange(5)
    try:
        fresh = ClassifierPool(digits, folder, cpu(), **SETTINGS)
        before = fresh.embed(fresh[0], rows, whole=True)
        path, = fresh.dir.glob("*.npy")
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:left])
        again = ClassifierPool(digits, folder, cpu(), **SETTINGS)
        assert torch.equal(again.embed(again[0], rows, whole=True), before)
        assert path.stat().st_size == size
    finally:
        for path in fresh.dir.glob("*.npy"):
            path.unlink()


def test_what_a_member_saw_is_not_kept_where_there_is_no_room(digits, folder, pool, monkeypatch):
    def full(file, array):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pools.pool.np, "save", full)
    fresh, rows = ClassifierPool(digits, folder, cpu(), **SETTINGS), torch.arange(1000)
    network = fresh[2]
    seen = [fresh.embed(network, rows) for _ in range(4)]
    assert all(torch.equal(each, seen[0]) for each in seen)
    assert {path.suffix for path in fresh.dir.iterdir()} == {".json", ".safetensors"}


def test_batch_norms_of_a_network_that_has_not_learned_have_seen_images(digits, folder):
    settings = {**SETTINGS, "members": 1, "epochs": 1, "snapshots": 1, "names": ["convnet_bn:width=16"], "options": {}}
    untrained = ClassifierPool(digits, folder, cpu(), **settings, initial=True)[0]
    images = standardise(to_signed(digits.train.images[:200]), digits.spec)
    with torch.no_grad():
        seen = untrained.embed(images)
        fresh = RandomPool(digits, names=["convnet_bn:width=16"]).draw(stream(0, "fresh")).embed(images)
    assert 0.5 < seen.std() / fresh.std() < 2


def test_the_precision_of_the_pretraining_is_a_part_of_what_a_pool_is(digits, folder):
    class Half(Engine):
        precision = "bf16"

        def autocast(self):
            return contextlib.nullcontext()

    small = {**SETTINGS, "members": 1, "epochs": 1, "snapshots": 1}
    exact, mixed = (ClassifierPool(digits, folder, cpu(), **small, engine=engine) for engine in (Engine(cpu()), Half()))
    assert exact.dir != mixed.dir


@pytest.mark.parametrize(("count", "seen"), [(1, [1]), (3, [3]), (4, [4]), (5, [5]), (6, [4, 2]), (9, [4, 5])])
def test_no_image_is_seen_alone_after_others(digits, monkeypatch, count, seen):
    """Because a network rounds otherwise there, by which what is kept would differ from what is asked for again."""
    sizes = []
    network = build_classifier("convnet:depth=1,width=8", 1, 8, 10)
    monkeypatch.setattr(network, "embed", lambda batch: sizes.append(len(batch)) or batch.flatten(1))
    images = digits.train.images[:count]
    for rows in (None, torch.arange(count)):
        sizes.clear()
        assert torch.equal(embed_images(network, images, digits.spec, 4, rows=rows), standardise(to_signed(images), digits.spec)
                           .flatten(1))
        assert sizes == seen
