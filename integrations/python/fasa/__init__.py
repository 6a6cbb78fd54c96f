"""Frequency-aware sparse attention (FASA) for torch.

fasa.paged                    one decode step over a paged KV cache: write_index, decode, and what prepares them
fasa.calibrate_from_tensors   queries and keys -> which frequency chunks of each head predict its attention
fasa.Profile                  the result of a calibration, and the file of the program `fasa`
"""

from importlib.metadata import version

from fasa import paged
from fasa._calibrate import Profile, calibrate_from_tensors

__all__ = ["Profile", "calibrate_from_tensors", "paged"]
__version__ = version("fasa")
