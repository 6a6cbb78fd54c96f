"""Selection alone on a GPU against torch.topk and the scalar reference.

Run by scripts/gpu_test. FASA_REDUCED=1: the few small cases that compute-sanitizer gets.
"""

import os

import pytest
import torch

import paged
from paged import library
from paged_check import unit_of

REDUCED = os.environ.get("FASA_REDUCED") == "1"


def plan_of(args):
    plan = paged.SelectPlan()
    library.select_plan(args, paged.device(), plan)
    return plan


def select(scores, budget):
    kept = torch.full((scores.shape[0], budget), -7, dtype=torch.int32, device="cuda")
    args = paged.SelectArgs(scores.data_ptr(), scores.stride(0), *scores.shape, budget, kept.data_ptr())
    plan = plan_of(args)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
    library.select(args, plan, paged.POINTER(workspace.data_ptr()), paged.stream())
    return kept


def check_select(scores, budget):
    kept = select(scores, budget).long().sort(1).values
    assert bool((kept[:, 1:] > kept[:, :-1]).all() and (kept >= 0).all())
    got = scores.gather(1, kept).sort(1, descending=True).values
    assert torch.equal(got, scores.topk(budget, 1).values), "the same scores as torch.topk, so ties are all that may differ"
    host = torch.empty_strided(scores.shape, scores.stride()).copy_(scores)
    out = torch.empty(scores.shape[0], budget, dtype=torch.int32)
    library.select_ref(paged.SelectArgs(host.data_ptr(), host.stride(0), *host.shape, budget, out.data_ptr()))
    assert torch.equal(host.gather(1, out.long()).sort(1, descending=True).values, got.cpu())


# The last two have CTAs with more scores than they hold: many for each, and one CTA a row.
SHAPES = [(3, 20000, 256), (8, 131072, 2048), (5, 999, 999), (40, 12345, 64), (2, 100000, 1), (128, 70000, 256), (270, 50001, 300)]


@pytest.mark.parametrize("kind", ["normal", "clustered", "ties", "equal", "hot window", "rising", "infinite", "tiny", "one CTA"])
def test_select(kind):
    for rows, tokens, budget in SHAPES[:1] + SHAPES[-1:] if REDUCED else SHAPES:
        g = torch.Generator("cuda").manual_seed(5)
        s = torch.randn(rows, (tokens + 3) // 4 * 4, generator=g, device="cuda")[:, :tokens]
        if kind == "clustered":
            s.mul_(0.5).add_(20)
        elif kind == "ties":
            s.copy_((s * 2).round())
        elif kind == "equal":
            s.fill_(-3.25)
        elif kind == "hot window":
            s[:, tokens // 3:tokens // 3 + budget] += 30
        elif kind == "rising":
            s.copy_(torch.arange(tokens, device="cuda") * 1e-3)
        elif kind == "infinite":
            s[:, ::7] = float("-inf")
            s[:, 5::501] = float("inf")
        elif kind == "tiny":
            s.mul_(1e-40)
        elif kind == "one CTA":
            ctas = plan_of(paged.SelectArgs(s.data_ptr(), s.stride(0), *s.shape, budget, s.data_ptr())).score_ctas
            hot = [unit_of(k, 0, ctas) * 16 + i for k in range(budget // 16 + 1) for i in range(16)]
            s[:, [t for t in hot if t < tokens]] += 50
        check_select(s, budget)


@pytest.mark.parametrize("rows, tokens", [(2, 4096), (270, 40000)])
def test_select_never_keeps_nan(rows, tokens):
    s = torch.full((rows, tokens), float("nan"), device="cuda")
    s[:, 100:300] = torch.randn(rows, 200, device="cuda")
    kept = select(s, 512)
    assert bool((kept[:, 200:] == -1).all())
    assert torch.equal(kept[:, :200].sort(1).values, torch.arange(100, 300, device="cuda", dtype=torch.int32).expand(rows, 200))
