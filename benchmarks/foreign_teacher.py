"""A DDPM of CIFAR-10 at 16x16, trained by diffusers' own classes for some minutes of one core.

    OMP_NUM_THREADS=1 python benchmarks/foreign_teacher.py DIR [--minutes 30] [--class-conditional]

DIR is then a folder for `diffusers:DIR`: somebody else's checkpoint, as docs/your-own-teacher.md
needs it. With --class-conditional it predicts v on squared cosine betas and has ten classes.
"""

import argparse
import time

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from fewstep import data

BATCH, RATE, WARMUP = 32, 1e-3, 200


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--minutes", type=float, default=30, help="CPU time")
    parser.add_argument("--class-conditional", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    real = data.load("cifar10", size=16)
    classes = real.classes if options.class_conditional else None
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(48, 96, 96),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        num_class_embeds=classes,
    )
    scheduler = DDPMScheduler(
        prediction_type="v_prediction" if classes else "epsilon",
        beta_schedule="squaredcos_cap_v2" if classes else "linear",
    )
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.0)
    average = EMAModel(network.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    start, step, seconds = time.process_time(), 0, 60 * options.minutes
    while (used := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * max(0.02, 1 - used / seconds)
        rows = torch.randint(len(real), (BATCH,))
        x0 = real.images[rows].float() / 127.5 - 1
        mirror = torch.rand(BATCH) < 0.5
        x0[mirror] = x0[mirror].flip(-1)
        eps, t = torch.randn_like(x0), torch.randint(1000, (BATCH,))
        target = scheduler.get_velocity(x0, eps, t) if classes else eps
        labels = real.labels[rows] if classes else None
        output = network(scheduler.add_noise(x0, eps, t), t, class_labels=labels).sample
        loss = (output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())
        step += 1
        if step % 500 == 0:
            print(f"step {step}: {used:.0f} s, loss {loss.item():.4f}", flush=True)
    average.copy_to(network.parameters())
    DDPMPipeline(network, scheduler).save_pretrained(options.folder)
    print(f"{step} steps, {step * BATCH} images")


if __name__ == "__main__":
    main()
