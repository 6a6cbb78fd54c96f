"""fasa.paged against a plain torch reading of the formulas, and against torch's own attention."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fasa
from cases import INDEX_DTYPES, LAYOUTS, attention, make, scores, tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_budget_that_holds_the_context_is_full_attention(device, dtype, layout, head_dim):
    case = make(device, layout, dtype, head_dim=head_dim, num_query_tokens=2)
    out = case.decode(budget=150)
    for seq, length in enumerate(case.lengths.tolist()):
        k, v = (case.gather(cache, seq, length).double() for cache in (case.k_cache, case.v_cache))
        mask = torch.ones(2, length, dtype=torch.bool, device=device).tril(length - 2)
        expected = F.scaled_dot_product_attention(
            case.q[seq].transpose(0, 1).double(), k, v, attn_mask=mask, enable_gqa=True
        )
        assert (out[seq].transpose(0, 1) - expected).abs().max() < tolerance(dtype)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
@pytest.mark.parametrize("num_planes, share_tokens", [(2, True), (2, False), (4, True), (4, False)])
def test_keeps_the_best_by_score_and_attends_to_them(device, index_dtype, num_planes, share_tokens):
    case = make(device, index_dtype=index_dtype, num_planes=num_planes, num_query_tokens=2, lengths=(150, 37, 91))
    budget, sinks, recent = 40, 3, 5
    result = case.decode(
        budget=budget, sinks=sinks, recent=recent, share_tokens=share_tokens, return_lse=True, return_kept=True
    )
    assert result.kept.shape == (3, 2, 2 if share_tokens else 4, budget)
    for seq, token in itertools.product(range(3), range(2)):
        seen = int(case.lengths[seq]) - 1 + token
        expected, rounding = scores(case, seq, token, seen, share_tokens)
        for head in range(4):
            row = head // case.group if share_tokens else head
            kept = result.kept[seq, token, row].long()
            kept = kept[kept >= 0]
            assert len(kept) == min(seen, budget) == len(kept.unique()) and kept.max() < seen
            if seen > budget:
                forced = torch.cat([torch.arange(sinks), torch.arange(seen - recent, seen)]).to(device)
                assert torch.isin(forced, kept).all()
                left = torch.ones(seen, dtype=torch.bool, device=device)
                left[kept] = False
                best = kept[~torch.isin(kept, forced)]
                assert expected[row, best].min() >= expected[row, left].max() - 2 * rounding
            out, lse = attention(case, seq, token, head, kept)
            assert (result.out[seq, token, head] - out).abs().max() < tolerance(torch.bfloat16)
            assert (result.lse[seq, token, head] - lse).abs() < 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
def test_append_is_a_write_to_the_caches_and_then_decode(device, layout, index_dtype):
    case, other = (make(device, layout, index_dtype=index_dtype, num_query_tokens=3, index_dims=32) for _ in range(2))
    result = case.decode(budget=40, k_new=case.k_new, v_new=case.v_new)
    slots = []
    for seq, token in itertools.product(range(3), range(3)):
        position = int(other.lengths[seq]) - 3 + token
        block, offset = int(other.block_table[seq, position // 16]), position % 16
        other.k_cache[block, :, offset] = other.k_new[seq, token]
        other.v_cache[block, :, offset] = other.v_new[seq, token]
        slots.append(block * 16 + offset)
    fasa.paged.write_index(other.k_cache, other.index, torch.tensor(slots, device=device), other.dims, other.scale)
    for name in ("k_cache", "v_cache", "index"):
        assert torch.equal(getattr(case, name).view(torch.uint8), getattr(other, name).view(torch.uint8)), name
    assert torch.equal(result, other.decode(budget=40))


def test_layouts_give_the_same_bytes(device):
    cases = [make(device, layout) for layout in LAYOUTS]
    for case in cases[1:]:
        case.k_cache.copy_(cases[0].k_cache)
        case.v_cache.copy_(cases[0].v_cache)
        case.q, case.block_table, case.dims, case.scale = (
            getattr(cases[0], name) for name in ("q", "block_table", "dims", "scale")
        )
        case.fill_index()
    first, *others = (case.decode(budget=40) for case in cases)
    for other in others:
        assert torch.equal(first, other)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
def test_write_index_encodes_what_its_slots_name(device, index_dtype):
    case = make(device, index_dtype=index_dtype)
    index = torch.zeros_like(case.index)
    slots = torch.tensor([5, -1, 40, 7], device=device)
    fasa.paged.write_index(case.k_cache, index, slots, case.dims, case.scale)
    expected = torch.zeros_like(case.index)
    for slot in (5, 40, 7):
        for plane in range(2):
            x = case.k_cache[slot // 16, plane, slot % 16][case.dims[plane].long()].float() * (1 / case.scale[plane])
            if index_dtype == torch.uint8:
                low, high = x.round().clamp(-7, 7).to(torch.int32).remainder(16).unflatten(0, (-1, 2)).unbind(1)
                x = low | high << 4
            elif index_dtype == torch.int8:
                x = x.round().clamp(-127, 127)
            expected[slot // 16, plane, slot % 16] = x.to(index_dtype)
    assert torch.equal(index.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
def test_an_index_given_as_bytes_of_another_dtype(device, index_dtype):
    case, other = (make(device, "one_row", index_dtype=index_dtype, index_dims=32) for _ in range(2))
    other.index = other.index.view(torch.bfloat16)
    other.index.zero_()
    slots = torch.arange(other.index.shape[0] * 16, device=device)
    fasa.paged.write_index(other.k_cache, other.index, slots, other.dims, other.scale, index_dtype=index_dtype)
    assert torch.equal(case.index.view(torch.uint8), other.index.view(torch.uint8))
    assert torch.equal(case.decode(budget=40), other.decode(budget=40, index_dtype=index_dtype))


def test_a_float8_cache(device):
    case = make(device)
    case.k_cache, case.v_cache = (cache.to(torch.float8_e4m3fn) for cache in (case.k_cache, case.v_cache))
    case.fill_index()
    result = case.decode(budget=40, return_kept=True)
    for seq, head in itertools.product(range(3), range(4)):
        kept = result.kept[seq, 0, head].long()
        out, _ = attention(case, seq, 0, head, kept[kept >= 0])
        assert (result.out[seq, 0, head] - out).abs().max() < tolerance(torch.bfloat16)


def test_softcap_and_sink_logits(device):
    case = make(device)
    sink_logits = torch.tensor([0.5, -1.0, 2.0, 0.0], device=device)
    result = case.decode(budget=150, softcap=1.5, sink_logits=sink_logits, return_lse=True)
    for seq, head in itertools.product(range(3), range(4)):
        kept = torch.arange(int(case.lengths[seq]), device=device)
        out, lse = attention(case, seq, 0, head, kept, 1.5, sink_logits[head])
        assert (result.out[seq, 0, head] - out).abs().max() < tolerance(torch.bfloat16)
        assert (result.lse[seq, 0, head] - lse).abs() < 1e-3


def test_inactive_sequences_and_query_tokens_leave_zeros(device):
    case = make(device, lengths=(150, 0, 1), num_query_tokens=2)
    before = case.k_cache.clone()
    result = case.decode(budget=40, k_new=case.k_new, v_new=case.v_new, return_lse=True, return_kept=True)
    active = torch.tensor([[True, True], [False, False], [False, True]], device=device)
    assert (
        (result.out[~active] == 0).all()
        and (result.lse[~active] == -torch.inf).all()
        and (result.kept[~active] == -1).all()
    )
    assert (result.out[active] != 0).any(-1).all()
    changed = (case.k_cache != before).any(-1).sum()
    assert changed == 3 * 2  # three active tokens of two KV heads


def test_one_query_token_needs_no_dimension_for_it(device):
    case = make(device)
    out = torch.empty_like(case.q)
    expected = case.decode(budget=40, out=out, return_lse=True, return_kept=True)
    assert expected.out is out
    q, *rest = case.tensors
    k_new, v_new = (case.gather(cache, 0, 150)[:, -1:].transpose(0, 1) for cache in (case.k_cache, case.v_cache))
    result = fasa.paged.decode(q[:, 0], *rest, budget=40, return_lse=True, return_kept=True)
    for ours, theirs in zip(result, expected):
        assert torch.equal(ours, theirs[:, 0])
    # The new token of a sequence written again where it is changes nothing.
    alone = (q[:1, 0], *rest[:3], case.block_table[:1], case.lengths[:1], *rest[5:])
    again = fasa.paged.decode(*alone, budget=40, k_new=k_new, v_new=v_new)
    assert torch.equal(again, expected.out[:1, 0])


def test_an_index_row_of_half_a_value_is_refused(device):
    case = make(device, index_dims=2, index_dtype=torch.uint8)
    case.index = torch.zeros(*case.index.shape, dtype=torch.bfloat16, device=device)
    with pytest.raises(RuntimeError, match="rows of 1 bytes, no multiple of its dtype's 2"):
        case.decode(budget=40, index_dtype=torch.uint8)


def test_no_sequences(device):
    case = make(device)
    q, k, v, index, table, lengths, *rest = case.tensors
    assert fasa.paged.decode(q[:0], k, v, index, table[:0], lengths[:0], *rest, budget=40).shape == (0, 1, 4, 64)
    fasa.paged.write_index(k, index, torch.empty(0, dtype=torch.int64, device=device), *rest)


@pytest.mark.parametrize("index_dtype", INDEX_DTYPES)
def test_scales_hold_every_key_at_any_position(index_dtype):
    case = make(index_dtype=index_dtype)
    keys = case.k_cache.transpose(1, 2).float()
    largest = {torch.int8: 127, torch.uint8: 7, torch.float8_e4m3fn: 448, torch.bfloat16: None}[index_dtype]
    if largest is None:
        assert (case.scale == 1).all()
        return
    first, second = case.dims[:, 0::2].long(), case.dims[:, 1::2].long()
    length = torch.stack(
        [keys[..., p, first[p]].hypot(keys[..., p, second[p]]).flatten(0, 1).amax(0) for p in range(2)]
    )
    assert torch.allclose(case.scale[:, 0::2] * largest, length) and torch.equal(
        case.scale[:, 0::2], case.scale[:, 1::2]
    )


WRONG = {
    "q of three dims too few": (dict(q=lambda c: c.q[0, 0]), "q has shape"),
    "dtype of q": (dict(q=lambda c: c.q.half()), "q must be of dtype bfloat16"),
    "dtype of the cache": (dict(k_cache=lambda c: c.k_cache.float()), "k_cache must be of dtype"),
    "cache with a strided row": (dict(k_cache=lambda c: c.k_cache.transpose(2, 3)), "contiguous in its last dimension"),
    "v of another shape": (dict(v_cache=lambda c: c.v_cache[:, :1]), "v_cache has shape"),
    "v of another dtype": (dict(v_cache=lambda c: c.v_cache.half()), "v_cache must be of dtype"),
    "index of too few planes": (dict(index=lambda c: c.index[:, :1]), "index has 1 planes"),
    "index of too few values": (dict(index=lambda c: c.index[..., :8]), "index has shape"),
    "index of a strange dtype": (dict(index=lambda c: c.index.short()), "index must be of dtype int8"),
    "lengths of int64": (dict(lengths=lambda c: c.lengths.long()), "lengths must be of dtype int32"),
    "too few lengths": (dict(lengths=lambda c: c.lengths[:2]), "lengths has shape"),
    "block table of int64": (dict(block_table=lambda c: c.block_table.long()), "block_table must be of dtype int32"),
    "dims of int32": (dict(dims=lambda c: c.dims.int()), "dims must be of dtype int16"),
    "scales of float64": (dict(scale=lambda c: c.scale.double()), "index_scale must be of dtype float32"),
    "strided scales": (dict(scale=lambda c: c.scale.repeat_interleave(2, 0)[::2]), "index_scale must be contiguous"),
    "budget of 0": (dict(budget=0), "budget is 0"),
    "sinks beyond the budget": (dict(sinks=30, recent=20), "must fit the budget"),
    "budget beyond 32 bits": (dict(budget=2**40, return_kept=False), "budget is 1099511627776, outside 32 bits"),
    "max_length beyond the table": (dict(max_length=10000), "block_table has 10 pages of 16 tokens"),
    "k_new alone": (dict(k_new=lambda c: c.k_new), "pass both or neither"),
    "k_new of another shape": (dict(k_new=lambda c: c.k_new[:2], v_new=lambda c: c.v_new), "k_new has shape"),
    "sink logits of another size": (dict(sink_logits=lambda c: c.scale[0]), "sink_logits has shape"),
    "out of another shape": (dict(out=lambda c: c.q[:2].clone()), "out has shape"),
    "an odd head": (
        dict(q=lambda c: c.q[..., :48], k_cache=lambda c: c.k_cache[..., :48], v_cache=lambda c: c.v_cache[..., :48]),
        "head_dim is 48",
    ),
    "query heads no multiple": (dict(q=lambda c: c.q[:, :, :3]), "num_q_heads 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_sentence(device, name):
    changes, message = WRONG[name]
    case = make(device)
    options = {"budget": 40}
    for key, value in changes.items():
        value = value(case) if callable(value) else value
        if hasattr(case, key):
            options.setdefault("tensors", {})[key] = value
        else:
            options[key] = value
    for key in ("k_new", "v_new"):
        if key in options.get("tensors", {}):
            options[key] = options["tensors"].pop(key)
    for key, value in options.pop("tensors", {}).items():
        setattr(case, key, value)
    with pytest.raises(RuntimeError, match=message) as error:
        case.decode(**options)
    assert len(str(error.value).strip().splitlines()) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.dims.fill_(64), "dims has the value 64"),
        (lambda c: c.lengths.fill_(161), "lengths has the value 161"),
        (lambda c: c.block_table.fill_(99), "block_table has the value 99"),
        (lambda c: c.block_table.fill_(-1), "block_table has the value -1"),
    ],
)
def test_the_cpu_looks_at_values(change, message):
    case = make()
    change(case)
    with pytest.raises(RuntimeError, match=message):
        case.decode(budget=40)


def test_layer_budgets_fall_along_the_layers_and_keep_their_sum():
    # The numbers of profile_test.cc, LayerSettings.BudgetFallsAlongTheSparseLayers.
    assert fasa.paged.layer_budgets(100, 3) == [130, 100, 70]
    assert fasa.paged.layer_budgets(100, 3, slope=0.5) == [150, 100, 50]
    assert fasa.paged.layer_budgets(100, 3, slope=1, least=37) == [200, 100, 37]
    assert fasa.paged.layer_budgets(100, 1) == [100]
    assert sum(fasa.paged.layer_budgets(256, 28)) == 28 * 256
    with pytest.raises(RuntimeError, match="slope is 1.5"):
        fasa.paged.layer_budgets(100, 3, slope=1.5)


def test_write_index_refuses_what_it_cannot_do(device):
    case = make(device)
    slots = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match="slots must be of dtype int64"):
        fasa.paged.write_index(case.k_cache, case.index, slots.int(), case.dims, case.scale)
    with pytest.raises(RuntimeError, match="index has shape"):
        fasa.paged.write_index(case.k_cache, case.index[:3], slots, case.dims, case.scale)
    with pytest.raises(RuntimeError, match="torch.int32 is not known"):
        fasa.paged.empty_index(case.k_cache, case.dims, torch.int32)
    if device == "cpu":
        with pytest.raises(RuntimeError, match="slots has the value 100000"):
            fasa.paged.write_index(case.k_cache, case.index, slots + 100000, case.dims, case.scale)
