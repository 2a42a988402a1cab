"""The processes of one run, which torchrun starts: their group, and what they wait for and agree on."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import Tensor, distributed

from utils import UserError

PATIENCE = timedelta(days=2)  # of the processes that wait while the first prepares the faces


class Group:
    """The processes of a run, or the one that is alone.

    Gradients go by NCCL between GPUs, by gloo between CPUs and where PyTorch has no NCCL, as on
    Windows. What the processes agree on goes by gloo, on the CPU: it waits for no GPU, and for
    longer than NCCL's 10 minutes.
    """

    def __init__(self, device: torch.device) -> None:
        """device: this process's own. Joins the others, as many as torchrun's WORLD_SIZE says."""
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._talk = None
        if self.size > 1:
            nccl = device.type == "cuda" and distributed.is_nccl_available()
            distributed.init_process_group("nccl" if nccl else "gloo", device_id=device if nccl else None)
            self._talk = distributed.new_group(backend="gloo", timeout=PATIENCE)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes through the block before the others, which find what it has prepared or downloaded."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def wait(self) -> None:
        """Return when every process has called it."""
        if self.size > 1:
            distributed.barrier(self._talk)

    def values(self, number: int) -> list[int]:
        """The number that each process gives."""
        numbers = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        if self.size == 1:
            return [number]
        distributed.all_gather(numbers, torch.tensor(number), group=self._talk)
        return [int(other) for other in numbers]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors, in place, by their means over all processes."""
        if self.size > 1 and tensors:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, mean in zip(tensors, (flat / self.size).split([tensor.numel() for tensor in tensors])):
                tensor.copy_(mean.view_as(tensor))

    def check_iteration(self, iteration: int) -> None:
        """Raise UserError in every process unless all of them have loaded the same state."""
        iterations = self.values(iteration)
        if len(set(iterations)) > 1:
            raise UserError(
                f"the processes resume from different iterations ({', '.join(map(str, iterations))}): "
                "all machines must see the same --out, such as a shared folder"
            )
