"""The operators as torch sees them: opcheck, torch.compile."""

import pytest
import torch

import fasa
from cases import LAYOUTS, make

OPS = torch.ops.fasa
OPTIONS = (40, 4, 8, 160, False, 0.125, 0.0)  # budget, sinks, recent, max_length, share_tokens, scale, softcap


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(device, layout, extras):
    case = make(device, layout)
    shared = (case.block_table, case.lengths, case.dims, case.scale)
    out, lse, kept, sink_logits = torch.empty_like(case.q), None, None, None
    if extras:
        lse = torch.empty(3, 1, 4, device=device)
        kept = torch.empty(3, 1, 4, 40, dtype=torch.int32, device=device)
        sink_logits = torch.zeros(4, device=device)
    rest = (*shared, sink_logits, out, lse, kept, *OPTIONS, None)
    torch.library.opcheck(OPS.paged_decode.default, (case.q, case.k_cache, case.v_cache, case.index, *rest))
    appended = (case.q, case.k_new, case.v_new, case.k_cache, case.v_cache, case.index, *rest)
    torch.library.opcheck(OPS.paged_append_decode.default, appended)
    slots = torch.tensor([3, -1, 17], device=device)
    torch.library.opcheck(OPS.paged_write_index.default, (case.k_cache, case.index, slots, case.dims, case.scale, None))


def step(case, kv, layout, budget):
    """Views of one tensor where the layout says so, and work around the operators, so that something is compiled."""
    k_cache, v_cache, index, index_dtype = case.k_cache, case.v_cache, case.index, None
    if layout == "two_halves":
        k_cache, v_cache = kv[0].transpose(1, 2), kv[1].transpose(1, 2)
    elif layout == "one_row":
        k_cache, v_cache, index, index_dtype = kv[..., :64], kv[..., 64:128], kv[..., 128:], torch.int8
    result = fasa.paged.decode(
        case.q * 2,
        k_cache,
        v_cache,
        index,
        *case.tensors[4:],
        budget=budget,
        k_new=case.k_new + 1,
        v_new=case.v_new,
        index_dtype=index_dtype,
        return_lse=True,
        return_kept=True,
    )
    return result.out + 1, result.lse * 2, result.kept


def caches_equal(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("k_cache", "v_cache", "index"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_is_eager(device, layout):
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True)
    traced, eager, untouched = (make(device, layout) for _ in range(3))
    for budget in (40, 60):
        theirs = step(eager, eager.k_cache._base, layout, budget)
        for one, other in zip(compiled(traced, traced.k_cache._base, layout, budget), theirs):
            assert torch.equal(one, other)
    assert caches_equal(traced, eager) and not caches_equal(traced, untouched)


def test_compiled_for_any_batch(device):
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths in ((150, 37, 64), (90, 20), (40, 41, 42, 43)):
        traced, eager = (make(device, lengths=lengths) for _ in range(2))
        for one, other in zip(compiled(traced, None, "contiguous", 40), step(eager, None, "contiguous", 40)):
            assert torch.equal(one, other)
        assert caches_equal(traced, eager)
