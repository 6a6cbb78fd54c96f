"""The fused steps on scores that make the choice hard: ties, scores far from 0, the new token the best of all."""

import pytest
import torch

import paged
from paged_check import check_run, unit_of
from paged_gpu_test import FUSED_INDICES, ONE_LAUNCH_INDICES, REDUCED, Case, make, plant, write_index


@pytest.mark.parametrize("index", ["int8", "fp8", "int4", "bf16"])
@pytest.mark.parametrize("own_tokens", [False, True])
def test_ties(index, own_tokens):
    """All keys equal; two values; few values."""
    for values in (1, 2, 9):
        case = Case(lengths=(6000, 300), index=index, own_tokens=own_tokens, budget=128, append=False)
        step = make(case)
        few = torch.randn(values, 1, step.shape.head_dim, device="cuda")
        choice = torch.randint(0, values, step.k.shape[:3], device="cuda")
        step.k.copy_(few[choice][..., 0, :].to(step.k.dtype))
        write_index(step, case)
        for plan in (p for cluster in (1, 2, 3, 6, 8, 16) for p in paged.plans(step.shape, cluster)):
            check_run(step, plan, case.lengths)


@pytest.mark.parametrize("size", [20.0, -20.0])
@pytest.mark.parametrize("cluster,own_tokens", [(1, False), (4, False), (8, False), (16, False), (1, True), (4, True), (8, True)])
@pytest.mark.parametrize("index,dims", ONE_LAUNCH_INDICES)
def test_clustered_scores(index, dims, cluster, own_tokens, size):
    """All scores far from 0 and close to each other: not where one launch guesses the threshold, and many in one bin."""
    case = Case(lengths=(8000, 3000), index=index, dims=dims, budget=200, append=False, own_tokens=own_tokens)
    step = make(case)
    step.k.copy_((size + 0.5 * torch.randn(step.k.shape, device="cuda")).to(step.k.dtype))
    step.q.abs_()
    step.index_scale.mul_(7)
    write_index(step, case)
    for key_bytes in (4, 2):
        check_run(step, paged.one_launch(step.shape, cluster, key_bytes=key_bytes), case.lengths)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("own_tokens", [False, True])
def test_scores_as_large_as_can_be(own_tokens, sign):
    """Codes -8 against the largest query, of either sign: the ends of what 16 bits hold, kept and equal to the last one kept."""
    case = Case(lengths=(9000, 3000), index="int4", own_tokens=own_tokens, budget=200)
    step = make(case)
    step.q.fill_(-sign)
    step.index_scale.fill_(1.0)
    step.index.fill_(0x88)
    for token in range(20, 2900, 17):  # 170 rows of sequence 0
        step.index[step.block_table[0, token // 16], :, token % 16] = 0x77
    for cluster in (1, 2, 3, 8):
        for plan in paged.plans(step.shape, cluster):
            check_run(step, plan, case.lengths)


SHORT_KEYS = [("int8", 16), ("int8", 32), ("fp8", 16), ("fp8", 32)]  # where several scores share one


def short_plans(shape):
    clusters = (1, 3) if REDUCED else (1, 2, 3, 5, 8, 16)
    plans = [paged.one_launch(shape, cluster, ring, key_bytes=2) for cluster in clusters for ring in (0, paged.STEP_RING)]
    plans = [plan for plan in plans if plan]
    assert len(plans) >= len(clusters) / 2 and all(plan.key_bytes == 2 for plan in plans)
    return plans


@pytest.mark.parametrize("own_tokens", [False, True])
@pytest.mark.parametrize("index,dims", SHORT_KEYS)
def test_short_keys(index, dims, own_tokens):
    """Of the keys in the threshold's bin, some share 16 bits; twice, the same bytes."""
    for budget, group in ((300, 4), (1500, 3)):
        case = Case(lengths=(20000, 6001, 0, 90), kv_heads=1, group=group, index=index, dims=dims, own_tokens=own_tokens, budget=budget)
        step = make(case)
        for plan in short_plans(step.shape):
            check_run(step, plan, case.lengths)
            first = step.out.clone()
            step.run(plan)
            assert torch.equal(first, step.out)


@pytest.mark.parametrize("spread", [0.0, 1.0, 40.0, 1000.0])
@pytest.mark.parametrize("own_tokens", [False, True])
@pytest.mark.parametrize("index,dims", SHORT_KEYS)
def test_scores_that_share_short_keys(index, dims, own_tokens, spread):
    """One dim, the same in all tokens, outweighs the others by so much that all scores are in few short keys, or in one, whose keys are
    divided; in half of the tokens all dims are the same, too. Of either sign. spread: of the others, in units of the int8 query's."""
    for sign in (1, -1):
        case = Case(lengths=(2500, 301) if REDUCED else (20000, 6001), kv_heads=2, index=index, dims=dims, own_tokens=own_tokens,
                    budget=200, append=sign > 0)
        step = make(case)
        step.index_scale.fill_(3.0 / {"int8": 127, "fp8": 448}[index])
        step.q.mul_(spread / 2 / 32512).clamp_(-0.5, 0.5)
        step.k[:, :, :8] = step.k[0, 0, 0]
        for head in range(case.kv_heads):
            step.q[:, :, head * case.group:(head + 1) * case.group, step.dims[head, 0].long()] = sign
            step.k[:, head, :, step.dims[head, 0].long()] = 2.0
        if case.append:
            step.k_new[..., step.dims[:, 0].long()] = 2.0
        write_index(step, case)
        for plan in short_plans(step.shape):
            check_run(step, plan, case.lengths)


@pytest.mark.parametrize("ring,length", [(0, 64500), (paged.STEP_RING, 63400)])
def test_as_many_keys_as_have_numbers(ring, length):
    """A thread's keys, with that of the new token, are numbered by 8 bits: with 16 bits a key, more would have room."""
    case = Case(lengths=(length, 700), kv_heads=1, index="int4", budget=300)
    step = make(case)
    check_run(step, paged.one_launch(step.shape, 1, ring), case.lengths)
    longer = Case(lengths=(length + 2048,), kv_heads=1, index="int4", budget=300)
    assert paged.one_launch(longer.shape(), 1, ring) is None
    plan = paged.plan(longer.shape())
    plan.path, plan.ring, plan.score_ctas, plan.cluster = paged.ONE_LAUNCH, ring, 1, 1
    paged.library.complete_plan(longer.shape(), plan)
    with pytest.raises(paged.Failure, match="the plan is for another shape"):
        make(longer).run(plan)


@pytest.mark.parametrize("page,layout", [(64, "contiguous"), (192, "split"), (64, "packed"), (32, "contiguous"), (48, "split")])
@pytest.mark.parametrize("index,dims", [*SHORT_KEYS, ("int4", 32), ("int4", 64)])
def test_units_of_a_ring(index, dims, page, layout):
    """Of 64 tokens, looked up as one where a page has the rows of all in one piece, else in parts; several times by a warp of one CTA."""
    lengths = (3000 if REDUCED else 18000, 700, 64, 0, 90)
    for sinks in (0, 600):
        case = Case(lengths=lengths, kv_heads=1, index=index, dims=dims, page=page, layout=layout, budget=sinks + 128, sinks=sinks)
        step = make(case)
        for cluster in (1, 2, 9):
            check_run(step, paged.one_launch(step.shape, cluster, paged.STEP_RING), lengths)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("index,dims", [*SHORT_KEYS, ("int4", 32)])
def test_few_of_many_keys(index, dims, same):
    """128 keys of a lane and more, of which few are wanted; also where all are the same, so that none can be left out."""
    case = Case(lengths=(40000, 33000), kv_heads=1, index=index, dims=dims, budget=64)
    step = make(case)
    if same:
        step.index.fill_(0x11)
    for ring in (0, paged.STEP_RING):
        check_run(step, paged.one_launch(step.shape, 1, ring, key_bytes=2), case.lengths)


@pytest.mark.parametrize("length", [40000, 57000])
@pytest.mark.parametrize("index", ["int8", "int4"])
def test_lengths_between_sizes_of_samples(index, length):
    """Groups of samples are half as large as they should be: more keys are looked at than warps have room for, or smaller groups."""
    case = Case(lengths=(length, 30000), kv_heads=1, index=index, budget=2048, page=64)
    step = make(case)
    for cluster, ring in ((3, 0), (6, 0), (5, paged.STEP_RING)):
        check_run(step, paged.one_launch(step.shape, cluster, ring), case.lengths)


@pytest.mark.parametrize("own_tokens", [False, True])
def test_new_token_is_kept_where_it_is_best(own_tokens):
    case = Case(lengths=(3000, 700), sinks=0, recent=0, own_tokens=own_tokens)
    for plan in (p for cluster in (1, 2, 3, 6, 8, 16) for p in paged.plans(case.shape(), cluster)):
        for head in range(case.group if own_tokens else 1):
            step = make(case)
            step.k_new.copy_(step.q[:, :, head::case.group])
            check_run(step, plan, case.lengths)
            best = step.kept[:, :, head::case.group] if own_tokens else step.kept
            assert bool((best == step.lengths[:, None, None, None] - 1).any(-1).all())


def fill_keys(step, case, start, noise, trend):
    """K of each head is start + trend * position / length, and noise: every score goes the same way."""
    for seq, length in enumerate(case.lengths):
        position = torch.arange(length, device="cuda")
        k = start + trend * (position / length)[:, None, None] + noise(length)
        step.k[step.block_table[seq].long()[position // 16], :, position % 16] = k.to(step.k.dtype)
    step.q.abs_()
    step.index_scale.mul_(6)
    write_index(step, case)


@pytest.mark.parametrize("trend", [0.0, 4.0, -4.0])
@pytest.mark.parametrize("own_tokens", [False, True])
@pytest.mark.parametrize("index,dims", FUSED_INDICES)
def test_rows_longer_than_a_cta_has_room_for(index, dims, own_tokens, trend):
    """Their keys are looked through a chunk at a time: better and better ones, worse and worse ones, many equal ones."""
    for equal in (False, True):
        case = Case(lengths=(70000, 21000), kv_heads=1, index=index, dims=dims, own_tokens=own_tokens, budget=200, append=False)
        step = make(case)
        size = (1, 1) if equal else (1, step.shape.head_dim)
        fill_keys(step, case, 10, lambda n: (0.5 * torch.randn(n, *size, device="cuda")).round(decimals=1 if equal else 4), trend)
        for ctas in (1, 3):
            plan = paged.two_launches(step.shape, ctas)
            check_run(step, plan, case.lengths)
            first = step.out.clone()
            step.run(plan)
            assert torch.equal(first, step.out)


@pytest.mark.parametrize("own_tokens", [False, True])
def test_hot_tokens_of_a_cta_that_forgets(own_tokens):
    """More of the best tokens in one CTA than it publishes, late in a row that has made it forget: they count as kept back."""
    case = Case(lengths=(200000,), own_tokens=own_tokens, budget=256, sinks=0, recent=0, append=False)
    plan = paged.two_launches(case.shape(), 3)
    step = make(case)
    fill_keys(step, case, 2, lambda n: 0.5 * torch.randn(n, 1, step.shape.head_dim, device="cuda"), 4)
    tokens = torch.tensor([unit_of(k, 1, plan.score_ctas) * 16 + i for k in range(3500, 3517) for i in range(16)]).cuda()
    assert len(tokens) > plan.slots
    plant(step, 0, 0, tokens)
    check_run(step, plan, case.lengths)
