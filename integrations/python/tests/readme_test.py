"""The example in README.md runs, line by line as it stands there."""

import re
from pathlib import Path

import torch


def test_the_example_runs(device, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    with torch.device(device):
        exec(example, names)
    assert names["out"].device.type == device and names["out"].float().norm() > 0
    assert (tmp_path / "model.fasa.json").stat().st_size > 0
