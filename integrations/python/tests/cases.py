"""Paged caches for the tests, and a plain torch reading of the formulas in src/ops/paged/paged.h, in float64."""

import math
from dataclasses import dataclass

import torch

import fasa

LAYOUTS = ["contiguous", "one_row", "two_halves"]
INDEX_DTYPES = [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bfloat16]


@dataclass
class Case:
    q: torch.Tensor  # [num_seqs, num_query_tokens, num_q_heads, head_dim]
    k_new: torch.Tensor
    v_new: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    index: torch.Tensor
    block_table: torch.Tensor
    lengths: torch.Tensor
    dims: torch.Tensor
    scale: torch.Tensor

    @property
    def tensors(self):
        return (self.q, self.k_cache, self.v_cache, self.index, self.block_table, self.lengths, self.dims, self.scale)

    @property
    def group(self):
        return self.q.shape[2] // self.k_cache.shape[1]

    def decode(self, **options):
        return fasa.paged.decode(*self.tensors, **options)

    def fill_index(self):
        num_rows = self.k_cache.shape[0] * self.k_cache.shape[2]
        slots = torch.arange(num_rows, device=self.q.device)
        fasa.paged.write_index(self.k_cache, self.index, slots, self.dims, self.scale)

    def gather(self, cache, seq, length):
        """[num_heads, length, values of a row] of one sequence, through its block table."""
        pages = self.block_table[seq].long()
        return cache[pages].transpose(1, 2).flatten(0, 1)[:length].transpose(0, 1)

    def codes(self, seq, length):
        """float64 [num_planes, length, index_dims], and the scales, [num_planes, 1, index_dims]."""
        rows = self.gather(self.index, seq, length)
        if rows.dtype == torch.uint8:
            nibbles = torch.stack([rows & 15, rows >> 4], -1).flatten(-2).double()
            rows = torch.where(nibbles < 8, nibbles, nibbles - 16)
        return rows.double(), self.scale.double().unsqueeze(1)


def make(
    device="cpu",
    layout="contiguous",
    dtype=torch.bfloat16,
    index_dtype=torch.int8,
    lengths=(150, 37, 64),
    num_query_tokens=1,
    num_q_heads=4,
    num_kv_heads=2,
    num_planes=2,
    head_dim=64,
    page_size=16,
    index_dims=16,
    seed=0,
):
    """Random caches whose pages lie in random order; the index is written, and new rows are not yet in the cache."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random).to(device, dtype)

    pages = math.ceil(max(*lengths, 1) / page_size)
    num_blocks = len(lengths) * pages + 2
    row = index_dims // 2 if index_dtype == torch.uint8 else index_dims
    index = None
    if layout == "contiguous":
        k_cache, v_cache = (normal(num_blocks, num_kv_heads, page_size, head_dim) for _ in range(2))
    elif layout == "two_halves":
        halves = normal(2, num_blocks, page_size, num_kv_heads, head_dim)
        k_cache, v_cache = halves[0].transpose(1, 2), halves[1].transpose(1, 2)
    else:
        index_values = row * index_dtype.itemsize // dtype.itemsize
        rows = normal(num_blocks, num_kv_heads, page_size, 2 * head_dim + index_values)
        k_cache, v_cache = rows[..., :head_dim], rows[..., head_dim : 2 * head_dim]
        index = rows[..., 2 * head_dim :].view(index_dtype)
    chunks = torch.stack(
        [torch.randperm(head_dim // 2, generator=random)[: index_dims // 2] for _ in range(num_planes)]
    )
    dims = torch.stack([chunks, chunks + head_dim // 2], -1).flatten(1).to(device, torch.int16)
    if index is None:
        index = fasa.paged.empty_index(k_cache, dims, index_dtype)
    case = Case(
        q=normal(len(lengths), num_query_tokens, num_q_heads, head_dim),
        k_new=normal(len(lengths), num_query_tokens, num_kv_heads, head_dim),
        v_new=normal(len(lengths), num_query_tokens, num_kv_heads, head_dim),
        k_cache=k_cache,
        v_cache=v_cache,
        index=index,
        block_table=torch.randperm(num_blocks, generator=random)[: len(lengths) * pages]
        .view(len(lengths), pages)
        .int()
        .to(device),
        lengths=torch.tensor(lengths, dtype=torch.int32, device=device),
        dims=dims,
        scale=fasa.paged.index_scale(k_cache.transpose(1, 2), dims, index_dtype),
    )
    case.fill_index()
    return case


LIMITS = {torch.int8: 32512, torch.uint8: 127, torch.float8_e4m3fn: 16}  # of a query once it is scaled


def rounded(queries, index_dtype, together):
    """Scaled queries [num_q_heads, dims] as the index's codes are scored with; relative to the largest of `together` heads."""
    if index_dtype not in LIMITS:
        return queries
    unit = queries.abs().unflatten(0, (-1, together)).amax((1, 2)).repeat_interleave(together)[:, None] / LIMITS[index_dtype]
    steps = queries / unit
    return (steps.half().double() if index_dtype == torch.float8_e4m3fn else steps.round()) * unit


def scores(case, seq, token, seen, share_tokens):
    """float64 [num_sets, seen], and how far sums in float32, or a value of a query halfway, can move a score."""
    codes, scale = case.codes(seq, seen)
    q = case.q[seq, token].double()
    planes = torch.arange(q.shape[0], device=q.device) // (q.shape[0] // codes.shape[0])
    chosen = q.gather(1, case.dims[planes].long()) * scale[planes, 0]
    together = case.group if share_tokens else 1
    result = torch.einsum("hd,htd->ht", rounded(chosen, case.index.dtype, together), codes[planes])
    result = result.unflatten(0, (-1, together)).amax(1)
    slack = chosen.abs().max() * codes.abs().max() * max(1 / LIMITS.get(case.index.dtype, 1 << 15), codes.shape[2] / 32512)
    return result, slack.item()


def attention(case, seq, token, head, kept, softcap=0.0, sink_logit=None):
    """float64 output and log-sum-exp of one query head over the kept positions."""
    length = int(case.lengths[seq])
    k, v = (
        case.gather(cache, seq, length)[head // case.group, kept].double() for cache in (case.k_cache, case.v_cache)
    )
    logits = k @ case.q[seq, token, head].double() / math.sqrt(case.q.shape[3])
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    all_logits = logits if sink_logit is None else torch.cat([logits, sink_logit.double().view(1)])
    lse = all_logits.logsumexp(0)
    return (logits - lse).exp() @ v, lse


def tolerance(dtype):
    """Of an output whose values are about 1 in size."""
    return 2 * torch.finfo(dtype).eps
