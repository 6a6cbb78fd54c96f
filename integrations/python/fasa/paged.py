"""One decode step of FASA over a paged KV cache: append, score, select, attend.

Caches are views: any block, head and token stride serves, as long as the values of a row are contiguous.
    contiguous   k_cache = torch.empty(num_blocks, num_kv_heads, page_size, head_dim)
    [block, head, token, 2 * head_dim + index] (one tensor, K, V and the index of a token in one row)
                 k_cache, v_cache = kv[..., :d], kv[..., d : 2 * d]
                 index = kv[..., 2 * d :], with index_dtype=torch.int8
    [2, block, token, head, head_dim]
                 k_cache, v_cache = kv[0].transpose(1, 2), kv[1].transpose(1, 2)

Names of sizes
    num_planes   num_kv_heads: the query heads of a KV head share their frequency chunks; or num_q_heads
    index_dims   dims of a key in the index, two for each frequency chunk
    num_sets     num_kv_heads with share_tokens, else num_q_heads

Dtype of the index: int8, float8_e4m3fn, bfloat16, or uint8 for int4 (two values to a byte: its last dimension is
index_dims / 2). With index_dtype the tensor is taken as the bytes of such an index, whatever its own dtype: a part of a
cache of bfloat16, say, whose last dimension is then the bytes of a row / 2.

The operators never wait for the GPU, can be captured in a CUDA graph (what they read, lengths included, is read again
at each replay) and are known to torch.compile. They have no gradient. Where torch.compile sees several caches that are
views of one tensor, take the views inside the compiled function and give the index by index_dtype: torch's inductor
computes wrong results for changed inputs that are views with an offset, and loses writes to views of another dtype.
"""

import math
from typing import NamedTuple

import torch

from fasa import _library

__all__ = ["DecodeResult", "decode", "empty_index", "index_scale", "layer_budgets", "write_index"]

# The largest code of each dtype of the index; bfloat16 needs no scale.
_LARGEST_CODE = {torch.int8: 127.0, torch.uint8: 7.0, torch.float8_e4m3fn: 448.0, torch.bfloat16: None}


class DecodeResult(NamedTuple):
    """What decode returns when asked for more than the output; what was not asked for is None."""

    out: torch.Tensor  #: the shape of q
    lse: torch.Tensor | None  #: float32, the shape of q without head_dim; -inf where nothing is seen
    kept: torch.Tensor | None  #: int32 [..., num_sets, budget], positions; unused entries are -1


def _require_implementation(tensor):
    if tensor.is_cuda and not _library.HAS_CUDA:
        raise RuntimeError(
            "This build of fasa has no CUDA part: install it where nvcc is found, beside a torch with CUDA."
        )


def decode(
    q,
    k_cache,
    v_cache,
    index,
    block_table,
    lengths,
    dims,
    index_scale,
    *,
    budget,
    sinks=4,
    recent=32,
    max_length=None,
    k_new=None,
    v_new=None,
    share_tokens=False,
    scale=None,
    softcap=0.0,
    sink_logits=None,
    index_dtype=None,
    out=None,
    return_lse=False,
    return_kept=False,
):
    """Sparse attention of the last query tokens of each sequence, each over the `budget` tokens that its index ranks
    highest (all tokens where there are no more than that).

    q            [num_seqs, num_q_heads, head_dim] or [num_seqs, num_query_tokens, num_q_heads, head_dim] after RoPE;
                 bfloat16 or float16 as the cache, bfloat16 for a float8 cache. 1 to 8 query tokens, causal among
                 themselves
    k_cache      [num_blocks, num_kv_heads, page_size, head_dim] bfloat16, float16 or float8_e4m3fn; head_dim 64, 96,
                 128, 192 or 256; page_size 1 to 256 (fastest: multiples of 64, then of 16); num_q_heads /
                 num_kv_heads 1 to 16
    v_cache      as k_cache
    index        [num_blocks, num_planes, page_size, index_dims]; uint8 (int4): index_dims / 2
    block_table  [num_seqs, pages] int32: the block of each page
    lengths      [num_seqs] int32: tokens of each sequence, the query tokens included; 0: an inactive sequence
    dims         [num_planes, index_dims] int16: which dims of the key (Profile.dims)
    index_scale  [num_planes, index_dims] float32, positive (index_scale)
    budget       tokens kept for a query, the first `sinks` and the last `recent` included
    max_length   no sequence is longer (default: what block_table can hold); the workspace may grow with it
    k_new, v_new the shape of q with num_kv_heads: the keys (after RoPE) and values of the query tokens, which are
                 then written to k_cache, v_cache and index at their positions. Without them they must be there already
    share_tokens one choice of tokens for all query heads of a KV head (faster), else one for each
    scale        of q . k (default 1 / sqrt(head_dim)); softcap: cap * tanh(x / cap) of that, 0 for none
    sink_logits  [num_q_heads] float32 or None: an attention sink of the model
    index_dtype  dtype of the index where the tensor `index` holds its bytes in another
    out          the shape of q, or None for a new tensor

    Returns out, or a DecodeResult if return_lse or return_kept is set. On CUDA nothing checks the values in
    block_table, lengths and dims; on the CPU they are checked. dims, index_scale and sink_logits are constants of the
    layer: on CUDA nothing in flight on the stream may still be writing them.

    RuntimeError: one sentence that says which argument is wrong and what to give.
    """
    _require_implementation(q)
    if (k_new is None) != (v_new is None):
        raise RuntimeError("fasa.paged: k_new and v_new come together; pass both or neither")
    if q.dim() not in (3, 4):
        raise RuntimeError(
            f"fasa.paged: q has shape {list(q.shape)}; give [num_seqs, num_q_heads, head_dim] or "
            "[num_seqs, num_query_tokens, num_q_heads, head_dim]"
        )
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    one_token = q.dim() == 3
    queries, results = (q.unsqueeze(1), out.unsqueeze(1)) if one_token else (q, out)
    num_seqs, num_query_tokens, num_q_heads, head_dim = queries.shape
    rows = (num_seqs, num_query_tokens)
    lse = torch.empty((*rows, num_q_heads), dtype=torch.float32, device=q.device) if return_lse else None
    kept = None
    if return_kept:
        num_sets = k_cache.shape[1] if share_tokens else num_q_heads
        kept = torch.empty((*rows, num_sets, budget), dtype=torch.int32, device=q.device)
    if max_length is None:
        max_length = block_table.shape[-1] * k_cache.shape[-2]
    if scale is None:
        scale = 1 / math.sqrt(head_dim)
    rest = (
        sink_logits,
        results,
        lse,
        kept,
        budget,
        sinks,
        recent,
        max_length,
        share_tokens,
        scale,
        softcap,
        index_dtype,
    )
    shared = (index, block_table, lengths, dims, index_scale, *rest)
    if k_new is None:
        torch.ops.fasa.paged_decode(queries, k_cache, v_cache, *shared)
    else:
        new = (k_new.unsqueeze(1), v_new.unsqueeze(1)) if one_token else (k_new, v_new)
        torch.ops.fasa.paged_append_decode(queries, *new, k_cache, v_cache, *shared)
    if not return_lse and not return_kept:
        return out
    if one_token:
        lse, kept = (None if t is None else t.squeeze(1) for t in (lse, kept))
    return DecodeResult(out, lse, kept)


def write_index(k_cache, index, slots, dims, index_scale, *, index_dtype=None):
    """Writes index rows from keys that are in the cache: after a prefill, a page copy or a shift of positions.

    k_cache      [num_blocks, num_kv_heads, page_size, head_dim]
    index        [num_blocks, num_planes, page_size, index_dims] (uint8: index_dims / 2), written at the slots
    slots        [num_slots] int64: block * page_size + offset in the block; negative: skipped
    dims, index_scale, index_dtype  as for decode
    """
    _require_implementation(k_cache)
    torch.ops.fasa.paged_write_index(k_cache, index, slots, dims, index_scale, index_dtype)


def empty_index(k_cache, dims, dtype=torch.int8):
    """An index for k_cache [num_blocks, num_kv_heads, page_size, head_dim] and dims [num_planes, index_dims],
    contiguous and not yet written."""
    _largest_code(dtype)
    num_planes, index_dims = dims.shape
    row = index_dims // 2 if dtype == torch.uint8 else index_dims
    return torch.zeros((k_cache.shape[0], num_planes, k_cache.shape[2], row), dtype=dtype, device=k_cache.device)


def index_scale(keys, dims, dtype=torch.int8):
    """The scales with which no sampled key is clamped, nor one like it at another position.

    keys   [..., num_kv_heads, head_dim] after RoPE: some hundreds of tokens or more of the layer, any positions
    dims   [num_planes, index_dims] int16, a frequency chunk's two dims side by side (Profile.dims)
    dtype  of the index

    Returns float32 [num_planes, index_dims] on the device of keys. RoPE turns a chunk and keeps its length, so a
    chunk's two dims share the scale: its greatest length over the tokens, divided by the largest code.
    """
    largest = _largest_code(dtype)
    num_kv_heads, head_dim = keys.shape[-2:]
    num_planes = dims.shape[0]
    if num_planes % num_kv_heads != 0:
        raise RuntimeError(
            f"fasa.paged: dims has {num_planes} planes for keys of {num_kv_heads} KV heads; give a multiple of them"
        )
    scales = torch.ones(dims.shape, dtype=torch.float32, device=keys.device)
    if largest is None:
        return scales
    tokens = keys.reshape(-1, num_kv_heads, head_dim).float()
    heads = torch.arange(num_planes, device=keys.device) // (num_planes // num_kv_heads)
    chosen = tokens[:, heads].gather(2, dims.to(keys.device).long().expand(tokens.shape[0], -1, -1))
    lengths = chosen.unflatten(2, (-1, 2)).norm(dim=3).amax(0)  # [num_planes, chunks]
    # A chunk that is always zero may have any scale.
    return (lengths / largest).masked_fill(lengths == 0, 1.0).repeat_interleave(2, dim=1).contiguous()


def layer_budgets(budget, num_layers, *, slope=0.3, least=1):
    """Budgets of num_layers layers that attend sparsely, first to last: 1 + slope times `budget` in the first, 1 - slope in
    the last, linear between, so that as many rows are read as with `budget` in each.

    slope  -1 to 1; 0.3 is what the program `fasa` does where nothing is said (docs/quality.md measures it)
    least  no layer has less: sinks + recent + 1, of what decode is given

    Returns a list of num_layers int. `budget` is what a context may have that is to be attended to in full: decode such a
    step with it in each layer.
    """
    if not -1 <= slope <= 1:
        raise RuntimeError(f"fasa.paged: slope is {slope}; give -1 to 1")
    if num_layers < 2:
        return [budget] * num_layers
    places = (1 - 2 * i / (num_layers - 1) for i in range(num_layers))
    return [max(math.floor(budget * (1 + slope * place) + 0.5), least) for place in places]


def _largest_code(dtype):
    if dtype not in _LARGEST_CODE:
        raise RuntimeError(
            f"fasa.paged: an index of dtype {dtype} is not known; give int8, float8_e4m3fn, bfloat16 or uint8 (int4)"
        )
    return _LARGEST_CODE[dtype]
