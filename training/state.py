"""What a run saves: its networks, their EMA, its optimizers, its noise, and how far it is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import utils

EMA_EVERY = 4  # updates of the weights: the EMA itself takes a tenth of an iteration


class Network:
    """A network of a run, which computes in the run's precision: floating point in, the same dtype out."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """dtype: that of its convolutions and linear layers, fp32 or bf16."""
        self.module, self.device, self.dtype = module, device, dtype

    def __call__(self, *inputs: Tensor) -> Tensor:
        with utils.autocast(self.device, self.dtype):
            output = self.module(*inputs)
        return output.to(inputs[0].dtype)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()


def warmed_up_ema(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """The update of an EMA whose decay begins near 0 and rises to `decay`: the first weights are soon forgotten.

    decay: of one update of the weights; after the first ones, an update of the EMA stands for EMA_EVERY of them.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        if not current[0].is_floating_point():  # BatchNorm's counters; a call has tensors of one type
            for average, tensor in zip(averages, current):
                average.copy_(tensor)
            return
        get_ema_multi_avg_fn(min(decay**EMA_EVERY, (1 + int(count)) / (10 + int(count))))(averages, current, count)

    return update


class State:
    """The networks, EMAs and optimizers of a run by name, the generator of its noise, and its iteration."""

    def __init__(self, device: torch.device, dtype: torch.dtype, ema_decay: float, seed: int) -> None:
        self.device, self.dtype, self.ema_decay = device, dtype, ema_decay
        self.networks: dict[str, nn.Module] = {}
        self.averages: dict[str, AveragedModel] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.inference: list[str] = []  # the networks that the inference file holds
        self.noise = torch.Generator().manual_seed(seed)
        self.iteration = self.updates = 0

    def freeze(self, module: nn.Module) -> Network:
        """A network that does not learn and is not saved, on the device, in eval mode."""
        module = module.requires_grad_(False).eval().to(self.device, memory_format=torch.channels_last)
        return Network(module, self.device, self.dtype)

    def network(self, name: str, module: nn.Module, inference: bool = False) -> Network:
        """Move a network to the device and keep it; inference: with its EMA, in the inference file."""
        self.networks[name] = module.to(self.device, memory_format=torch.channels_last).train()
        if inference:
            self.inference.append(name)
            if self.ema_decay:
                self.averages[name] = AveragedModel(module, multi_avg_fn=warmed_up_ema(self.ema_decay), use_buffers=True)
        return Network(module, self.device, self.dtype)

    def trained(self) -> dict[str, nn.Module]:
        """The networks as the inference file has them, by name: their EMA, or where there is none, themselves."""
        averages = {name: average.module for name, average in self.averages.items()}
        return {name: averages.get(name, self.networks[name]) for name in self.inference}

    def update_averages(self) -> None:
        """After an update: let the EMAs follow the weights, and BatchNorm's statistics, which are as noisy."""
        self.updates += 1
        if self.updates % EMA_EVERY and self.updates > EMA_EVERY:
            return
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def load_weights(self, path: Path, content: dict) -> None:
        """Begin with the weights of an inference file; the EMAs begin there, too."""
        for name in self.inference:
            utils.load_weights(self.networks[name], content.get("weights", {}).get(name, {}), path)
            if name in self.averages:
                self.averages[name].module.load_state_dict(self.networks[name].state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a file. Raises FloatingPointError for weights that are not finite."""
        networks = {name: network.state_dict() for name, network in self.networks.items()}
        for name, weights in networks.items():
            for key, tensor in weights.items():
                if not torch.isfinite(tensor).all():
                    raise FloatingPointError(
                        f"tensor {key} of {name} is not finite at iteration {self.iteration}; the last good state is kept"
                    )
        return {
            "iteration": self.iteration,
            "updates": self.updates,
            "networks": networks,
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "noise": self.noise.get_state(),  # the one random state: a batch's faces follow from seed and iteration
        }

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Go on from what `state_dict` gave, read from `path`. Raises UserError for weights that do not fit."""
        for name, network in self.networks.items():
            utils.load_weights(network, state["networks"].get(name, {}), path)
        for name, average in self.averages.items():
            average.load_state_dict(state["averages"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.noise.set_state(state["noise"])
        self.iteration, self.updates = state["iteration"], state["updates"]
