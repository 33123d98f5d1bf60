"""Flows as pipelines of diffusers, and pipelines of diffusers as sources."""

import json

import diffusers
import pytest
import torch

import sample
import validate
from gendistil.common.errors import UserError
from gendistil.common.rng import stream
from gendistil.data import Spec
from gendistil.evaluation.rows import read_report
from gendistil.sources import draw_set, load_source
from generators.pipeline import FlowPipeline
from generators.unet import FlowGenerator

STANDARD = (0.5,)


def flow(shortcut, size=8, channels=1):
    torch.manual_seed(0)
    made = FlowGenerator(size, channels, 10, width=16, sample_steps=2, guidance=1.0 if shortcut else 1.5, shortcut=shortcut)
    with torch.no_grad():  # an untrained U-Net ends in zeros
        made.unet.conv_out.weight.normal_(0, 0.1, generator=stream(0, "last layer"))
    return made.eval()


@pytest.mark.parametrize(("shortcut", "size"), [(False, 8), (True, 9)])
def test_a_flow_draws_the_same_as_a_pipeline(tmp_path, shortcut, size):
    made = flow(shortcut, size)
    made.as_pipeline().save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert type(loaded).__module__ != FlowPipeline.__module__  # the file that lies beside the weights
    loaded.set_progress_bar_config(disable=True)
    noise, labels = torch.randn(6, 1, size, size, generator=stream(0, "noise")), torch.tensor([0, 3, 9, 9, 1, 4])
    for options, asked in ({}, {}), ({"sample_steps": 4}, {"num_inference_steps": 4}):
        with torch.no_grad():
            images = made(noise.flatten(1), labels, **options)
        drawn = loaded(class_labels=labels.tolist(), latents=noise, output_type="pt", **asked).images
        torch.testing.assert_close(drawn * 2 - 1, images, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/pipeline.py").read_text() == (tmp_path / "pipeline.py").read_text()
    assert loaded(class_labels=[1]).images[0].size == (size, size)


def test_a_pipeline_draws_in_half_precision_too(tmp_path):
    flow(False).as_pipeline().save_pretrained(tmp_path)
    pipeline = FlowPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=[0, 3], num_inference_steps=4, generator=stream(0), output_type="pt").images
    whole = FlowPipeline.from_pretrained(tmp_path)(class_labels=[0, 3], num_inference_steps=4, generator=stream(0),
                                                   output_type="pt").images
    assert (images - whole).abs().mean() < 0.05


def test_a_flow_without_unlabelled_images_is_not_guided(tmp_path):
    made = flow(False)
    made.register_to_config(guidable=False)
    made.guidable = False
    made.as_pipeline().save_pretrained(tmp_path)
    source = load_source(tmp_path).fitted(spec("0123456789", 1, 8))
    with pytest.raises(UserError, match=r"--guidance: the flow of .* knows no image without a class"):
        source.check_sampling(guidance=2.0)
    with pytest.raises(ValueError, match="knows no image without a class"):
        source.pipeline(class_labels=[1], guidance_scale=2)
    source.check_sampling(guidance=1.0)


def spec(names, channels, size):
    return Spec("made", tuple(names), channels, size, STANDARD * channels, STANDARD * channels, True)


def transformer(classes=1000):
    """A DiT of four pixels of latents."""
    shape = {"sample_size": 4, "num_layers": 1, "patch_size": 2, "attention_head_dim": 4, "num_attention_heads": 2,
             "in_channels": 4, "out_channels": 8, "attention_bias": True, "activation_fn": "gelu-approximate",
             "num_embeds_ada_norm": classes, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    decoder = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, up_block_types=("UpDecoderBlock2D",) * 2,
                                      down_block_types=("DownEncoderBlock2D",) * 2)
    return diffusers.DiTPipeline(diffusers.DiTTransformer2DModel(**shape), decoder, diffusers.DDPMScheduler())


def consistency():
    """A consistency model of eight pixels and five classes."""
    network = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, num_class_embeds=5,
                                    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    return diffusers.ConsistencyModelPipeline(network, diffusers.CMStochasticIterativeScheduler())


@pytest.mark.parametrize(("make", "classes", "shape", "names"), [
    (transformer, 1000, (3, 8), ("hound", "cat")), (consistency, 5, (3, 8), "abcde"),
    (lambda: flow(False).as_pipeline(), 10, (1, 8), "0123456789")])
def test_a_pipeline_is_a_source(tmp_path, make, classes, shape, names):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    if make is transformer:  # as that of ImageNet's has it; saving leaves it out
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"id2label": {7: "cat", 3: "dog, hound"}}))
    natural = load_source(tmp_path)
    assert (natural.num_classes, natural.channels, natural.size) == (classes, *shape)
    source = natural.fitted(spec(names, 1, 6))
    labels = torch.tensor([1, 0, 1, 1])
    images = source.sample(labels, 5)
    assert images.shape == (4, 1, 6, 6)
    assert images.min() >= -1
    assert images.max() <= 1
    torch.testing.assert_close(source.sample(labels[1:], 5)[[0, 1]], images[[1, 0]], atol=2 / 255, rtol=0)
    torch.testing.assert_close(source.images_at(torch.tensor([1]), torch.tensor([2]), 5)[0], images[3], atol=2 / 255, rtol=0)
    assert not torch.equal(images[0], images[2])
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert 0 < source.stored_bytes(1) <= size
    assert "learned elsewhere" in source.remark


def test_a_transformer_of_other_classes_than_those_of_imagenet_is_not_guided(tmp_path):
    transformer(10).save_pretrained(tmp_path)
    source = load_source(tmp_path).fitted(spec("0123456789", 3, 8))
    assert source.sample(torch.tensor([9, 0])).shape == (2, 3, 8, 8)  # diffusers' own default guides by a class 1000
    source.check_sampling(guidance=1.0)
    with pytest.raises(UserError, match="guides by class 1000"):
        source.check_sampling(guidance=2.0)


def test_which_of_its_classes_are_those_of_the_data_set(tmp_path):
    consistency().save_pretrained(tmp_path)
    wanted = spec("xy", 3, 8)
    with pytest.raises(UserError, match=r"draws 5 classes, not those of made: write class_map\.json there, a list of 2"):
        load_source(tmp_path).fitted(wanted)
    (tmp_path / "class_map.json").write_text(json.dumps([4, 2]))
    source, whole = load_source(tmp_path).fitted(wanted), load_source(tmp_path)
    assert source.classes.tolist() == [4, 2]
    drawn = whole.pipeline(class_labels=[4], batch_size=1, generator=[stream(1, "pipeline", 0, 0)], output_type="pt").images
    torch.testing.assert_close(source.sample(torch.tensor([0]), 1), drawn * 2 - 1, atol=1e-2, rtol=0)
    bare = load_source(tmp_path)  # as sample.py takes it
    assert torch.equal(bare.sample(torch.tensor([0, 1]), 1), source.sample(torch.tensor([0, 1]), 1))
    assert bare.num_classes == 2
    for wrong in ([4], [4, 5], "no", {}):
        (tmp_path / "class_map.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"class_map\.json"):
            load_source(tmp_path).fitted(wanted)


def test_what_is_no_such_pipeline_is_refused(tmp_path):
    index = tmp_path / "model_index.json"
    for text, said in (("{", "names no pipeline"), ('{"_class_name": "Nothing"}', "names no pipeline"),
                       ('{"_class_name": "StableDiffusionPipeline"}', "draws no images of a class"),
                       ('{"_class_name": "DiTPipeline"}', "holds a damaged DiTPipeline"),
                       ('{"_class_name": "DiTPipeline", "vae": ["other", "Sam"]}', "only parts of diffusers are loaded")):
        index.write_text(text)
        with pytest.raises(UserError, match=said):
            load_source(tmp_path)


def test_no_code_that_lies_in_its_folder_is_run(tmp_path):
    flow(False).as_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "mine.py").write_text("raise SystemExit('was run')\n")
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": ["mine", "UNet"]}))
    with pytest.raises(UserError, match=r"model_index\.json: 'unet' is of mine, and only parts of diffusers are loaded"):
        load_source(tmp_path)


def test_scripts_write_and_judge_them(command, fails, tmp_path, monkeypatch, on_the_cpu):
    monkeypatch.chdir(tmp_path)
    flow(False).save_pretrained("model")
    command(sample, "--pretrain-weight", "model", "--ipc", 1, "--format", "pipeline", "--output-dir", "set")
    command(validate, "--data", "digits", "--pretrain-weight", "own=model", "other=set/pipeline", "--ipc", 1, "--sampling",
            "fixed", "--epochs", 1, "--min-steps", 1, "--num-eval", 1)
    error = fails(2, sample, "--pretrain-weight", "set/pipeline", "--ipc", 1, "--output-dir", "set")
    assert "set/pipeline would be removed with the earlier set" in error
    command(sample, "--pretrain-weight", "model", "--ipc", 1, "--format", "pipeline", "--output-dir", "few",
            "--sample-steps", 3, "--guidance", 2)
    config = json.loads((tmp_path / "few/pipeline/model_index.json").read_text())
    assert (config["steps"], config["guidance"]) == (3, 2)
    rows = read_report(tmp_path / "results/test/report.json")
    assert [row["source"] for row in rows] == ["own", "other, a FlowPipeline that learned elsewhere"]
    assert rows[0]["bytes"] == rows[1]["bytes"]
    assert "and --pretrain-weight set/pipeline is a pipeline" in fails(
        2, validate, "--data", "digits", "--tag", "up", "--pretrain-weight", "set/pipeline", "--push-to-hub", "a/b")
    flow(True).as_pipeline().save_pretrained("short")
    for words, said in ((("--sample-steps", 3), "--sample-steps 3: a shortcut"), (("--guidance", 2), "learned its guidance")):
        assert said in fails(2, sample, "--pretrain-weight", "short", "--ipc", 1, "--output-dir", "none", *words)
    with pytest.raises(ValueError, match="learned its guidance"):
        load_source(tmp_path / "short").pipeline(class_labels=[0], guidance_scale=2)
    assert "--noise-std: a FlowPipeline draws its own noise" in fails(
        2, validate, "--data", "digits", "--pretrain-weight", "set/pipeline", "--ipc", 1, "--noise-std", 2, "--overwrite")
    other = load_source(tmp_path / "set/pipeline")
    assert draw_set(other, 2, 0)[0].shape == (20, 1, 8, 8)
    assert "--format pipeline is for a flow" in fails(2, sample, "--pretrain-weight", "set/pipeline", "--ipc", 1, "--format",
                                                     "pipeline", "--output-dir", "none")
