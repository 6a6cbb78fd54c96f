"""Loads the operators into torch, and tells torch.compile about them."""

from pathlib import Path

import torch

_FOLDER = Path(__file__).parent

torch.ops.load_library(_FOLDER / "libfasa_torch.so")
#: Whether this build of fasa and this torch both have CUDA.
HAS_CUDA = torch.version.cuda is not None and (_FOLDER / "libfasa_torch_cuda.so").exists()
if HAS_CUDA:
    torch.ops.load_library(_FOLDER / "libfasa_torch_cuda.so")

# They return nothing: what they write is in their schemas.
for _name in ("paged_write_index", "paged_decode", "paged_append_decode"):
    torch.library.register_fake(f"fasa::{_name}", lambda *args: None)
