"""A class-conditional flow as a pipeline of diffusers.

This file needs nothing but torch and diffusers, and lies beside the weights:

    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipeline(class_labels=[0, 1, 2]).images
"""

import contextlib
import math
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor


class FlowPipeline(DiffusionPipeline):
    """Euler steps along a velocity field from noise to an image, under classifier-free guidance unless that is 1.

    Args: unet, a `UNet2DModel` whose class embedding has a row for each class and one more for none, of a shortcut as many
    again for each length of its steps, 1, 1/2, 1/4, ... of the way; size, pixels a side; classes, how many; steps, guidance,
    what a call takes unless it says otherwise; shortcut, whether the network knows the length of a step; guidable, whether it
    has learned images without a class, which guidance needs.
    """

    def __init__(self, unet: UNet2DModel, size: int = 32, classes: int = 10, steps: int = 16, guidance: float = 1.0,
                 shortcut: bool = False, guidable: bool = True):
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(size=size, classes=classes, steps=steps, guidance=guidance, shortcut=shortcut,
                                guidable=guidable)

    def save_pretrained(self, folder, **options):
        """Write the weights, and this file beside them."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(__file__, Path(folder) / "pipeline.py")
        super().save_pretrained(folder, **options)

    @torch.no_grad()
    def __call__(self, class_labels, num_inference_steps=None, guidance_scale=None, generator=None, latents=None,
                 output_type="pil", return_dict=True):
        """Draw an image for each of `class_labels`, a list of numbers.

        Args: num_inference_steps, of a shortcut a power of two up to 64; guidance_scale, 1 for none; generator, one
        `torch.Generator` or one for each image; latents, the noise, float [B, C, size, size]; output_type, "pil", "np" (float
        [B, size, size, C] from 0 to 1) or "pt" (float [B, C, size, size]).
        """
        facts, device = self.config, self._execution_device
        steps = num_inference_steps or facts.steps
        guidance = facts.guidance if guidance_scale is None else guidance_scale
        span = int(math.log2(steps)) if facts.shortcut else 0
        if facts.shortcut and (2**span != steps or span > 6):
            raise ValueError(f"num_inference_steps is {steps}: a shortcut draws in 1, 2, 4, ... or 64 steps")
        if facts.shortcut and guidance != 1:
            raise ValueError(f"guidance_scale is {guidance:g}: a shortcut has learned its guidance")
        if not facts.guidable and guidance != 1:
            raise ValueError(f"guidance_scale is {guidance:g}: this flow knows no image without a class")
        labels = torch.as_tensor(class_labels, device=device).reshape(-1)
        shape = (len(labels), self.unet.config.in_channels, facts.size, facts.size)
        x = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.float()
        for step in self.progress_bar(range(steps)):
            time = x.new_full((len(x),), 1 - step / steps)
            lead = self._velocity(x, labels, time, span)
            if guidance != 1:
                free = self._velocity(x, torch.full_like(labels, facts.classes), time, span)
                lead = free + guidance * (lead - free)
            x = x - lead / steps
        images = x.clamp(-1, 1) / 2 + 0.5
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _velocity(self, x, labels, time, span):
        padding, size = self.unet.config.sample_size - self.config.size, self.config.size
        x = torch.nn.functional.pad(x.to(self.unet.dtype), (0, padding, 0, padding))
        rows = labels + span * (self.config.classes + 1)
        return self.unet(x, 1000 * time, rows, return_dict=False)[0][..., :size, :size].float()
