"""The best chain of today's parts for the step of decode_step.py: scores by Triton, top-k by FlashInfer, attention by Triton.

    pip install flashinfer-python==0.7.2.post1
    PYTHONPATH=bench/gpu python bench/gpu/peers.py --out rows.jsonl       # every shape, the times of every part
    ... --quick                                                           # shapes to 2M tokens in all

The KV group of a sequence is a row: its tokens' fp8 index [row, token, 32], K and V [row, token, 128] are contiguous, and nothing
is appended; both favour the chain. The chain takes the fastest choices for each shape, with programmatic launches where they help.
"""

import argparse
import itertools
import math

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

GROUP, KV_HEADS, DIM, DIMS = (tl.constexpr(n) for n in (4, 8, 128, 32))
SCORE_CHOICES = [(128, 1, 4, False), (256, 1, 4, False), (512, 1, 4, False), (512, 1, 8, False), (256, 4, 4, False),
                 (512, 4, 4, False), (256, 16, 4, False),
                 (128, 1, 4, True), (256, 1, 4, True), (256, 4, 4, True), (256, 16, 4, True)]  # block, blocks a CTA, warps, flip
ATTEND_CHOICES = [(1, 8), (2, 8), (2, 4), (4, 4), (8, 4), (8, 8), (16, 4), (16, 8), (32, 4), (32, 8)]  # splits, warps
K = 1024
LARGE = [(1, 128 * K), (4, 32 * K), (16, 32 * K), (64, 8 * K)]  # shapes that have rows of budget 2048 as well


@triton.jit
def score_kernel(q, dims, index, scores, context, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, FLIP: tl.constexpr, PDL: tl.constexpr):
    """A token's score: the largest of the group's heads. tl.dot wants 16 rows, so each head is there four times."""
    row = tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    heads, d = tl.arange(0, 16) % GROUP, tl.arange(0, DIMS)
    tokens = row * context + tl.program_id(0) * (BLOCK * BLOCKS) + tl.arange(0, BLOCK)
    if BLOCKS == 1:  # ahead of the query's two loads, one of which waits for the other
        x = tl.load(index + tokens[:, None] * DIMS + d[None, :])
    taken = tl.load(dims + row % KV_HEADS * DIMS + d)
    query = tl.load(q + (row * GROUP + heads[:, None]) * DIM + taken[None, :]).to(tl.float16)  # fp8 has one instruction to fp16
    for block in range(BLOCKS):
        at = tokens + block * BLOCK
        if BLOCKS > 1:
            x = tl.load(index + at[:, None] * DIMS + d[None, :])
        if FLIP:
            best = tl.max(tl.dot(x.to(tl.float16), tl.trans(query)), 1)
        else:
            best = tl.max(tl.dot(query, tl.trans(x.to(tl.float16))), 0)
        tl.store(scores + at, best)


@triton.jit
def attend_kernel(q, k, v, kept, out, partial, tops, sums, done, context, scale, COUNT: tl.constexpr, SPLITS: tl.constexpr,
                  PDL: tl.constexpr):
    """COUNT kept tokens of a row; the row's last CTA combines what all wrote, which saves a launch."""
    split, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    h, d = tl.arange(0, 16), tl.arange(0, DIM)
    tokens = row * context + tl.load(kept + (row * SPLITS + split) * COUNT + tl.arange(0, COUNT))
    keys = tl.load(k + tokens[:, None] * DIM + d[None, :])
    values = tl.load(v + tokens[:, None] * DIM + d[None, :])
    query = tl.load(q + (row * GROUP + h % GROUP)[:, None] * DIM + d[None, :])
    s = tl.dot(query, tl.trans(keys)) * scale
    top = tl.max(s, 1)
    p = tl.exp2(s - top[:, None])
    total = tl.sum(p, 1)
    o = tl.dot(p.to(tl.bfloat16), values)
    if SPLITS == 1:
        tl.store(out + (row * GROUP + h)[:, None] * DIM + d[None, :], (o / total[:, None]).to(tl.bfloat16), mask=(h < GROUP)[:, None])
    else:
        at = (row * SPLITS + split) * GROUP + h
        tl.store(partial + at[:, None] * DIM + d[None, :], o, mask=(h < GROUP)[:, None])
        tl.store(tops + at, top, mask=h < GROUP)
        tl.store(sums + at, total, mask=h < GROUP)
        tl.debug_barrier()  # the atomic is one thread's
        if tl.atomic_add(done + row, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(done + row, 0)
            heads = tl.arange(0, GROUP)
            every = (row * SPLITS + tl.arange(0, SPLITS))[:, None] * GROUP + heads[None, :]
            weight = tl.load(tops + every, cache_modifier=".cg")
            weight = tl.exp2(weight - tl.max(weight, 0)[None, :])
            weight /= tl.sum(weight * tl.load(sums + every, cache_modifier=".cg"), 0)[None, :]
            parts = tl.load(partial + every[:, :, None] * DIM + d[None, None, :], cache_modifier=".cg")
            mean = tl.sum(weight[:, :, None] * parts, 0)
            tl.store(out + (row * GROUP + heads)[:, None] * DIM + d[None, :], mean.to(tl.bfloat16))


def selects(scores, budget):
    """By name, functions that return the indices [row, budget] of the largest of scores [row, token]; and whether FlashInfer is there."""
    found = {"torch": lambda: scores.topk(budget, 1, sorted=False).indices}
    try:
        import flashinfer
        from flashinfer.topk import get_num_cached_for_topk, get_topk_module
    except ImportError:
        return found, False
    rows, tokens = scores.shape
    spare = torch.empty(rows, 4 * tokens, dtype=torch.int32, device=scores.device)
    states = torch.zeros(1 << 20, dtype=torch.uint8, device=scores.device)
    module, cached = get_topk_module(), get_num_cached_for_topk(scores.device, budget)

    def clusters(size, pdl):  # top_k takes these on sm_100 alone; they run on sm_90, and keep no state that a graph would break
        indices = torch.full((rows, budget), -1, dtype=torch.int32, device=scores.device)

        def select():
            module.fast_topk_clusters_exact(scores, indices, None, None, spare, budget, cached, size, pdl)
            return indices

        return select

    found["top_k"] = lambda: flashinfer.top_k(scores, budget, sorted=False, dsa_graph_safe=True)[1]
    for safe in (False, True):  # by its heuristic, by its filter
        found["filtered" if safe else "radix"] = lambda safe=safe: module.radix_topk(scores, budget, False, False, 0, states, None, safe)
    for size in (1, 2, 4, 8):
        for pdl in (False, True):
            found[f"clusters{size}" + "_pdl" * pdl] = clusters(size, pdl)
    return found, True


def is_right(scores, budget, kept):
    kept = kept.long().sort(1).values
    if kept[:, 0].min() < 0 or kept[:, -1].max() >= scores.shape[1] or kept.diff(dim=1).min() < 1:
        return False
    return torch.equal(scores.gather(1, kept).sort(1, descending=True).values, scores.topk(budget, 1).values)


def attend_choices(budget):
    """A CTA has all its rows of K and V in registers at once: 16, a tile of tl.dot, to 32 a warp."""
    return [(splits, warps) for splits, warps in ATTEND_CHOICES if 16 <= budget // splits <= 32 * warps]


class Chain:
    def __init__(self, pool, batch, context, budget):
        self.sets, self.rows, self.context, self.budget = pool.sets(batch, context), batch * KV_HEADS.value, context, budget
        size = self.sets * self.rows * context
        self.k, self.v = (t.view(-1)[:size * DIM.value].view(self.sets, self.rows, context, DIM.value) for t in (pool.k, pool.v))
        self.q = pool.q[:self.sets, :batch]  # its rows of a set are contiguous
        device = self.k.device
        dims = pool.dims[:, :DIMS.value].long()
        self.dims = (dims.repeat(1, DIMS.value // dims.shape[1])).contiguous()
        self.index = torch.empty(self.sets, self.rows, context, DIMS.value, dtype=torch.float8_e4m3fn, device=device)
        for i in range(self.sets):
            for j in range(0, self.rows, KV_HEADS.value):
                part = slice(j, j + KV_HEADS.value)
                self.index[i, part] = self.k[i, part].gather(2, self.dims[:, None].expand(-1, context, -1)).to(self.index.dtype)
        self.scores = torch.empty(self.rows, context, device=device)
        self.out = torch.empty(self.rows, GROUP.value, DIM.value, dtype=torch.bfloat16, device=device)
        most = max(splits for splits, warps in attend_choices(budget))
        self.partial = torch.empty(self.rows, most, GROUP.value, DIM.value, device=device)
        self.tops, self.sums = (torch.empty(self.rows, most, GROUP.value, device=device) for _ in range(2))
        self.done = torch.zeros(self.rows, dtype=torch.int32, device=device)

    def score(self, i, choice, pdl):
        block, blocks, warps, flip = choice
        grid = (self.context // (block * blocks), self.rows)
        score_kernel[grid](self.q[i], self.dims, self.index[i], self.scores, self.context, block, blocks, flip, pdl, num_warps=warps,
                           launch_pdl=pdl)

    def attend(self, i, kept, choice, pdl):
        splits, warps = choice
        attend_kernel[splits, self.rows](self.q[i], self.k[i], self.v[i], kept, self.out, self.partial, self.tops, self.sums, self.done,
                                         self.context, math.log2(math.e) * DIM.value**-0.5, self.budget // splits, splits, pdl,
                                         num_warps=warps, launch_pdl=pdl)

    def run(self, i, score, select, attend, pdl):
        self.score(i, score, pdl)
        self.kept = select()
        self.attend(i, self.kept, attend, pdl)

    def check(self, i):
        """The last step, of set i: the first sequence's scores, every row's tokens and result."""
        q = self.q[i].reshape(self.rows, GROUP.value, DIM.value).float()
        n = KV_HEADS.value
        taken = q[:n].gather(2, self.dims[:, None].expand(-1, GROUP.value, -1))
        torch.testing.assert_close(self.scores[:n], (self.index[i, :n].float() @ taken.mT).amax(2), rtol=1e-3, atol=1e-3)
        assert is_right(self.scores, self.budget, self.kept)
        kept = self.kept.long()[..., None].expand(-1, -1, DIM.value)
        keys, values = (t[i].gather(1, kept).float() for t in (self.k, self.v))
        want = (q @ keys.mT * DIM.value**-0.5).softmax(2) @ values
        torch.testing.assert_close(self.out.float(), want, rtol=2e-2, atol=1e-2)


def time_best(timed, pool, batch, context, budget):
    """Times, name of the top-k, whether FlashInfer is there, and what each part takes alone."""
    chain = Chain(pool, batch, context, budget)
    alone = lambda launch, sets=chain.sets: timed(launch, sets, 7)[0]
    score_us = {c: alone(lambda i, c=c: chain.score(i, c, False)) for c in SCORE_CHOICES}
    chain.score(0, SCORE_CHOICES[0], False)
    found, flashinfer = selects(chain.scores, budget)
    for name in list(found):
        try:
            right = is_right(chain.scores, budget, found[name]())
        except RuntimeError as error:  # a shape that it does not take
            right = print(error)
        if not right:
            print(f"{batch}x{context // K}K: no {name}", flush=True)
            del found[name]
    select_us = {name: alone(lambda i, f=f: f(), 32) for name, f in found.items()}
    kept = found["torch"]()
    attend_us = {c: alone(lambda i, c=c: chain.attend(i, kept, c, False)) for c in attend_choices(budget)}
    best = lambda us, count: sorted(us, key=us.get)[:count]
    alike = [best({n: us for n, us in select_us.items() if n.endswith("_pdl") == pdl}, 2) for pdl in (False, True)]  # alone, pdl flatters
    whole = {}
    for score, name, attend, pdl in itertools.product(best(score_us, 2), sum(alike, []), best(attend_us, 2), (False, True)):
        whole[score, name, attend, pdl] = alone(lambda i: chain.run(i, score, found[name], attend, pdl))
    score, name, attend, pdl = min(whole, key=whole.get)
    launch = lambda i: chain.run(i, score, found[name], attend, pdl)
    launch(0)
    chain.check(0)
    times = timed(launch, chain.sets)
    chain.check(chain.sets - 1)  # the graph's last step
    parts = dict(score=score_us[score], score_choice=score, attend=attend_us[attend], attend_choice=attend, pdl=pdl, select=select_us)
    return times, name, flashinfer, parts


def bench(timed, pool, rows, shapes):
    for batch, context, budget in [(*s, 256) for s in shapes] + [(*s, 2048) for s in LARGE if s in shapes]:
        times, name, flashinfer, parts = time_best(timed, pool, batch, context, budget)
        impl = "triton_flashinfer" if flashinfer else "triton_torch_topk"
        rows.add(times, op="decode_step", impl=impl, dtype="bf16", index_dtype="fp8", index_bytes_per_token=32, sharing="kv_group",
                 batch=batch, context=context, budget=budget, topk=name)
        print(f"{impl} {batch}x{context // K}K {budget} {times[0]:.1f} {name} pdl {parts['pdl']} | score {parts['score']:.1f}"
              f" {parts['score_choice']} attend {parts['attend']:.1f} {parts['attend_choice']} | "
              + "  ".join(f"{n} {us:.1f}" for n, us in sorted(parts["select"].items(), key=lambda item: item[1])), flush=True)


def main():
    import decode_step
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--commit", help="what the rows say; default: git's HEAD")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    pool = decode_step.Pool((4096 if options.quick else 8192) * K, "int8", 32)
    rows = decode_step.Rows(options.out, decode_step.time_bandwidth(pool), options.commit)
    print(rows.gpu, rows.common, flush=True)
    bench(decode_step.timed, pool, rows, [s for s in decode_step.SHAPES if not options.quick or s[0] * s[1] <= 2048 * K])


if __name__ == "__main__":
    main()
