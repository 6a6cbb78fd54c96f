"""Microseconds of one decode step of one layer of Llama-3.1-8B (32 query heads, 8 KV heads, head_dim 128, bf16) on a GPU.

    PYTHONPATH=bench/gpu python bench/gpu/decode_step.py --out rows.jsonl     # all rows
    ... --quick                                                               # a few shapes, 32 index bytes

A row is a whole step (append, score, select, attend) as launched by paged_decode_cuda, captured with others in one CUDA graph;
consecutive steps use other blocks of a pool far larger than L2, so nothing is warm. Peers run the same way in the same process:
torch's cuDNN attention over all tokens, a chain of torch operations (matmul over a packed index, topk, gather, attention), and
the chain of peers.py.
The floor is two launches that read the same bytes and do nothing. Every row's result is checked before it is timed.
"""

import argparse
import json
import subprocess

import torch

import paged
import paged_check
from paged import INDEX_TYPES, Shape, Step, library

Q_HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 64
K = 1024
SHAPES = [(b, c * K) for b in (1, 4, 16, 64) for c in (8, 32, 128, 512) if b * c <= 8192]


def timed(launch, sets, replays=15):
    """Median, p10, p90 in us of launch(i), i in range(sets), captured in one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # for what launch reads
    with torch.cuda.stream(stream):
        for i in range(min(sets, 3)):
            launch(i)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(sets):
                launch(i)
        times = []
        for replay in range(replays + 3):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record(stream)
            graph.replay()
            events[1].record(stream)
            stream.synchronize()
            if replay >= 3:
                times.append(events[0].elapsed_time(events[1]) * 1e3 / sets)
    times.sort()
    return times[len(times) // 2], times[len(times) // 10], times[len(times) * 9 // 10]


class Pool:
    """Blocks of K, V and index that all steps share; a step's tokens lie in random ones."""

    def __init__(self, tokens, kind, dims, page=PAGE):
        self.blocks, self.page = tokens // page, page
        self.kind, self.dims_count = kind, dims
        g = torch.Generator("cuda").manual_seed(7)
        shape = self.shape(1, page, 1, False)
        self.k, self.v, self.index = paged.make_caches(shape, self.blocks, "contiguous", torch.bfloat16)
        for part in (*self.k.split(4096), *self.v.split(4096)):
            part.normal_(generator=g)
        self.q = torch.randn(128, 64, 1, Q_HEADS, DIM, generator=g, device="cuda").bfloat16()
        self.new = torch.randn(2, 64, 1, KV_HEADS, DIM, generator=g, device="cuda").bfloat16()
        self.order = torch.randperm(self.blocks, generator=g, device="cuda").int()
        self.set_index(kind, dims)

    def shape(self, batch, context, budget, own_tokens):
        return Shape(batch, 1, Q_HEADS, KV_HEADS, DIM, self.page, 0, INDEX_TYPES[self.kind], self.dims_count, False, own_tokens, budget, 0,
                     0, context)

    def set_index(self, kind, dims):
        self.kind, self.dims_count = kind, dims
        shape = self.shape(1, self.page, 1, False)
        self.index = torch.zeros(self.blocks, KV_HEADS, self.page, shape.index_row_bytes, dtype=torch.uint8, device="cuda")
        fcs = torch.stack([torch.randperm(DIM // 2)[:dims // 2] for _ in range(KV_HEADS)])
        self.dims = torch.stack([fcs, fcs + DIM // 2], -1).flatten(1).short().cuda()
        self.scale = torch.full((KV_HEADS, dims), 3.0 / {"int8": 127, "fp8": 448, "int4": 7}[kind], device="cuda")
        for slots in torch.arange(self.blocks * self.page, device="cuda").split(1 << 20):
            args = paged.IndexArgs(shape, paged.cache(self.k), paged.cache(self.index), slots.data_ptr(), slots.numel(),
                                   self.dims.data_ptr(), self.scale.data_ptr())
            library.write_index(args, paged.stream())

    def sets(self, batch, context):
        return max(1, min(128, self.blocks * self.page // (batch * context)))

    def step(self, i, batch, context, budget, own_tokens=False, checked=False):
        pages = context // self.page
        table = self.order[i * batch * pages:(i + 1) * batch * pages].view(batch, pages)
        lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        return Step(self.shape(batch, context, budget, own_tokens), self.q[i, :batch], self.k, self.v, self.index, table, lengths,
                    self.dims, self.scale, self.new[0, :batch], self.new[1, :batch], want_lse=checked, want_kept=checked)


def check(pool, batch, context, budget, own_tokens, plan):
    """The first step's result, for at most 4 sequences (every CTA runs; the others differ by data alone)."""
    step = pool.step(0, batch, context, budget, own_tokens, checked=True)
    step.run(plan)
    n = min(batch, 4)
    part = Step.__new__(Step)
    part.__dict__.update(step.__dict__)
    part.shape = pool.shape(n, context, budget, own_tokens)
    for name in ("q", "out", "lse", "kept", "block_table"):
        setattr(part, name, getattr(step, name)[:n])
    paged_check.check_kept(part, [context] * n)
    paged_check.check_out(part)


def time_step(pool, batch, context, budget, own_tokens=False, plan=None):
    sets = pool.sets(batch, context)
    steps = [pool.step(i, batch, context, budget, own_tokens) for i in range(sets)]
    plan = plan or paged.plan(steps[0].shape)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
    return timed(lambda i: steps[i].run(plan, workspace), sets)


def time_floor(pool, batch, context, budget, num_sets=KV_HEADS):
    """The index of the tokens, contiguous, and budget rows of each set, random."""
    sets = pool.sets(batch, context)
    row = pool.index.shape[-1]
    size = batch * context * KV_HEADS * row
    sink = torch.zeros(4, dtype=torch.int32, device="cuda")
    count = batch * num_sets * budget
    rows = torch.randint(pool.blocks * pool.page * KV_HEADS, (sets, count), device="cuda")
    raw = library.library

    def launch(i, ctas):
        raw.fasa_floor_read(paged.POINTER(pool.index.data_ptr() + i * size), paged.I64(size), paged.POINTER(sink.data_ptr()), ctas,
                            paged.stream())
        raw.fasa_floor_gather(paged.POINTER(pool.k.data_ptr()), paged.POINTER(pool.v.data_ptr()), paged.POINTER(rows[i].data_ptr()),
                              paged.I64(count), paged.POINTER(sink.data_ptr()), paged.stream())

    most = -(-size // (512 * 8 * 16))
    choices = {min(most, c) for c in (132, 264, 396, 528, 1056, 2112, 8448)}
    return min(timed(lambda i, c=c: launch(i, c), sets, 7)[0] for c in choices)


def time_bandwidth(pool):
    """GB/s of one plain read of 2 GB."""
    sink = torch.zeros(4, dtype=torch.int32, device="cuda")
    size = 1 << 31
    read = lambda i: library.library.fasa_floor_read(paged.POINTER(pool.k.data_ptr() + i * size), paged.I64(size),
                                                     paged.POINTER(sink.data_ptr()), 1056, paged.stream())
    return size / timed(read, 4, 9)[0] / 1e3


def time_dense(pool, batch, context):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    sets = pool.sets(batch, context)
    views = [pool.k.view(-1)[:sets * batch * context * KV_HEADS * DIM].view(sets, batch, KV_HEADS, context, DIM),
             pool.v.view(-1)[:sets * batch * context * KV_HEADS * DIM].view(sets, batch, KV_HEADS, context, DIM)]
    q = pool.q[:, :batch].transpose(2, 3)

    def launch(i):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q[i], views[0][i], views[1][i], enable_gqa=True)

    return timed(launch, sets, 7)


def time_chain(pool, batch, context, budget):
    """The same choice out of torch operations over contiguous caches: bf16 index of 32 dims, no append."""
    sets = min(pool.sets(batch, context), 32)
    size = sets * batch * context * KV_HEADS
    k, v = (t.view(-1)[:size * DIM].view(sets, batch, KV_HEADS, context, DIM) for t in (pool.k, pool.v))
    index = pool.k.view(-1)[-size * 32:].view(sets, batch, KV_HEADS, context, 32)
    dims = pool.dims[:, :32].long()
    if dims.shape[1] < 32:
        dims = dims.repeat(1, 2)
    gather = dims[None, :, None].expand(batch, KV_HEADS, 4, 32)

    def launch(i):
        q = pool.q[i, :batch].view(batch, KV_HEADS, 4, DIM)
        scores = torch.matmul(index[i], q.gather(3, gather).transpose(2, 3)).amax(3)
        kept = scores.topk(budget, -1, sorted=False).indices[..., None].expand(-1, -1, -1, DIM)
        torch.nn.functional.scaled_dot_product_attention(q, k[i].gather(2, kept), v[i].gather(2, kept))

    return timed(launch, sets, 7)


def time_select(rows, tokens, budget, clustered):
    sets = max(2, (1 << 29) // (rows * tokens * 4))
    sets = min(sets, 64)
    g = torch.Generator("cuda").manual_seed(3)
    scores = torch.randn(sets, rows, tokens, generator=g, device="cuda")
    if clustered:
        scores.mul_(0.5).add_(20)
    kept = torch.empty(rows, budget, dtype=torch.int32, device="cuda")
    args = [paged.SelectArgs(s.data_ptr(), tokens, rows, tokens, budget, kept.data_ptr()) for s in scores]
    plan = paged.SelectPlan()
    library.select_plan(args[0], paged.device(), plan)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")

    def launch(i):
        library.select(args[i], plan, paged.POINTER(workspace.data_ptr()), paged.stream())

    launch(0)
    got = scores[0].gather(1, kept.long()).sort(1, descending=True).values
    assert torch.equal(got, scores[0].topk(budget, 1).values)
    sink = torch.zeros(4, dtype=torch.int32, device="cuda")
    read = lambda i, c: library.library.fasa_floor_read(paged.POINTER(scores[i].data_ptr()), paged.I64(rows * tokens * 4),
                                                        paged.POINTER(sink.data_ptr()), c, paged.stream())
    floor = min(timed(lambda i, c=c: read(i, c), sets, 7)[0] for c in (128, 256, 528, 1056))
    return timed(launch, sets), floor, timed(lambda i: scores[i].topk(budget, 1, sorted=False), sets, 7)[0]


class Rows:
    def __init__(self, path, bandwidth, commit):
        command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
        driver, self.gpu = subprocess.run(command, capture_output=True, text=True).stdout.strip().split(", ")
        commit = commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        self.common = dict(bandwidth_gbs=round(bandwidth), torch=torch.__version__, driver=driver, commit=commit, gpu=self.gpu)
        self.file = open(path, "w") if path else None

    def add(self, times, **row):
        row = {**row, **dict(zip(("us", "us_p10", "us_p90"), (round(t, 2) for t in times))), **self.common}
        if self.file:
            print(json.dumps(row), file=self.file, flush=True)


def bench_select(rows):
    for count in (8, 128):
        for budget in (256, 1024, 2048):
            for clustered in (False, True):
                times, floor, topk = time_select(count, 128 * K, budget, clustered)
                kind = "clustered" if clustered else "normal"
                rows.add(times, op="select", impl="fasa", dtype="f32", batch=count, context=128 * K, budget=budget, scores=kind,
                         bytes=count * 128 * K * 4, floor_us=round(floor, 2), torch_topk_us=round(topk, 2))
                print(f"select {count}x128K {budget} {kind}: {times[0]:.2f} floor {floor:.2f} torch.topk {topk:.1f}", flush=True)


def bench_fasa(pool, rows, batch, context, budget, own_tokens, dense_us):
    shape = pool.shape(batch, context, budget, own_tokens)
    floor = time_floor(pool, batch, context, budget, Q_HEADS if own_tokens else KV_HEADS)
    plan = paged.plan(shape)
    check(pool, batch, context, budget, own_tokens, plan)
    times = time_step(pool, batch, context, budget, own_tokens)
    size = paged.I64()
    library.bytes(shape, (paged.I32 * batch)(*[context] * batch), paged.ctypes.byref(size))
    sharing = "query_head" if own_tokens else "kv_group"
    rows.add(times, op="decode_step", impl="fasa", dtype="bf16", index_dtype=pool.kind, index_bytes_per_token=shape.index_row_bytes,
             sharing=sharing, batch=batch, context=context, budget=budget, page_size=pool.page, bytes=size.value,
             floor_us=round(floor, 2), dense_us=round(dense_us, 2))
    print(f"{pool.kind} {shape.index_row_bytes} B pages of {pool.page} {batch:2}x{context // K:<3}K budget {budget:4} {sharing:10}"
          f" {times[0]:8.2f} [{times[1]:.2f}, {times[2]:.2f}] floor {floor:7.2f} 1.2x+5 {1.2 * floor + 5:7.2f} dense {dense_us:8.1f}"
          f" plan {plan.path} {plan.score_ctas},{plan.cluster}", flush=True)


def bench_chain(pool, rows, shapes):
    import peers  # it wants Triton
    for batch, context in ((1, 8 * K), (1, 32 * K), (1, 128 * K), (4, 128 * K), (16, 32 * K)):
        times = time_chain(pool, batch, context, 256)
        rows.add(times, op="decode_step", impl="torch_chain", dtype="bf16", index_dtype="bf16", index_bytes_per_token=64,
                 sharing="kv_group", batch=batch, context=context, budget=256)
        print(f"torch chain {batch}x{context // K}K {times[0]:.1f}", flush=True)
    peers.bench(timed, pool, rows, shapes)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--commit", help="what the rows say; default: git's HEAD")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    tokens = (4096 if options.quick else 8192) * K
    pool = Pool(tokens, "int8", 32)
    rows = Rows(options.out, time_bandwidth(pool), options.commit)
    print(rows.gpu, rows.common, flush=True)
    bench_select(rows)
    shapes = [s for s in SHAPES if s[0] * s[1] <= 2048 * K] if options.quick else SHAPES
    dense = {}
    for batch, context in shapes:
        times = time_dense(pool, batch, context)
        dense[batch, context] = times[0]
        rows.add(times, op="decode_step", impl="cudnn_sdpa", dtype="bf16", batch=batch, context=context)
    def bench(budgets, own_tokens):
        for budget in budgets:
            for batch, context in shapes:
                bench_fasa(pool, rows, batch, context, budget, own_tokens, dense[batch, context])

    bench((256, 1024, 2048), False)
    for kind, dims in (("fp8", 32), ("fp8", 16), ("int4", 32)):
        pool.set_index(kind, dims)
        bench((256,), False)
    pool.set_index("int8", 32)
    bench((256, 1024, 2048), True)
    bench_chain(pool, rows, shapes)
    pool = None  # there is no room for two
    torch.cuda.empty_cache()
    pool = Pool(tokens, "int8", 32, page=16)  # vLLM's default
    bench((256,), False)


if __name__ == "__main__":
    main()
