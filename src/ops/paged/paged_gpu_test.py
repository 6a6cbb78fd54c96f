"""The paged operations on a GPU against the scalar reference, against f64 in torch and against torch's own attention.

Run by scripts/gpu_test. FASA_REDUCED=1: the few small cases that compute-sanitizer gets.
"""

import dataclasses
import os
import random

import pytest
import torch

import paged
from paged import INDEX_TYPES, KV_TYPES, Shape, Step, library
from paged_check import attend_f64, check_kept, check_out, check_run, check_unreported, error, pick, unit_of

torch.set_num_threads(2)  # the processes of pytest-xdist share the cores
REDUCED = os.environ.get("FASA_REDUCED") == "1"
BF16, F16, F8 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
POISON = 1 << 30  # a block that does not exist: reading through it faults


@dataclasses.dataclass
class Case:
    lengths: tuple = (300,)
    query_tokens: int = 1
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    page: int = 16
    kv: torch.dtype = BF16
    index: str = "int8"
    dims: int = 32
    own_fcs: bool = False
    own_tokens: bool = False
    budget: int = 64
    sinks: int = 4
    recent: int = 16
    layout: str = "contiguous"
    softcap: float = 0.0
    sink_logits: bool = False
    append: bool = True
    negative: bool = False  # some scales of the index
    max_length: int = 0
    seed: int = 1

    def shape(self):
        return Shape(len(self.lengths), self.query_tokens, self.kv_heads * self.group, self.kv_heads, self.head_dim, self.page,
                     KV_TYPES[self.kv], INDEX_TYPES[self.index], self.dims, self.own_fcs, self.own_tokens, self.budget, self.sinks,
                     self.recent, self.max_length or max(*self.lengths, 1))


def fill(t, generator, scale=1.0):
    """Normal values, drawn piece by piece: f32 of all would not fit for the longest."""
    for part in t.split(max(1, (1 << 26) // max(1, t[0].numel()))):
        part.copy_(torch.randn(part.shape, generator=generator, device=t.device) * scale)


def make(case):
    """A step on the GPU: caches filled and indexed up to the new tokens, spread over random blocks."""
    s = case.shape()
    g = torch.Generator("cuda").manual_seed(case.seed)
    pages = -(-s.max_length // case.page)
    counts = [-(-n // case.page) for n in case.lengths]
    num_blocks = sum(counts) + 3
    k, v, index = paged.make_caches(s, num_blocks, case.layout, case.kv)
    fill(k, g)
    fill(v, g)
    order = torch.randperm(num_blocks, generator=g, device="cuda").int()
    table = torch.full((s.num_seqs, pages + 2), POISON, dtype=torch.int32, device="cuda")
    for i, n in enumerate(counts):
        table[i, :n] = order[sum(counts[:i]):sum(counts[:i]) + n]
    dims = torch.stack([torch.randperm(s.head_dim, generator=g, device="cuda")[:s.index_dims] for _ in range(s.num_planes)]).short()
    top = {"int8": 127, "int4": 7, "fp8": 448, "bf16": 3}[case.index]
    scale = 3 / top * (0.5 + torch.rand(dims.shape, generator=g, device="cuda"))
    if case.negative:
        scale[:, ::3] *= -1
    half = BF16 if case.kv is F8 else case.kv

    def random_rows(heads, size):
        # One head too many: what lies between the rows must stay as it is.
        whole = torch.empty(s.num_seqs, s.num_query_tokens, heads + 1, s.head_dim, dtype=half, device="cuda")
        fill(whole, g, size)
        return whole[:, :, :heads]

    sink_logits = torch.randn(s.num_q_heads, generator=g, device="cuda") if case.sink_logits else None
    new = (random_rows(s.num_kv_heads, 1.0), random_rows(s.num_kv_heads, 1.0)) if case.append else (None, None)
    step = Step(s, random_rows(s.num_q_heads, 2.0), k, v, index, table, torch.tensor(case.lengths, dtype=torch.int32, device="cuda"),
                dims.contiguous(), scale.contiguous(), *new, softcap=case.softcap, sink_logits=sink_logits)
    whole = torch.full((s.num_seqs, s.num_query_tokens, s.num_q_heads + 1, s.head_dim), 77.0, dtype=half, device="cuda")
    step.out = whole[:, :, :s.num_q_heads]
    write_index(step, case)
    return step


def slots_of(step, case):
    slots = []
    for i, n in enumerate(case.lengths):
        position = torch.arange(max(0, n - (case.query_tokens if case.append else 0)), device="cuda")
        slots.append(step.block_table[i].long()[position // case.page] * case.page + position % case.page)
    return torch.cat([*slots, torch.tensor([-1], device="cuda")])


def write_index(step, case):
    slots = slots_of(step, case)
    args = paged.IndexArgs(step.shape, paged.cache(step.k), paged.cache(step.index), slots.data_ptr(), slots.numel(),
                           step.dims.data_ptr(), step.index_scale.data_ptr())
    library.write_index(args, paged.stream())


def check_case(case, fused=None, with_ref=True):
    step = make(case)
    ref = step.to("cpu") if with_ref else None
    written = []  # caches after each plan
    untouched = step.out._base[:, :, -1].clone()
    plans = paged.plans(step.shape, cluster=(1, 2, 4, 6, 8, 10, 16)[case.seed % 7])
    if fused is not None:
        assert (plans[0].path != paged.GENERIC) == fused
    for plan in plans:
        for t in (step.out, step.lse, step.kept):
            t.fill_(-7)
        workspace = torch.full((plan.workspace_bytes + 512,), 0xA5, dtype=torch.uint8, device="cuda")
        if with_ref:
            step.take_caches(ref)
        step.run(plan, workspace)
        torch.cuda.synchronize()
        if with_ref:
            written.append(step.cache_bytes())
        assert bool((workspace[plan.workspace_bytes:] == 0xA5).all()), "nothing written behind the workspace"
        assert torch.equal(step.out._base[:, :, -1], untouched), "nothing written between rows"
        check_kept(step, case.lengths)
        check_out(step)
        check_unreported(step, plan)
    if with_ref:
        blank = ref.index.clone()
        slots = slots_of(step, case).cpu()
        ref.index.zero_()
        library.write_index_ref(paged.IndexArgs(ref.shape, paged.cache(ref.k), paged.cache(ref.index), slots.data_ptr(),
                                                slots.numel(), ref.dims.data_ptr(), ref.index_scale.data_ptr()))
        assert torch.equal(ref.index, blank), "write_index writes the reference's bytes"
        ref.run_ref()
        check_kept(ref, case.lengths)
        check_out(ref)
        want = ref.cache_bytes()
        for caches in written:
            assert all(map(torch.equal, caches, want)), "every plan appends the new tokens"
    return step, plans[0]


RANDOM = random.Random(20260203)


def random_case(i):
    r = RANDOM
    query_tokens = r.choice([1, 1, 1, 2, 3, 5, 8])
    budget = r.choice([1, 16, 40, 64, 128, 256])
    sinks = r.choice([0, min(4, budget), budget // 2])
    index = r.choice(["bf16", "fp8", "int8", "int8", "int4"])
    head_dim = r.choice([64, 96, 128, 192, 256])
    own_tokens = r.choice([False, False, True])
    own_fcs = r.choice([False, False, True])
    layout = r.choice(["contiguous", "split", "packed"] if not own_fcs else ["contiguous", "split"])
    dims = r.choice([d for d in (16, 32, 64, 6, 48) if d <= head_dim])
    if index == "int4" and dims < 32 and r.random() < 0.7:
        dims = 32
    lengths = tuple(r.choice([0, 1, query_tokens, budget, budget + 1, r.randrange(1, 700), r.randrange(600, 3000)])
                    for _ in range(r.choice([1, 2, 5])))
    return Case(lengths=lengths, query_tokens=query_tokens, kv_heads=r.choice([1, 2, 3]),
                group=r.choice([1, 2, 3, 4, 5, 7, 8, 12, 16]), head_dim=head_dim,
                page=r.choice([1, 3, 8, 16, 16, 32, 64, 100, 128, 256]), kv=r.choice([BF16, BF16, F16, F8]), index=index,
                dims=dims, own_fcs=own_fcs, own_tokens=own_tokens, budget=budget, sinks=sinks,
                recent=r.choice([0, min(16, budget - sinks), budget - sinks]), layout=layout,
                softcap=r.choice([0.0, 0.0, 30.0]), sink_logits=r.choice([False, False, True]), append=r.random() < 0.8,
                max_length=r.choice([0, 5000, 100000]) or max(*lengths, 1), seed=i + 2)


CASES = [random_case(i) for i in range(160)]


@pytest.mark.parametrize("i", range(8 if REDUCED else len(CASES)))
def test_random(i):
    check_case(CASES[i])


FUSED_INDICES = [("int8", 16), ("int8", 32), ("int8", 64), ("fp8", 16), ("fp8", 32), ("fp8", 64), ("int4", 32), ("int4", 64),
                 ("bf16", 16), ("bf16", 32)]


ONE_LAUNCH_INDICES = [("int8", 16), ("int8", 32), ("fp8", 16), ("fp8", 32), ("int4", 32), ("int4", 64)]


@pytest.mark.parametrize("index,dims", FUSED_INDICES)
@pytest.mark.parametrize("own_tokens", [False, True])
def test_fused_indices(index, dims, own_tokens):
    for group in (1, 4, 7, 16) if not REDUCED else (4,):
        check_case(Case(lengths=(1500, 70, 0), query_tokens=2, group=group, index=index, dims=dims, own_tokens=own_tokens), fused=True)
        case = Case(lengths=(1500, 70, 0, 6000), group=group, index=index, dims=dims, budget=100, own_tokens=own_tokens)
        step, plan = check_case(case, fused=True)
        assert (plan.path == paged.ONE_LAUNCH) == ((index, dims) in ONE_LAUNCH_INDICES and (own_tokens or group <= 8))


@pytest.mark.parametrize("layout", ["contiguous", "split", "packed"])
@pytest.mark.parametrize("page", [1, 2, 5, 16, 48, 64, 256])
def test_pages_and_layouts(page, layout):
    for own_tokens in (False, True):
        check_case(Case(lengths=(page, page + 1, 3 * page - 1, 16 * page + 1, 900), page=page, layout=layout, own_tokens=own_tokens,
                        query_tokens=3, budget=32), fused=True)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("kv", [BF16, F16, F8])
def test_head_dims(head_dim, kv):
    for budget in (17, 256):
        check_case(Case(lengths=(2000, 257, 16), head_dim=head_dim, kv=kv, budget=budget, sinks=1, recent=3, group=5,
                        sink_logits=True, softcap=20.0), fused=kv is not F8)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 66, 80, 127, 128, 129, 511, 512, 513, 4095, 4096, 4097])
def test_every_tail(length):
    check_case(Case(lengths=(length,), query_tokens=min(8, length)))
    check_case(Case(lengths=(length,), budget=32, sinks=0, recent=0, own_tokens=True, append=False))


def test_negative_scales():
    check_case(Case(lengths=(900, 5000), negative=True), fused=True)


def check_plan(case, one=0, **change):
    """change: of the plan with two launches; one: the cluster of that with one, where it is not 0."""
    step = make(case)
    plan = paged.one_launch(step.shape, one) if one else paged.two_launches(step.shape)
    if plan is None:
        has_none = (case.index, case.dims) not in ONE_LAUNCH_INDICES or case.query_tokens > 1
        assert has_none or (one > 8 if case.own_tokens else case.group > 8)
        return
    for name, value in change.items():
        setattr(plan, name, value)
    library.complete_plan(step.shape, plan)
    check_run(step, plan, case.lengths)


@pytest.mark.parametrize("change", [dict(score_ctas=1), dict(score_ctas=2), dict(score_ctas=3), dict(score_ctas=7), dict(score_ctas=16),
                                    dict(score_ctas=64), dict(attend_alone=1), *(dict(cluster=n) for n in (1, 2, 3, 6, 8)),
                                    *(dict(one=n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 16))])
def test_every_plan(change):
    for own_tokens in (False, True):
        check_plan(Case(lengths=(3000, 5000), own_tokens=own_tokens, budget=200), **change)
    check_plan(Case(lengths=(300, 40, 9000), head_dim=64, index="int4", budget=90, sinks=0, recent=0, sink_logits=True), **change)


@pytest.mark.parametrize("index,dims", FUSED_INDICES)
def test_many_rounds(index, dims):
    """Units are looked up for 32 at a time, so several times by a warp here."""
    for group in (4, 9):
        case = Case(lengths=(20000, 6001), kv_heads=1, group=group, index=index, dims=dims, budget=200, sinks=100)
        check_plan(case, score_ctas=1)
        for cluster in (1, 3, 4):
            check_plan(case, one=cluster)
        if group == 4:
            for cluster in (2, 3):
                check_plan(case, one=cluster, ring=paged.STEP_RING)
    own = Case(lengths=(9000, 6001), kv_heads=1, index=index, dims=dims, own_tokens=True, budget=200)
    for ctas in (1, 3):
        check_plan(own, score_ctas=ctas)
    for cluster in (1, 4):
        check_plan(own, one=cluster)


def test_more_clusters_than_run_at_once():
    lengths = (0, 100, *(400 + 37 * i for i in range(30)))
    case = Case(lengths=lengths, kv_heads=8, own_tokens=True, budget=128)
    step, plan = check_case(case, fused=True)
    assert plan.path == paged.ONE_LAUNCH and plan.attend_rows * plan.cluster > 264
    plan.lead_ctas, plan.lead_ns = 132 // plan.cluster * plan.cluster, 30000  # also where rows are so short
    check_run(step, plan, lengths)


def test_fallback_shapes_are_refused_by_the_fused_path():
    d = paged.device()
    for case in (Case(kv=F8), Case(dims=6), Case(own_fcs=True, group=4), Case(budget=50000, lengths=(60000,))):
        assert paged.plan(case.shape(), d).path == 1
    assert paged.plan(Case().shape(), paged.Device(80, 108)).path == 1


@pytest.mark.parametrize("budget", [1024, 2048, 4000])
def test_large_budgets(budget):
    for own_tokens in (False, True) if budget < 4000 else (False,):
        for seed in range(5):  # clusters of all sizes
            check_case(Case(lengths=(9000, 2000), budget=budget, own_tokens=own_tokens, sinks=16, recent=64, seed=seed), fused=True)
    for cluster in (1, 3, 8):  # from many tiles of kept tokens a warp to one
        check_plan(Case(lengths=(9000, 2000, 4500), budget=budget, sinks=16, recent=64), one=cluster, ring=paged.STEP_RING)


def test_generic_path_of_a_very_large_budget():
    check_case(Case(lengths=(60000,), budget=50000, kv_heads=1, group=2), fused=False)


def test_full_attention_equals_sdpa():
    """With a budget of the whole context FASA is attention."""
    for kv, head_dim, n in ((BF16, 128, 700), (F16, 64, 333), (BF16, 256, 1024)):
        case = Case(lengths=(n, n), kv=kv, head_dim=head_dim, budget=1024, page=64)
        step, _ = check_case(case, fused=True)
        tokens = torch.arange(n, device="cuda").expand(2, case.kv_heads, n)
        k, v = (pick(c, step, tokens, torch.arange(case.kv_heads, device="cuda")[:, None]) for c in (step.k, step.v))
        want = torch.nn.functional.scaled_dot_product_attention(step.q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)
        precise, _ = attend_f64(step, step.kept)
        assert error(step.out, precise) <= 2 * error(want, precise)
        assert torch.allclose(step.out.float(), want.float(), atol=0.02, rtol=0.02)


def plant(step, seq, head, tokens, strength=1.0):
    """Codes along the query of the first head of a group: hot tokens of its selection."""
    s = step.shape
    q = step.q[seq, -1, head * s.group].float()[step.dims[head].long()] * step.index_scale[head]
    noise = torch.rand(len(tokens), s.index_dims, device=q.device)
    codes = (q.sign() * (100 + 20 * noise) * strength).to(torch.int8).view(torch.uint8)
    block = step.block_table[seq].long()[tokens // s.page_size]
    step.index[block, head, tokens % s.page_size] = codes


@pytest.mark.parametrize("where", ["window", "start", "stride", "one CTA", "two CTAs"])
@pytest.mark.parametrize("budget", [64, 256])
def test_hot_tokens(where, budget):
    """Where the best tokens lie decides what each CTA publishes, never the result. In one CTA they overflow its quota."""
    shared, own = (Case(lengths=(20000, 20000), budget=budget, kv_heads=2, sinks=0, recent=0, own_tokens=own) for own in (False, True))
    plans = [(c, plan) for c, clusters in ((shared, (16, 10, 8, 6, 3)), (own, (8, 6, 4)))
             for plan in (paged.two_launches(c.shape()), *(paged.one_launch(c.shape(), n) for n in clusters))]
    plans.append((shared, paged.one_launch(shared.shape(), 5, paged.STEP_RING)))
    for case, plan in plans:
        assert plan.score_ctas > 1
        step = make(case)
        unit = 64 if plan.ring else 16
        tokens = {
            "window": torch.arange(7777, 7777 + budget),
            "start": torch.arange(budget),
            "stride": torch.arange(budget) * 64 + 3,
            "one CTA": torch.tensor([unit_of(k, 1, plan.score_ctas) * unit + i for k in range(budget // unit + 1) for i in range(unit)]),
            "two CTAs": torch.tensor([unit_of(k, r, plan.score_ctas) * unit + i for k in range(budget // 2 // unit + 1) for r in (0, 3)
                                      for i in range(unit)]),
        }[where].cuda()
        tokens = tokens[tokens < 19990]
        if where == "one CTA":
            assert len(tokens) > plan.slots, "overflows what a CTA publishes"
        for seq in range(2):
            plant(step, seq, seq, tokens)  # one row of each sequence is hot, the other is not
        check_run(step, plan, case.lengths)
        first = step.out.clone()
        step.run(plan)
        assert torch.equal(first, step.out)


def test_hot_tokens_per_query_head():
    case = Case(lengths=(20000,), budget=256, group=6, own_tokens=True, sinks=2, recent=2)
    step = make(case)
    plan = paged.plan(step.shape)
    tokens = torch.tensor([unit_of(k, 1, plan.score_ctas) * 16 + i for k in range(1, 20) for i in range(16)]).cuda()
    plant(step, 0, 1, tokens[tokens < 19900])
    check_run(step, plan, case.lengths)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", ["int8", "fp8", "bf16", "int4"])
def test_nan_and_inf_in_k(bad, index):
    """A bad key harms no output that does not keep it, and no other token's choice."""
    case = Case(lengths=(2000, 2000), index=index, kv_heads=2, group=2, budget=96)
    step = make(case)
    for token in (5, 300, 301, 1500):  # of sequence 0, head 0
        step.k[step.block_table[0, token // 16], 0, token % 16, ::3] = bad
    step.k_new[1, 0, 1, 7] = bad
    write_index(step, case)
    for plan in paged.plans(step.shape):
        step.run(plan)
        check_kept(step, case.lengths)
        kept = pick(step.k, step, step.kept.clamp(min=0).long(), torch.arange(2, device="cuda")[:, None]).float()
        keeps_bad = (~kept.isfinite()).any(-1).any(-1)[:, 0].repeat_interleave(2, 1)
        assert bool(keeps_bad.any() and not keeps_bad.all())
        want, _ = attend_f64(step, step.kept)
        assert bool(step.out[:, 0][~keeps_bad].isfinite().all())
        assert torch.allclose(step.out[:, 0][~keeps_bad].double(), want[:, 0][~keeps_bad], atol=0.03)
        if bad != bad:
            assert bool(step.out[:, 0][keeps_bad].isnan().all())


@pytest.mark.parametrize("own_tokens", [False, True])
def test_tokens_not_kept_do_not_count(own_tokens):
    case = Case(lengths=(1000,), budget=64, own_tokens=own_tokens)
    step = make(case)
    plans = [p for cluster in (1, 2, 3, 6, 8, 16) for p in paged.plans(step.shape, cluster)]
    good = []
    for plan in plans:
        step.run(plan)
        good.append(step.out.clone())
    kept = torch.zeros(case.kv_heads, 1000, dtype=torch.bool, device="cuda")
    kept.scatter_(1, step.kept[0, 0].long().view(case.kv_heads, -1), True)
    for head in range(case.kv_heads):
        tokens = (~kept[head]).nonzero()[:, 0]
        block = step.block_table[0].long()[tokens // 16]
        step.v[block, head, tokens % 16] = float("nan")
        step.k[block, head, tokens % 16] = float("nan")
    for plan, want in zip(plans, good):
        step.run(plan)
        assert torch.equal(want, step.out)


def test_bit_identical():
    for case in (Case(lengths=(9000, 50, 3000), budget=256), Case(lengths=(9000, 50), own_tokens=True, index="fp8"),
                 Case(lengths=(900,), kv=F8), Case(lengths=(20000,), budget=256, index="bf16")):
        step = make(case)
        for plan in paged.plans(step.shape):
            _, workspace = step.run(plan)
            first = [t.clone() for t in (step.out, step.lse, step.kept)]
            for i in range(20):
                workspace.fill_(i)
                for t in (step.out, step.lse, step.kept):
                    t.zero_()
                step.run(plan, workspace)
                assert all(torch.equal(a, b) for a, b in zip(first, (step.out, step.lse, step.kept)))


def test_two_streams():
    cases = [Case(lengths=(30000,), seed=3, budget=256), Case(lengths=(30000,), seed=4, own_tokens=True), Case(lengths=(30000,), seed=5)]
    steps = [make(c) for c in cases]
    plans = [paged.plan(steps[0].shape), paged.plan(steps[1].shape), paged.two_launches(steps[2].shape)]
    assert [p.path for p in plans] == [paged.ONE_LAUNCH, paged.ONE_LAUNCH, paged.FUSED]
    alone = []
    for step, plan in zip(steps, plans):
        step.run(plan)
        alone.append(step.out.clone())
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in steps]
    state = [(plan, None) for plan in plans]
    for _ in range(30):
        for i, step in enumerate(steps):
            with torch.cuda.stream(streams[i]):
                step.out.zero_()
                state[i] = step.run(*state[i])
    torch.cuda.synchronize()
    for step, want in zip(steps, alone):
        assert torch.equal(step.out, want)


@pytest.mark.parametrize("launches", [1, 2])
@pytest.mark.parametrize("own_tokens", [False, True])
@pytest.mark.parametrize("kv", [BF16, F8])
def test_graph_replay_with_other_lengths(own_tokens, kv, launches):
    """What a graph captured at one length computes at others: as a fresh launch does."""
    case = Case(lengths=(4000, 4000, 4000), budget=64, own_tokens=own_tokens, kv=kv)
    step = make(case)
    plan = paged.plan(step.shape) if launches == 1 else paged.two_launches(step.shape)
    _, workspace = step.run(plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2):  # the second step appends the same token again
            step.run(plan, workspace)
    g = torch.Generator("cuda").manual_seed(9)
    for lengths in ((1, 64, 4000), (0, 65, 2222), (3999, 17, 2)):
        step.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        for t in (step.q, step.k_new, step.v_new):
            t.copy_(torch.randn(t.shape, generator=g, device="cuda"))
        write_index(step, dataclasses.replace(case, lengths=lengths))
        graph.replay()
        torch.cuda.synchronize()
        check_kept(step, lengths)
        check_out(step)
        replayed = step.out.clone()
        step.run(plan)
        assert torch.equal(replayed, step.out)


@pytest.mark.parametrize("length,kv_heads", [((1 << 20) + 77, 1), (2300000, 8), (5000001, 1)])
def test_long_sequences(length, kv_heads):
    """Past 2^20 tokens, and past 2^32 bytes of K and V."""
    for own_tokens in (False, True):
        case = Case(lengths=(length, 40000), kv_heads=kv_heads, group=2, page=64, budget=256, query_tokens=2, own_tokens=own_tokens)
        step = make(case)
        if kv_heads == 8:
            assert step.k.numel() * 2 > 1 << 32
        plan = paged.plan(step.shape)
        assert plan.path == 0
        check_run(step, plan, case.lengths)
        del step
        torch.cuda.empty_cache()


def test_wrong_arguments_say_what_to_do():
    step = make(Case())
    with pytest.raises(paged.Failure, match="workspace of plan.workspace_bytes"):
        library.decode(step.args(), paged.two_launches(step.shape), None, paged.stream())
    library.decode(step.args(), paged.plan(step.shape), None, paged.stream())  # one launch needs none
    with pytest.raises(paged.Failure, match="the plan is for another shape"):
        library.decode(make(Case(own_tokens=True)).args(), paged.plan(step.shape), None, paged.stream())
    for change, message in ((dict(head_dim=80), "head_dim is 80; give 64"), (dict(page_size=300), "page_size is 300"),
                            (dict(budget=0), "budget is 0"), (dict(num_query_tokens=9), "give 1 to 8")):
        shape = Case().shape()
        for name, value in change.items():
            setattr(shape, name, value)
        with pytest.raises(paged.Failure, match=message):
            paged.plan(shape)
