"""Images of a folder of `fewstep export RUN --to diffusers --out FOLDER`, by diffusers alone.

python diffusers_alone.py FOLDER
"""

import sys

from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipeline(batch_size=8, class_labels=[3] * 8, num_inference_steps=1, seed=0).images
for row, image in enumerate(images):
    image.resize((128, 128), resample=0).save(f"three-{row}.png")
