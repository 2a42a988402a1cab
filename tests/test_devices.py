"""Which device is chosen, by a pretended torch.cuda, and what its errors are turned into."""

import pytest
import torch

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


def test_each_process_has_the_gpu_of_its_local_rank(gpus, monkeypatch):
    gpus(2)
    assert utils.choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert utils.choose_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(utils.UserError, match=r"process 2 .* no GPU \(2 in all\): start at most 2 processes"):
        utils.choose_device("auto")


def test_a_process_that_sees_one_gpu_alone_takes_it(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert utils.choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(utils.UserError, match="start at most 1"):
        utils.choose_device("auto")


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


def test_apples_gpus_are_refused_with_the_reason(capsys):
    parser = utils.Parser("")
    parser.option("device", "auto", "which")
    assert parser.parse_args(["--device", "cuda"]).device == "cuda"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "mps"])
    assert "mps has no float64" in capsys.readouterr().err


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
    """An error of the device is not reported as one of the file."""
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or tensor)
    content = {"a": {"b": [torch.zeros(2), (torch.ones(1), 0.5)]}, "c": "text"}
    utils.save_checkpoint(tmp_path / "state.pth", "sr_state", content)
    assert len(moved) == 2
    read = utils.load_checkpoint(tmp_path / "state.pth", "sr_state", "")
    assert read["a"]["b"][1] == (torch.ones(1), 0.5) and read["c"] == "text"

    def fail(tensor):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.Tensor, "cpu", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        utils.save_checkpoint(tmp_path / "state.pth", "sr_state", content)
