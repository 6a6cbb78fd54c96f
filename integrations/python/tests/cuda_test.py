"""What only a GPU can show: graphs, streams, no waiting."""

import pytest
import torch

import fasa
from cases import make


def test_a_captured_step_replays_with_other_lengths():
    case = make("cuda", lengths=(150, 140, 145))
    options = {"budget": 40, "k_new": case.k_new, "v_new": case.v_new, "max_length": 160}
    out = torch.empty_like(case.q)
    case.decode(**options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.decode(out=out, **options)
    for lengths in ([150, 140, 145], [20, 0, 97], [160, 1, 2]):
        case.lengths.copy_(torch.tensor(lengths))
        graph.replay()
        assert torch.equal(out, case.decode(**options))


def test_nothing_waits_for_the_gpu():
    case = make("cuda")
    slots = torch.arange(32, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)  # some tenths of a second
        case.decode(budget=40, k_new=case.k_new, v_new=case.v_new, return_lse=True, return_kept=True)
        fasa.paged.write_index(case.k_cache, case.index, slots, case.dims, case.scale)
        assert not torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_current_stream():
    case = make("cuda")
    expected = case.decode(budget=40)
    q = torch.zeros_like(case.q)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        q.copy_(case.q)
        out = fasa.paged.decode(q, *case.tensors[1:], budget=40)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("share_tokens", [False, True])
def test_the_cpu_agrees(share_tokens):
    cpu, gpu = make("cpu"), make("cuda")
    for name in ("k_cache", "v_cache"):
        getattr(gpu, name).copy_(getattr(cpu, name))
    for name in ("q", "block_table", "dims", "scale"):
        setattr(gpu, name, getattr(cpu, name).cuda())
    cpu.fill_index()
    gpu.fill_index()
    assert torch.equal(cpu.index, gpu.index.cpu())
    ours, theirs = (case.decode(budget=40, share_tokens=share_tokens, return_kept=True) for case in (gpu, cpu))
    assert torch.equal(ours.kept.sort(-1).values.cpu(), theirs.kept.sort(-1).values)
    assert torch.allclose(ours.out.cpu().float(), theirs.out.float(), atol=2**-7, rtol=2**-7)


def test_tensors_of_two_devices_are_refused():
    case = make("cuda")
    with pytest.raises(RuntimeError, match="lengths is on another device"):
        fasa.paged.decode(*case.tensors[:5], case.lengths.cpu(), case.dims, case.scale, budget=40)
