"""The reference's way to do the same updates, written from its description: what bench.py compares this project with.

fp32, NCHW, anomaly detection always on; four decodes with their graphs in an iteration, of which one is used; eight picture
grids written in each; fake and real faces in separate passes; Sinkhorn unrolled through 300 iterations and differentiated
through all of them; optimizers as they come; at test time one image after another.
"""

import copy
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import train
import train_h2l

SINKHORN_ITERATIONS = 300


def unrolled_sinkhorn(x: Tensor, y: Tensor, eps: float, iterations: int = SINKHORN_ITERATIONS) -> tuple[Tensor, Tensor]:
    """<P, C> of x [B, n, d] and y [B, m, d] after so many log-domain iterations, with their graph -> [B], plan [B, n, m]."""
    cost = (x[:, :, None] - y[:, None]).square().sum(dim=-1)
    n, m = cost.shape[1:]
    f, g = cost.new_zeros(len(cost), n, 1), cost.new_zeros(len(cost), 1, m)
    for _ in range(iterations):
        f = -eps * (torch.logsumexp((g - cost) / eps, dim=2, keepdim=True) - math.log(m))
        g = -eps * (torch.logsumexp((f - cost) / eps, dim=1, keepdim=True) - math.log(n))
    plan = torch.exp((f + g - cost) / eps - math.log(n * m))
    return (plan * cost).sum(dim=(1, 2)), plan


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """One random mix for the whole batch, as in the reference."""
    mix = torch.rand(1, device=real.device)
    x = (mix * real + (1 - mix) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def update_critic(critic: nn.Module, optimizer: torch.optim.Optimizer, fake: Tensor, real: Tensor, weight: float) -> None:
    """Fake and real faces in separate passes; weight: that of the gradient penalty."""
    optimizer.zero_grad()
    loss = critic(fake.detach()).mean() - critic(real).mean()
    (loss + weight * gradient_penalty(critic, real, fake)).backward()
    optimizer.step()


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network in NCHW."""
    return copy.deepcopy(network).to(memory_format=torch.contiguous_format)


class SuperResolution:
    """Stage 2, the reference's way, from the weights of this project's stage."""

    def __init__(self, stage: train.SuperResolution, folder: Path) -> None:
        self.options, self.folder = stage.options, folder
        self.degrade, self.perceptual_loss = copied(stage.degrade), copied(stage.perceptual_loss)
        self.extractor, self.decoder, self.critic = copied(stage.extractor), copied(stage.decoder), copied(stage.critic)
        options, betas = self.options, (self.options.beta1, self.options.beta2)
        generator_side = [*self.extractor.parameters(), *self.decoder.parameters()]
        self.generator_optimizer = torch.optim.Adam(generator_side, options.generator_lr, betas)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, betas)
        self.alignment_optimizer = torch.optim.Adam(self.extractor.parameters(), options.alignment_lr, betas)

    def iterate(self, iteration: int, y: Tensor, x_c: Tensor, x_r: Tensor) -> None:
        options = self.options
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            x_d = self.degrade(x_c, torch.randn(len(x_c), 16, device=x_c.device)).detach().clamp(-1, 1)
            x_m = options.alpha * x_c + (1 - options.alpha) * x_d
            inputs = {"mixed": x_m, "clean": x_c, "degraded": x_d, "real": x_r}
            features = {name: self.extractor(faces) for name, faces in inputs.items()}
            outputs = {name: self.decoder(maps) for name, maps in features.items()}
            sr = outputs["mixed"]

            update_critic(self.critic, self.critic_optimizer, sr, y, options.gradient_penalty_weight)
            if iteration % options.critic_updates == 0:
                self.generator_optimizer.zero_grad()
                loss = self.perceptual_loss(sr, y) + options.l1_weight * functional.l1_loss(sr, y)
                (loss - options.adversarial_weight * self.critic(sr).mean()).backward(retain_graph=True)
                self.generator_optimizer.step()

                self.alignment_optimizer.zero_grad()
                target = features["mixed"].detach().flatten(2).mT
                distances = [
                    unrolled_sinkhorn(self.extractor(faces).flatten(2).mT, target, options.sinkhorn_eps)[0].mean()
                    for faces in (x_c, x_d)
                ]
                (options.alpha * distances[0] + (1 - options.alpha) * distances[1]).backward()
                self.alignment_optimizer.step()
        for kind, pictures in (("in", inputs), ("out", outputs)):
            for name, faces in pictures.items():
                torchvision.utils.save_image(faces.detach(), self.folder / f"{kind}_{name}.png", normalize=True)


class Degradation:
    """Stage 1, the reference's way, from the weights of this project's stage."""

    def __init__(self, stage: train_h2l.Degradation, folder: Path) -> None:
        self.options, self.folder = stage.options, folder
        self.generator, self.critic = copied(stage.generator), copied(stage.critic)
        options = self.options
        betas = (options.beta1, options.beta2)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), options.generator_lr, betas)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), options.critic_lr, train_h2l.CRITIC_BETAS)

    def iterate(self, iteration: int, x_c: Tensor, x_r: Tensor) -> None:
        options = self.options
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            x_d = self.generator(x_c, torch.randn(len(x_c), 16, device=x_c.device))
            update_critic(self.critic, self.critic_optimizer, x_d, x_r, options.gradient_penalty_weight)
            if iteration % options.critic_updates == 0:
                self.generator_optimizer.zero_grad()
                loss = options.pixel_weight * functional.mse_loss(x_d, x_c)
                (loss - options.adversarial_weight * self.critic(x_d).mean()).backward()
                self.generator_optimizer.step()
        for name, faces in (("clean", x_c), ("degraded", x_d.detach()), ("real", x_r)):
            torchvision.utils.save_image(faces, self.folder / f"{name}.png", normalize=True)


def super_resolve_one_by_one(extractor: nn.Module, decoder: nn.Module, files: list[Path], target: Path) -> None:
    """Decode, super-resolve in fp32 and save, one image after another."""
    device = next(extractor.parameters()).device
    for file in files:
        face = np.asarray(Image.open(file).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float32)
        x = torch.from_numpy(face / 127.5 - 1).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            sr = decoder(extractor(x))[0].clamp(-1, 1)
        torchvision.utils.save_image((sr + 1) / 2, target / f"{file.stem}.png")
