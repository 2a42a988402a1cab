"""Which device is chosen, by a pretended torch.cuda, what its errors are turned into, and which files are taken."""

import hashlib
from pathlib import Path

import pytest
import torch
from torchvision.models import VGG19_Weights

import utils


@pytest.fixture
def gpus(monkeypatch):
    """Call it with a number of GPUs to pretend that they are there; their tensors are the CPU's."""

    def pretend(count, error=None):
        def ones(*_, **__):
            if error:
                raise RuntimeError(error)
            return torch.zeros(2)

        monkeypatch.setattr(torch, "ones", ones)
        for name, value in {"is_available": True, "device_count": count, "get_device_name": "H100", "set_device": None}.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)

    for name in ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return pretend


@pytest.mark.parametrize("count, rank, visible, index", [
    (2, None, None, 0), (2, "1", None, 1), (2, "2", None, None), (1, "3", "3", 0), (1, "3", None, None),
])  # fmt: skip
def test_each_process_has_the_gpu_of_its_local_rank(count, rank, visible, index, gpus, monkeypatch):
    """Or the only one that it sees; index: None where there is none for it."""
    gpus(count)
    for name, value in (("LOCAL_RANK", rank), ("CUDA_VISIBLE_DEVICES", visible)):
        if value:
            monkeypatch.setenv(name, value)
    if index is None:
        with pytest.raises(utils.UserError, match=f"start at most {count} processes"):
            utils.choose_device("auto")
    else:
        assert utils.choose_device("auto") == utils.choose_device("cuda") == torch.device("cuda", index)


def test_a_gpu_that_the_build_has_no_kernels_for(gpus, capsys):
    gpus(1, "CUDA error: no kernel image is available for execution on the device\nmore")
    assert utils.choose_device("auto") == torch.device("cpu")
    assert "note: the GPU H100 does not compute (CUDA error: no kernel image" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="--device cuda: the GPU H100 does not compute"):
        utils.choose_device("cuda")


def test_fp32_is_not_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    utils.choose_device("cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("choice, reason", [("mps", "float64"), ("gpu", "auto, cuda or cpu")])
def test_other_devices_are_refused_with_the_reason(choice, reason):
    with pytest.raises(utils.UserError, match=f"--device {choice}: .*{reason}"):
        utils.choose_device(choice)


@pytest.mark.parametrize("text", [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronous",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
])  # fmt: skip
def test_what_the_libraries_of_a_gpu_say_when_memory_is_lacking(text):
    with pytest.raises(utils.UserError, match=r"out of memory with --batch-size 13 \(.*\): lower --batch-size"):
        with utils.explain_out_of_memory(13):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        with utils.explain_out_of_memory(13):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_state_is_copied_to_the_cpu_before_it_is_written(tmp_path, monkeypatch):
    """So that it loads on a machine without a GPU."""
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or tensor)
    content = {"a": {"b": [torch.zeros(2), (torch.ones(1), 0.5)]}, "c": "text"}
    utils.save_checkpoint(tmp_path / "state.pth", "sr_state", content)
    assert len(moved) == 2
    read = utils.load_checkpoint(tmp_path / "state.pth", "sr_state", "")
    assert read["a"]["b"][1] == (torch.ones(1), 0.5) and read["c"] == "text"


def test_a_cached_download_must_have_the_hash_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    vgg = tmp_path / "checkpoints" / Path(VGG19_Weights.IMAGENET1K_V1.url).name
    vgg.parent.mkdir()
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, vgg)  # of VGG16, perhaps
    with pytest.raises(utils.UserError, match=f"{vgg}.*another file.*delete it"):
        utils.load_perceptual_weights("imagenet")
    name = f"net-{hashlib.sha256(vgg.read_bytes()).hexdigest()[:8]}.pth"
    vgg.rename(vgg.with_name(name))
    with utils.downloading(f"https://example.org/{name}", "--option", "a network", "a remedy"):
        pass
