"""What a paged decode step must give, in f64 on the GPU: a right choice of tokens, and exact attention over it."""

import torch

from paged import INDEX_TYPES

BF16, F8 = torch.bfloat16, torch.float8_e4m3fn


def unit_of(k, rank, ctas):
    """spread_unit of paged_prune.cuh: the k-th unit of tokens of a CTA."""
    return k * ctas + (rank + (((k * 0x9E3779B1 & 0xFFFFFFFF) >> 16) * ctas >> 16)) % ctas


def pick(cache, step, tokens, heads):
    """Rows [.., row] of cache at tokens [seqs, ...] (>= 0), one head (or plane) for each entry of `heads`, which broadcasts."""
    seq = torch.arange(tokens.shape[0], device=tokens.device).view(-1, *[1] * (tokens.dim() - 1))
    block = step.block_table[seq, tokens // step.shape.page_size].long().clamp(max=cache.shape[0] - 1)  # unused pages: any
    return cache[block, heads, tokens % step.shape.page_size]


def decode_index(step, codes):
    kind = step.shape.index_type
    if kind == INDEX_TYPES["bf16"]:
        return codes.view(BF16).double()
    if kind == INDEX_TYPES["fp8"]:
        return codes.view(F8).double()
    if kind == INDEX_TYPES["int8"]:
        return codes.view(torch.int8).double()
    both = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).short()
    return torch.where(both < 8, both, both - 16).double()


def scores_of(step, seq, length):
    """S [tokens, sets, length] in f64 of a sequence, and the tolerance within which the kernel's sums may differ."""
    s = step.shape
    heads_of_plane = s.num_q_heads // s.num_planes
    planes = torch.arange(s.num_q_heads, device=step.q.device) // heads_of_plane
    dims, scale = step.dims.long()[planes], step.index_scale[planes]
    q = step.q[seq].float().gather(2, dims.expand(s.num_query_tokens, -1, -1)) * scale
    largest = q.abs().view(s.num_query_tokens, s.num_sets, -1).amax(2).repeat_interleave(s.num_q_heads // s.num_sets, 1)[..., None]
    integers = s.index_type in (INDEX_TYPES["int8"], INDEX_TYPES["int4"])
    limit = {INDEX_TYPES["int8"]: 32512.0, INDEX_TYPES["int4"]: 127.0, INDEX_TYPES["fp8"]: 4.0}.get(s.index_type)
    if limit is not None:
        # A true division, as in the kernels: torch's number / tensor is a reciprocal and a product.
        q = q * (torch.full_like(largest, limit) / largest)
        q = q.round() if integers else q.half()
    q = q.double()
    position = torch.arange(length, device=q.device)
    block, offset = step.block_table[seq].long()[position // s.page_size], position % s.page_size
    result = torch.empty(s.num_query_tokens, s.num_q_heads, length, dtype=torch.float64, device=q.device)
    bound = torch.zeros((), dtype=torch.float64, device=q.device)
    for plane in range(s.num_planes):
        codes = decode_index(step, step.index[block, plane, offset].contiguous())
        heads = slice(plane * heads_of_plane, (plane + 1) * heads_of_plane)
        result[:, heads] = (codes @ q[:, heads].flatten(0, 1).T).T.view(s.num_query_tokens, heads_of_plane, length)
        if not integers:
            bound = torch.maximum(bound, (codes.abs().amax(0) @ q[:, heads].abs().flatten(0, 1).T).max())
    return result.view(s.num_query_tokens, s.num_sets, -1, length).amax(2), 2e-5 * float(bound)


def check_kept(step, lengths):
    s = step.shape
    for seq, length in enumerate(lengths):
        scores_of_seq, tie = scores_of(step, seq, length) if length > s.budget else (None, 0.0)
        for token in range(s.num_query_tokens):
            seen = max(0, length - s.num_query_tokens + token + 1)
            kept = step.kept[seq, token].long()
            count = min(seen, s.budget)
            assert bool((kept[:, count:] == -1).all()), "unused entries are -1"
            kept = kept[:, :count].sort(1).values
            if seen <= s.budget:
                assert bool((kept == torch.arange(seen, device=kept.device)).all())
                continue
            assert bool((kept[:, 1:] > kept[:, :-1]).all()), "no token twice"
            assert bool((kept >= 0).all() and (kept < seen).all())
            chosen = torch.zeros(s.num_sets, seen, dtype=torch.bool, device=kept.device).scatter_(1, kept, True)
            assert bool(chosen[:, :s.sinks].all() and chosen[:, seen - s.recent:].all()), "sinks and recent are kept"
            need = s.budget - s.sinks - s.recent
            if need == 0:
                continue
            scores, chosen = scores_of_seq[token, :, s.sinks:seen - s.recent], chosen[:, s.sinks:seen - s.recent]
            kth = scores.topk(need, 1).values[:, -1:]
            assert bool((scores[chosen].view(s.num_sets, need) >= kth - tie).all()), "nothing worse is kept"
            assert bool(chosen[scores > kth + tie].all()), "all better ones are kept"


def attend_f64(step, kept, dtype=None):
    """out, lse over kept [seqs, tokens, sets, budget] in f64; dtype: weights and V product in it (the plain computation)."""
    s = step.shape
    sets_to_heads = s.num_q_heads // s.num_sets
    heads = torch.arange(s.num_sets, device=kept.device) * s.num_kv_heads // s.num_sets
    valid = (kept >= 0).repeat_interleave(sets_to_heads, 2)
    k, v = (pick(c, step, kept.clamp(min=0).long(), heads[:, None]) for c in (step.k, step.v))
    k, v = (t.double().repeat_interleave(sets_to_heads, 2) for t in (k, v))
    a = torch.einsum("bthd,bthnd->bthn", step.q.double(), k) * step.scale
    if step.softcap:
        a = step.softcap * torch.tanh(a / step.softcap)
    a = a.masked_fill(~valid, float("-inf"))
    active = valid.any(-1)
    if step.sink_logits is not None:
        sink = step.sink_logits.double().view(1, 1, -1, 1).expand(*a.shape[:3], 1)
        a = torch.cat([a, sink.masked_fill(~active[..., None], float("-inf"))], -1)
    lse = a.logsumexp(-1)
    w = torch.exp(a - lse[..., None].nan_to_num(neginf=0.0))[..., :kept.shape[-1]]
    w, v = w.masked_fill(~valid, 0.0), v.masked_fill(~valid[..., None], 0.0)
    if dtype is not None:
        return torch.einsum("bthn,bthnd->bthd", w.to(dtype).double(), v).to(dtype).double(), lse
    return torch.einsum("bthn,bthnd->bthd", w, v), lse


def error(out, want):
    return float((out.double() - want).norm() / want.norm().clamp(min=1e-30))


def check_out(step):
    want, lse = attend_f64(step, step.kept)
    plain, _ = attend_f64(step, step.kept, step.q.dtype)
    assert error(step.out, want) <= 2 * error(plain, want) + 1e-6, (error(step.out, want), error(plain, want))
    per_row = (step.out.double() - want).norm(dim=-1) / want.norm(dim=-1).clamp(min=1e-3)
    assert float(per_row.max()) < (0.02 if step.q.dtype is BF16 else 0.004)
    empty = lse.isinf()
    assert bool((step.lse.isinf() == empty).all())
    assert bool(((step.lse.double() - lse)[~empty].abs() < 2e-4 * lse[~empty].abs().clamp(min=1)).all())


def check_unreported(step, plan):
    """The same bytes where kept tokens are not asked for: to report them takes barriers, which hide where another one is missing."""
    out, lse, kept = step.out.clone(), step.lse.clone(), step.kept
    step.out.fill_(-7)
    step.lse.fill_(-7)
    step.kept = None
    step.run(plan)
    step.kept = kept
    for again, first in ((step.out, out), (step.lse, lse)):
        bits = {2: torch.int16, 4: torch.int32}[first.element_size()]
        assert torch.equal(again.view(bits), first.view(bits)), "kept tokens not asked for"


def check_run(step, plan, lengths):
    assert plan is not None, "there is no such plan, and the step's own one is not what is asked for"
    step.run(plan)
    check_kept(step, lengths)
    check_out(step)
    check_unreported(step, plan)
