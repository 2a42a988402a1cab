"""What a GPU must do as the CPU does. Skipped where there is none.

`DEVICE=cpu pytest tests/test_gpu.py` rehearses the same lines without one.
"""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import REFERENCE, TINY

import train
import train_h2l
from losses import critic_terms, sinkhorn, sinkhorn_distance
from models import HRCritic, LRCritic

DEVICE = os.environ.get("DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")
# the other options of TINY, with an alignment from the second epoch on
SHORT = ["--device", DEVICE, "--steps-per-epoch", "5"]
torch.backends.cudnn.allow_tf32 = False  # as the CPU
RANDOM_VGG = ["--vgg-weights", "random", *map(str, REFERENCE)]


def close(one, other, bound):
    """Whether the L2 norm of the difference is at most `bound` times that of the tensor."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    return (one - other).norm() <= bound * other.norm()


@pytest.mark.parametrize("critic, size, count", [(LRCritic, 16, 20), (HRCritic, 64, 13)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradients_of_a_critic_update_are_those_of_the_cpu(critic, size, count, memory_format):
    gradients = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        network = critic().to(memory_format=memory_format)
        real, fake = torch.rand(count, 3, size, size) * 2 - 1, torch.rand(count, 3, size, size) * 2 - 1
        mix = torch.rand(count)
        network, real, fake, mix = (part.to(device) for part in (network, real, fake, mix))
        critic_terms(network, fake, real, mix)["critic_loss"].backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    on_cpu, on_device = gradients
    for name in on_cpu:
        assert close(on_device[name], on_cpu[name], 1e-3), name


@pytest.mark.parametrize("problems", [26, 100])  # few are solved on the CPU
def test_sinkhorn_is_that_of_the_cpu(problems):
    x, y = torch.randn(problems, 16, 64), torch.randn(problems, 16, 64)
    results = []
    for device in ("cpu", DEVICE):
        points = x.to(device).requires_grad_()
        value = sinkhorn_distance(points, y.to(device))
        value.sum().backward()
        assert value.device.type == device and points.grad.device.type == device
        results.append((value, points.grad))
    (value, gradient), (device_value, device_gradient) = results
    assert close(device_value, value, 1e-4) and close(device_gradient, gradient, 1e-2)


def test_sinkhorn_on_the_device_itself():
    cost = sinkhorn.squared_distances(torch.randn(4, 16, 64), torch.randn(4, 16, 64))
    on_cpu, there = sinkhorn.solve(cost), sinkhorn.solve(cost.to(DEVICE))
    assert there.converged.all() and close(there.value, on_cpu.value, 1e-4)


def arguments(out, data, *more):
    return [*TINY, *SHORT, "--data", str(data), "--out", str(out), *map(str, more)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_stages_run_on_and_log_finite_terms(precision, demo_data, tmp_path):
    """11 iterations: two generator updates of stage 2 have the alignment."""
    common = ["--precision", precision, "--max-steps", 11]
    train_h2l.main(arguments(tmp_path, demo_data, *common))
    train.main(arguments(tmp_path, demo_data, *common, *RANDOM_VGG))
    for log in ("train_h2l.csv", "train.csv"):
        table = pd.read_csv(tmp_path / log)
        assert len(table) == 11, log
        assert all(len(terms := table[name].dropna()) and np.isfinite(terms).all() for name in table), log
    assert table["alignment_loss"].notna().sum() == 1  # iteration 10; 5 is in the first epoch
    for name in ("h2l", "sr"):
        content = torch.load(tmp_path / f"{name}.pth", weights_only=True)
        tensors = [tensor for network in content["weights"].values() for tensor in network.values()]
        assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("module", [train_h2l, train])
def test_a_resumed_run_goes_on_as_one_that_never_stopped(module, demo_data, h2l, tmp_path):
    more = ["--h2l", h2l, *RANDOM_VGG] if module is train else []
    name = "sr" if module is train else "h2l"
    module.main(arguments(tmp_path / "whole", demo_data, "--max-steps", 11, *more))
    for steps in (6, 11):
        module.main(arguments(tmp_path / "parts", demo_data, "--max-steps", steps, *more))
    whole, parts = (torch.load(tmp_path / folder / f"{name}_state.pth", weights_only=True) for folder in ("whole", "parts"))
    for network, tensors in whole["networks"].items():
        for key, tensor in tensors.items():  # cuDNN may choose another algorithm: near, not equal
            assert close(parts["networks"][network][key].float(), tensor.float(), 1e-2), (network, key)
    assert torch.equal(whole["noise"], parts["noise"])
