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


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None,
])  # fmt: skip
def test_what_the_libraries_say_when_memory_is_lacking(error):
    with pytest.raises(utils.UserError, match=r"out of memory with --batch-size 13 \(.*\): lower --batch-size"):
        with utils.explain_out_of_memory(13):
            if error:
                raise error
            torch.empty(1 << 58, dtype=torch.uint8)  # the CPU allocator's own error
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
