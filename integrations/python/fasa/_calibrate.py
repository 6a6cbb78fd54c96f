"""Calibration: tensors -> profile. The numbers come from libfasa, as those of the program `fasa` do."""

import json

import torch

from fasa import _library  # noqa: F401  (loads the operators)


class Profile:
    """What calibration found out: for each layer and query head how much each frequency chunk says about attention.

    The text of a profile is the file that `fasa calibrate` writes and that the program, the llama.cpp backend and this
    class read (docs/profile.md).
    """

    def __init__(self, text, name="the profile"):
        """text: JSON. RuntimeError: what is wrong in it, after `name`."""
        self._text = torch.ops.fasa.profile_parse(text, name)
        self._content = json.loads(self._text)

    @classmethod
    def load(cls, path):
        """Reads a file. RuntimeError: what is wrong with it."""
        return cls(torch.ops.fasa.profile_load(str(path)), str(path))

    def save(self, path):
        """Writes a file, the same bytes for the same profile; never half a file."""
        torch.ops.fasa.profile_save(self._text, str(path))

    def to_json(self):
        """The text of the file."""
        return self._text

    @property
    def layers(self):
        """Numbers of the layers, ascending."""
        return [layer["layer"] for layer in self._content["layers"]]

    def measure(self, layer, criterion="energy"):
        """float32 [num_q_heads, num_fcs]: one measure of a layer, as in the file (6 digits)."""
        measures = self._layer(layer)["measures"]
        if criterion not in measures:
            raise RuntimeError(
                f"The profile has no criterion '{criterion}' for layer {layer}: choose one of {sorted(measures)}."
            )
        return torch.tensor(measures[criterion], dtype=torch.float32)

    def dims(self, layer, *, fc_count=0, fc_fraction=0.25, share_fcs=True, criterion="energy", device=None):
        """int16 [num_planes, 2 * N_tip]: the dims of a layer's N_tip dominant frequency chunks, best first, a chunk's
        two dims side by side; `dims` of fasa.paged.

        fc_count    N_tip, or 0: fc_fraction of the head's chunks
        share_fcs   the query heads of a KV head share their chunks (num_planes = num_kv_heads), else num_q_heads
        """
        return torch.ops.fasa.profile_dims(self._text, layer, fc_count, fc_fraction, share_fcs, criterion).to(device)

    def _layer(self, number):
        for layer in self._content["layers"]:
            if layer["layer"] == number:
                return layer
        raise RuntimeError(f"The profile has no layer {number}: leave it dense.")

    def __repr__(self):
        layers = self._content["layers"]
        return f"<fasa.Profile of {self._content['model_name'] or 'a model'}, {len(layers)} layers>"


def calibrate_from_tensors(
    q,
    k,
    layout,
    *,
    positions=None,
    rotary_dim=None,
    freq_base=10000.0,
    sinks=4,
    recent=32,
    architecture="",
    model_name="",
    norm_weights=None,
    file_layout=None,
    provenance=None,
):
    """Measures the frequency chunks of one or more layers; returns a Profile.

    q             one layer's queries after RoPE, [num_queries, num_q_heads, head_dim] or, of several texts,
                  [num_windows, num_queries, num_q_heads, head_dim]; or {layer number: such a tensor}
    k             its keys after RoPE, all of a text, [num_tokens, num_kv_heads, head_dim] or
                  [num_windows, num_tokens, num_kv_heads, head_dim]; or {layer number: such a tensor}
    layout        how RoPE pairs dims: "half" (i, i + rotary_dim / 2; transformers' Llama, Qwen, Mistral, Gemma) or
                  "interleaved" (2i, 2i + 1)
    positions     [num_queries] integers: the position of each query, which sees the keys 0..position (default: the last
                  num_queries of the text). A few dozen, spread over the last quarter of some thousand tokens, serve
                  well
    rotary_dim    dims that rotate (default: all); freq_base is for people
    sinks, recent tokens at both ends that "variance" and "energy" leave out
    norm_weights  {layer number: the layer's attention norm weights as the GGUF file stores them}; one tensor for one
                  layer. By their hash `fasa` and its llama.cpp backend recognise the model, and refuse another
    file_layout   the layout to write into the profile (default: layout). GGUF files of Llama and its like store Q and K
                  "interleaved" where transformers has them "half"; chunk i is the same in both
    provenance    {str: str}: how the profile was made, for people

    float32, float16 or bfloat16, on any device; the work is done on the CPU in float32.

    RuntimeError: one sentence that says which argument is wrong and what to give.
    """
    layers = q if isinstance(q, dict) else {0: q}
    keys = k if isinstance(k, dict) else {0: k}
    norms = norm_weights if isinstance(norm_weights, dict) else {} if norm_weights is None else {0: norm_weights}
    if not layers or layers.keys() != keys.keys() or (norms and norms.keys() != layers.keys()):
        raise RuntimeError(
            "fasa.calibrate_from_tensors: q, k and norm_weights must be of the same layers, at least one"
        )
    numbers = sorted(layers)
    prepared = [_prepare(number, layers[number], keys[number], positions) for number in numbers]
    weights = [norms[number].detach().float().cpu().contiguous() for number in numbers if norms]
    pairs = [text for key, value in (provenance or {}).items() for text in (str(key), str(value))]
    text = torch.ops.fasa.calibrate_layers(
        *([layer[i] for layer in prepared] for i in range(3)),
        weights,
        numbers,
        layout,
        file_layout or layout,
        rotary_dim or 0,
        freq_base,
        sinks,
        recent,
        architecture,
        model_name,
        pairs,
    )
    return Profile(text)


def _prepare(number, q, k, positions):
    """q, k and the tokens seen, on the CPU, with a dimension of windows."""
    if q.dim() == 3:
        q = q.unsqueeze(0)
    if k.dim() == 3:
        k = k.unsqueeze(0)
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0]:
        shapes = f"q of shape {list(q.shape)} and k of shape {list(k.shape)}"
        raise RuntimeError(
            f"fasa.calibrate_from_tensors: layer {number} has {shapes}; give [num_windows, num_queries, num_q_heads, "
            "head_dim] and [num_windows, num_tokens, num_kv_heads, head_dim]"
        )
    num_queries, num_tokens = q.shape[1], k.shape[1]
    if positions is None:
        visible = torch.arange(num_tokens - num_queries, num_tokens, device="cpu") + 1
    else:
        visible = torch.as_tensor(positions).to("cpu", torch.int64) + 1
    if visible.shape != (num_queries,):
        raise RuntimeError(
            f"fasa.calibrate_from_tensors: positions has shape {list(visible.shape)} for {num_queries} queries of "
            f"layer {number}; give one for each"
        )
    if k.dtype not in (torch.float16, torch.bfloat16):
        k = k.float()
    return q.detach().float().cpu().contiguous(), k.detach().cpu().contiguous(), visible.contiguous()
