import pytest
import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
collect_ignore = [] if torch.cuda.is_available() else ["cuda_test.py"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param
