"""Class-conditional pipelines of diffusers as sources: whatever draws images for `class_labels`."""

import inspect
import json

import diffusers
import torch
from torchvision.transforms.functional import rgb_to_grayscale

from gendistil.common.errors import UserError
from gendistil.common.flags import flag_of
from gendistil.common.rng import stream
from gendistil.common.source import Source, index_within_class
from gendistil.data.images import resize, to_signed
from generators.pipeline import FlowPipeline
from generators.unet import check_shortcut

INDEX, CLASS_MAP = "model_index.json", "class_map.json"
"""The file by which a folder is known as a pipeline, and the one beside it that says which of its classes are a data set's."""

_AT_ONCE = 64  # images that are drawn together
_IMAGENET = 1000  # classes
_OPTIONS = {"sample_steps": "num_inference_steps", "guidance": "guidance_scale"}
"""Options of drawing by the names of their flags, and as a pipeline has them."""


class PipelineSource(Source):
    """The images of a pipeline, which has learned from other data than what it is judged on: a distilled source.

    Each image has a random stream of its own, named by (seed, class, index within the class). Args: pipeline, whose call takes
    `class_labels`; name, the folder that it comes from; num_classes, channels, size of its images; classes, int64 [K], the
    pipeline's number of each class, None for the same.
    """

    def __init__(self, pipeline, name, num_classes, channels, size, classes=None):
        self.pipeline, self.name, self.classes = pipeline, name, classes
        self.num_classes, self.channels, self.size = num_classes, channels, size
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        self.remark = f"a {type(pipeline).__name__} that learned elsewhere"
        transformer = getattr(pipeline, "transformer", None)  # DiTPipeline guides by class 1000, whatever stands for none
        self.unguided = transformer is not None and transformer.config.num_embeds_ada_norm != _IMAGENET

    @classmethod
    def load(cls, folder, device="cpu", use_safetensors=None):
        """The pipeline in `folder`, without pickles if `use_safetensors`. Raises UserError for one that draws no images of a
        class, and for a damaged one."""
        try:
            index = json.loads((folder / INDEX).read_text())
            name = str(index["_class_name"])
            # No code that lies in the folder is run, neither as the pipeline nor, below, as one of its parts.
            kind = FlowPipeline if name == FlowPipeline.__name__ else getattr(diffusers, name)
            asked = inspect.signature(kind.__call__).parameters
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / INDEX} names no pipeline of diffusers: save it again") from None
        if "class_labels" not in asked:
            raise UserError(f"{folder} holds a {name}, which draws no images of a class: name a DiTPipeline, a "
                            "ConsistencyModelPipeline or a flow that sample.py --format pipeline wrote")
        for part, value in index.items():
            if isinstance(value, list) and value and isinstance(value[0], str) and value[0] != "diffusers":
                raise UserError(f"{folder / INDEX}: '{part}' is of {value[0]}, and only parts of diffusers are loaded: name "
                                "another pipeline")
        try:
            pipeline = kind.from_pretrained(folder, local_files_only=True, use_safetensors=use_safetensors).to(device)
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, AttributeError, ImportError) as error:
            raise UserError(f"{folder} holds a damaged {name} ({type(error).__name__}): save it again") from None
        pipeline.set_progress_bar_config(disable=True)
        source = cls._of(pipeline, folder)
        if (folder / CLASS_MAP).exists():
            source.classes = source._numbers(folder / CLASS_MAP)
            source.num_classes = len(source.classes)
        return source

    @classmethod
    def _of(cls, pipeline, folder):
        """All classes of a pipeline."""
        if hasattr(pipeline, "transformer"):  # whose scheduler is given no random stream: a deterministic one
            pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
            shape = pipeline.transformer.config
            finer = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
            return cls(pipeline, folder, shape.num_embeds_ada_norm, pipeline.vae.config.out_channels, shape.sample_size * finer)
        shape = pipeline.unet.config
        count = pipeline.config.get("classes", shape.num_class_embeds)
        if count is None:
            raise UserError(f"{folder} holds a {type(pipeline).__name__} that knows no classes: name one that was trained with "
                            "them")
        return cls(pipeline, folder, count, shape.in_channels, pipeline.config.get("size", shape.sample_size))

    def fitted(self, spec):
        """The classes of a data set, resized to its images, grey or in colour as they are.

        Which classes these are, class_map.json in the pipeline's folder says: a list of its number of each class of the data
        set. Without that, they are all of them, or those of the same names. Raises UserError where neither is so.
        """
        classes = self.classes
        if self.num_classes != spec.num_classes:
            known = getattr(self.pipeline, "labels", {}) if classes is None else {}
            if not {*spec.classes} <= {*known}:
                raise UserError(f"{self.name} draws {self.num_classes} classes, not those of {spec.name}: write {CLASS_MAP} "
                                f"there, a list of {spec.num_classes} of its class numbers, one for each of "
                                f"{', '.join(spec.classes[:3])}, ...")
            classes = torch.tensor([int(known[name]) for name in spec.classes])
        return PipelineSource(self.pipeline, self.name, spec.num_classes, spec.channels, spec.size, classes)

    def _numbers(self, file):
        """The list of the pipeline's class numbers in `file`: int64 [K]."""
        try:
            classes = torch.tensor([int(number) for number in json.loads(file.read_text())])
            if not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
                raise ValueError
        except (OSError, ValueError, TypeError, RuntimeError):
            raise UserError(f"{file} is no list of class numbers below {self.num_classes}, those that {self.name} draws: write "
                            "one for each class of the data set") from None
        return classes

    def stored_bytes(self, ipc):
        """Those of all parts of the pipeline, whatever the number of images."""
        parts = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(value.nbytes for part in parts for value in part.state_dict().values())

    def check_sampling(self, **sampling):
        if self.unguided and sampling.get("guidance", 1.0) > 1:
            raise UserError(f"--guidance: a {type(self.pipeline).__name__} guides by class {_IMAGENET}, which that of "
                            f"{self.name} has not: leave it out")
        if not self.pipeline.config.get("guidable", True) and sampling.get("guidance", 1.0) != 1:
            raise UserError(f"--guidance: the flow of {self.name} knows no image without a class: leave it out")
        for name in sampling:
            if _OPTIONS[name] not in self.parameters:
                raise UserError(f"{flag_of(name)}: the {type(self.pipeline).__name__} of {self.name} has none: leave it out")
        if self.pipeline.config.get("shortcut"):
            check_shortcut(**sampling)

    def sample(self, labels, seed=0):
        return self.images_at(labels, index_within_class(labels), seed)

    @torch.no_grad()
    def images_at(self, labels, index, seed=0, noise_std=1.0, **sampling):
        """As `sample`, but for any indices within the classes, int64 [B], and other options of drawing."""
        if noise_std != 1:
            raise UserError(f"--noise-std: a {type(self.pipeline).__name__} draws its own noise: leave it out")
        parts = zip(labels.split(_AT_ONCE), index.split(_AT_ONCE))
        images = [self._draw(label.tolist(), place.tolist(), seed, sampling) for label, place in parts]
        return torch.cat(images).to(labels.device)

    def _draw(self, labels, index, seed, sampling):
        numbers = labels if self.classes is None else self.classes[labels].tolist()
        options = {"guidance_scale": 1.0} if self.unguided else {}
        options |= {_OPTIONS[name]: value for name, value in sampling.items()}
        if "batch_size" in self.parameters:
            options["batch_size"] = len(labels)
        streams = [stream(seed, "pipeline", *pair) for pair in zip(labels, index)]
        images = self.pipeline(class_labels=numbers, generator=streams, output_type="np", **options).images
        images = (torch.from_numpy(images) * 255).round().to(torch.uint8).permute(0, 3, 1, 2)  # B,C,H,W
        if images.shape[1] != self.channels:
            images = rgb_to_grayscale(images) if self.channels == 1 else images.expand(-1, self.channels, -1, -1)
        return to_signed(resize(images, self.size))
