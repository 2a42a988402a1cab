"""Both trainers from start to end on a machine without a GPU, with every tensor a fake one on a pretend cuda:0.

    python tests/fake_cuda.py          # or: make fake-cuda; about a minute; needs gcc and PyTorch's CUDA build

PyTorch's FakeTensorMode carries shapes, strides, dtypes and devices through the whole CUDA path
(autocast, autograd twice, fused optimizers, EMA, BatchNorm's statistics, sample sheets, saving) and
raises where a tensor was left on another device. No kernel runs and no value is computed. The last
check plants such an error, which must be found.

Not part of `make test`: it leans on PyTorch's private parts. Where these have changed, it says so and ends with status 0.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What PyTorch asks the CUDA runtime for although no kernel runs: the autograd engine, the choice of a convolution's
# backend, and autocast. Loaded in place of the driver and before the runtime, this library answers.
STUB = r"""
#include <stddef.h>
#include <string.h>
struct properties {  // the beginning of cudaDeviceProp, the same in CUDA 12 and 13
  char name[256], uuid[16], luid[8]; unsigned mask; size_t memory, shared; int registers, warp; size_t pitch;
  int threads, dim[3], grid[3], clock; size_t constant; int major, minor; size_t align[2]; int processors; };
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *a, int *b) { *a = *b = 0; return 0; }
int cudaStreamIsCapturing(void *s, int *c) { *c = 0; return 0; }
int cudaGetLastError(void) { return 0; }
int cudaPeekAtLastError(void) { return 0; }
int cudaGetDeviceProperties(struct properties *p, int d) {
  strcpy(p->name, "pretend H100"); p->memory = 80ULL << 30; p->warp = 32; p->threads = 1024; p->major = 9; p->processors = 132;
  return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *active) { *f = 0; *active = 0; return 0; }
"""


def skip(reason):
    print(f"fake-cuda: skipped: {reason}")
    sys.exit(0)


def preload_stub():
    """Start this program again with the stub library in place of the CUDA driver."""
    if "libcuda.so.1" in os.environ.get("LD_PRELOAD", ""):
        return
    if sys.platform != "linux" or not shutil.which("gcc"):
        skip("it needs Linux and gcc")
    folder = Path(tempfile.mkdtemp())
    (folder / "stub.c").write_text(STUB)
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", library, folder / "stub.c"], check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(library)})


preload_stub()

import numpy as np  # noqa: E402
import torch  # noqa: E402

if not torch.version.cuda:
    skip("it needs PyTorch's CUDA build")
try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    skip(f"PyTorch {torch.__version__} has other private parts ({error})")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train  # noqa: E402
import train_h2l  # noqa: E402
import training.run  # noqa: E402
import utils  # noqa: E402
from Datasets import degradations  # noqa: E402
from models import DegradationGenerator  # noqa: E402

CUDA = torch.device("cuda", 0)


class Values(TorchDispatchMode):
    """Answers where a program asks for a value, which fake tensors lack, and counts the operations: True, 0.5, or 1."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.operations += 1
        if name == "aten._local_scalar_dense.default":
            if args[0].dtype == torch.bool:
                return True
            return 0.5 if args[0].dtype.is_floating_point else 1
        if name == "aten._fused_sgd_.default":  # has no fake implementation
            assert {tensor.device for tensors in args[:3] for tensor in tensors} == {CUDA}
            return None
        return function(*args, **(kwargs or {}))


class Faces:
    """Prepared faces without values."""

    def __init__(self, data, kind, *_):
        self.sizes = (64, 16) if kind == "HR" else (16,)

    def __len__(self):
        return 100

    def size(self):
        return 1

    def __getitem__(self, indices):
        count = len(range(*indices.indices(100))) if isinstance(indices, slice) else len(indices)
        return tuple(torch.zeros(count, 3, size, size, dtype=torch.uint8) for size in self.sizes)


def module_to(self, convert, recurse=True):
    """Module.to with new parameters in place of swapped ones, which fake parameters do not allow."""
    for child in self.children():
        child._apply(convert)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = torch.nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            buffer.constant = None  # else its value would be computed on the pretend device, too
            self._buffers[name] = convert(buffer)
    return self


written = collections.Counter()


def save(content, _file):
    """torch.save: what is saved has been copied to the CPU, so that an error of the device is none of the disk."""
    for tensor in torch.utils._pytree.tree_leaves(content):
        assert not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu", f"{content['kind']} is written from the GPU"
    written[content["kind"]] += 1


def save_sheet(path, rows, columns=8):
    assert {faces.device for faces in rows.values()} == {CUDA}, {name: faces.device for name, faces in rows.items()}
    written["sheet"] += 1


def pretend():
    """Stand-ins for what needs values, files or a driver."""
    torch.autograd.set_multithreading_enabled(False)  # no thread for each device
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.set_device = lambda *_: None
    torch.cuda.mem_get_info = lambda *_: (0, 0)  # the faces do not fit
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.Tensor.numpy = lambda self: np.zeros(tuple(self.shape), np.int64)
    torch.nn.Module._apply = module_to
    FakeTensorMode.__deepcopy__ = lambda self, memo: self  # EMA copies its network
    FakeTensorMode.may_turn_const = lambda self, tensor: False  # no values for small CPU tensors either
    training.run.load_faces = Faces
    utils.digest = lambda tensors: ""
    torch.save, utils.save_sheet = save, save_sheet
    degradations.degrade = lambda y, *_: y[..., ::4, ::4].contiguous()  # its JPEG needs values
    utils.load_degradation = lambda path, remedy: (DegradationGenerator().eval(), {"width": 64})


def run(module, *options):
    """One trainer from its options to its end."""
    written.clear()
    with FakeTensorMode(allow_non_fake_inputs=True), Values() as values, tempfile.TemporaryDirectory() as folder:
        lengths = ["--critic-updates", "2", "--steps-per-epoch", "2", "--max-steps", "4", "--save-every", "2"]
        module.main(["--device", "cuda", "--out", folder, *lengths, *options])
    print(f"fake-cuda: {module.__name__} {' '.join(options)}: {values.operations} operations, {dict(written)}", flush=True)
    assert written["sheet"] == 2, written


def main():
    pretend()
    random_vgg = ["--vgg-weights", "random", "--adversarial-weight", "0.05", "--ot-start-epoch", "1"]
    run(train_h2l, "--precision", "bf16")
    run(train, *random_vgg, "--precision", "bf16")
    run(train, *random_vgg, "--precision", "fp32", "--alignment-target", "online", "--ema-decay", "0")
    run(train, *random_vgg, "--batch-size", "40")  # too many Sinkhorn problems for the CPU

    DegradationGenerator.to = lambda self, *_, **__: self  # an error, planted: G stays on the CPU
    try:
        run(train, *random_vgg, "--precision", "fp32")
    except RuntimeError as error:
        assert "device" in str(error), error
        print(f"fake-cuda: a network that was left on the CPU is found: {str(error).splitlines()[0]}")
    else:
        sys.exit("fake-cuda: a network that was left on the CPU was NOT found: this check shows nothing")


if __name__ == "__main__":
    main()
