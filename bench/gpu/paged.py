"""The paged operations of src/ops/paged/paged.h for tests and benchmarks: its structs, and caches as torch tensors."""

import ctypes
import os
import pathlib

import torch

KV_TYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float8_e4m3fn: 2}
INDEX_TYPES = {"bf16": 0, "fp8": 1, "int8": 2, "int4": 3}
I32, I64, F32, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Shape(ctypes.Structure):
    _fields_ = [(name, I32) for name in (
        "num_seqs", "num_query_tokens", "num_q_heads", "num_kv_heads", "head_dim", "page_size", "kv_type", "index_type",
        "index_dims", "fcs_per_query_head", "tokens_per_query_head", "budget", "sinks", "recent")] + [("max_length", I64)]

    @property
    def group(self):
        return self.num_q_heads // self.num_kv_heads

    @property
    def num_planes(self):
        return self.num_q_heads if self.fcs_per_query_head else self.num_kv_heads

    @property
    def num_sets(self):
        return self.num_q_heads if self.tokens_per_query_head else self.num_kv_heads

    @property
    def index_row_bytes(self):
        return self.index_dims * [4, 2, 2, 1][self.index_type] // 2


class Cache(ctypes.Structure):
    _fields_ = [("data", POINTER), ("block_stride", I64), ("head_stride", I64), ("token_stride", I64)]


class Rows(ctypes.Structure):
    _fields_ = [("data", POINTER), ("seq_stride", I64), ("token_stride", I64), ("head_stride", I64)]


class Args(ctypes.Structure):
    _fields_ = [("shape", Shape), ("q", Rows), ("k_new", Rows), ("v_new", Rows), ("k", Cache), ("v", Cache), ("index", Cache),
                ("block_table", POINTER), ("block_table_stride", I64), ("lengths", POINTER), ("dims", POINTER),
                ("index_scale", POINTER), ("scale", F32), ("softcap", F32), ("sink_logits", POINTER), ("out", Rows),
                ("lse", POINTER), ("kept", POINTER)]


class Device(ctypes.Structure):
    _fields_ = [("compute_capability", I32), ("num_sms", I32), ("clusters_alone", I32 * 16), ("clusters_paired", I32 * 16),
                ("memory_gbs", I32)]


class Plan(ctypes.Structure):
    _fields_ = [(name, I32) for name in (
        "path", "score_rows", "score_ctas", "score_iterations", "quota", "slots", "attend_rows", "cluster", "heads_per_row",
        "ring", "lead_ctas", "lead_ns", "attend_alone", "key_bytes")] + [
        (name, I64) for name in ("score_smem", "attend_smem", "workspace_bytes")]


class IndexArgs(ctypes.Structure):
    _fields_ = [("shape", Shape), ("k", Cache), ("index", Cache), ("slots", POINTER), ("num_slots", I64), ("dims", POINTER),
                ("index_scale", POINTER)]


class SelectArgs(ctypes.Structure):
    _fields_ = [("scores", POINTER), ("row_stride", I64), ("num_rows", I32), ("num_tokens", I32), ("budget", I32),
                ("kept", POINTER)]


class SelectPlan(ctypes.Structure):
    _fields_ = [(name, I32) for name in ("score_ctas", "score_iterations", "quota", "slots")] + [
        (name, I64) for name in ("score_smem", "select_smem", "workspace_bytes")]


class Failure(Exception):
    pass


class Library:
    """Each function raises Failure with the library's message."""

    def __init__(self):
        default = pathlib.Path(__file__).resolve().parents[2] / "build/cuda/lib/libfasa_paged_c.so"
        self.library = ctypes.CDLL(os.environ.get("FASA_PAGED_LIBRARY", str(default)))
        self.library.fasa_message.restype = ctypes.c_char_p
        sizes = (I64 * 7)()
        self.library.fasa_sizes(sizes)
        structs = (Shape, Args, Device, Plan, IndexArgs, SelectArgs, SelectPlan)
        assert list(sizes) == [ctypes.sizeof(s) for s in structs], "paged.py and paged.h differ"

    def __getattr__(self, name):
        function = getattr(self.library, "fasa_" + name)

        def call(*args):
            if function(*[ctypes.byref(a) if isinstance(a, ctypes.Structure) else a for a in args]) != 0:
                raise Failure(self.library.fasa_message().decode())

        setattr(self, name, call)
        return call


library = Library()


def device(ordinal=0):
    d = Device()
    library.device(ordinal, d)
    return d


def plan(shape, dev=None):
    p = Plan()
    library.plan(shape, dev or device(), p)
    return p


FUSED, GENERIC, ONE_LAUNCH = 0, 1, 2  # PagedPath


def two_launches(shape, score_ctas=0):
    """The plan with two launches also where paged_plan prefers one."""
    p = plan(shape)
    if p.path == GENERIC:
        return p
    if p.path == ONE_LAUNCH:
        p.path, p.score_ctas, p.cluster = FUSED, max(1, min(8, shape.max_length // 512)), min(8, p.cluster)
    p.score_ctas = score_ctas or p.score_ctas
    library.complete_plan(shape, p)
    return p


STEP_RING = 4  # paged_layout.h


def one_launch(shape, cluster, ring=0, key_bytes=4):
    """The step in one launch by clusters of this size; None where there is no kernel or not the memory for it. key_bytes: what the plan
    asks for (int4 keys of 32 dims have 2 in any case)."""
    p = plan(shape)
    most = 8 if shape.tokens_per_query_head else 16
    if p.path == GENERIC or cluster > most:
        return None
    if ring and (shape.head_dim != 128 or shape.num_q_heads > 4 * shape.num_kv_heads or shape.tokens_per_query_head):
        return None
    p.path, p.score_ctas, p.cluster, p.ring, p.key_bytes = ONE_LAUNCH, cluster, cluster, ring, key_bytes
    library.complete_plan(shape, p)
    fits = library.library.fasa_one_launch(ctypes.byref(shape), ctypes.byref(p)) and p.score_smem + p.attend_smem <= 227 * 1024
    return p if fits else None


def plans(shape, cluster=8):
    """The plan of a shape, and those that it was preferred to."""
    found = plan(shape)
    others = [two_launches(shape)] if found.path == ONE_LAUNCH else []
    if found.path != ONE_LAUNCH or found.cluster != cluster:
        others.append(one_launch(shape, cluster))
    others.append(one_launch(shape, max(1, cluster * 3 // 4), STEP_RING))  # of 1 to 12 CTAs
    if shape.index_type != INDEX_TYPES["int4"]:  # whose keys have 16 bits in any case, or never
        others += [p for p in (one_launch(shape, cluster, ring, key_bytes=2) for ring in (0, STEP_RING)) if p and p.key_bytes == 2]
    return [found, *filter(None, others)]


def stream():
    return POINTER(torch.cuda.current_stream().cuda_stream)


def pointer(tensor):
    return tensor.data_ptr() if tensor is not None else None


def rows(t):
    """t: [seqs, tokens, heads, head_dim]"""
    return Rows(t.data_ptr(), *[s * t.element_size() for s in t.stride()[:3]]) if t is not None else Rows()


def cache(t):
    """t: [blocks, heads, page_size, row]"""
    return Cache(t.data_ptr(), *[s * t.element_size() for s in t.stride()[:3]])


def make_caches(shape, num_blocks, layout, dtype, dev="cuda"):
    """Views K, V [blocks, kv_heads, page, head_dim] and index [blocks, planes, page, row bytes] of the layouts:
    contiguous  three tensors [blocks, heads, page, row]
    split       vLLM's [2, blocks, page, heads, head_dim], an index [blocks, page, planes, row]
    packed      vLLM's [blocks, heads, page, 2 * head_dim + index], the index at the end of the row of its KV head
    """
    s, page, size = shape, shape.page_size, dtype.itemsize
    if layout == "packed":
        planes = s.num_planes // s.num_kv_heads
        row = 2 * s.head_dim * size + (planes * s.index_row_bytes + 15) // 16 * 16
        raw = torch.zeros(num_blocks, s.num_kv_heads, page, row, dtype=torch.uint8, device=dev)
        width = s.head_dim * size
        k, v = raw[..., :width].view(dtype), raw[..., width:2 * width].view(dtype)
        tail = raw[..., 2 * width:2 * width + planes * s.index_row_bytes]
        assert planes == 1, "one plane a KV head"
        return k, v, tail
    if layout == "split":
        kv = torch.zeros(2, num_blocks, page, s.num_kv_heads, s.head_dim * size, dtype=torch.uint8, device=dev).view(dtype)
        index = torch.zeros(num_blocks, page, s.num_planes, s.index_row_bytes, dtype=torch.uint8, device=dev)
        return kv[0].transpose(1, 2), kv[1].transpose(1, 2), index.transpose(1, 2)
    shape_kv = (num_blocks, s.num_kv_heads, page, s.head_dim * size)
    k, v = (torch.zeros(shape_kv, dtype=torch.uint8, device=dev).view(dtype) for _ in range(2))
    return k, v, torch.zeros(num_blocks, s.num_planes, page, s.index_row_bytes, dtype=torch.uint8, device=dev)


def copy_into(to, tensor):
    """As bytes where elements are bytes: there are types that cannot be copied otherwise."""
    to.view(torch.uint8).copy_(tensor.view(torch.uint8)) if tensor.element_size() == 1 else to.copy_(tensor)


class Step:
    """Tensors of one decode step, all on one device; fields as in PagedArgs."""

    CACHES = ("k", "v", "index")

    def __init__(self, shape, q, k, v, index, block_table, lengths, dims, index_scale, k_new=None, v_new=None, scale=None,
                 softcap=0.0, sink_logits=None, want_lse=True, want_kept=True):
        self.shape, self.q, self.k, self.v, self.index = shape, q, k, v, index
        self.block_table, self.lengths, self.dims, self.index_scale = block_table, lengths, dims, index_scale
        self.k_new, self.v_new, self.sink_logits = k_new, v_new, sink_logits
        self.scale, self.softcap = scale or shape.head_dim**-0.5, softcap
        self.out = torch.full_like(q, float("nan"))
        leading = (shape.num_seqs, shape.num_query_tokens)
        self.lse = torch.full((*leading, shape.num_q_heads), float("nan"), device=q.device) if want_lse else None
        self.kept = torch.full((*leading, shape.num_sets, shape.budget), -7, dtype=torch.int32, device=q.device) if want_kept else None

    def args(self):
        return Args(self.shape, rows(self.q), rows(self.k_new), rows(self.v_new), cache(self.k), cache(self.v), cache(self.index),
                    pointer(self.block_table), self.block_table.stride(0), pointer(self.lengths), pointer(self.dims),
                    pointer(self.index_scale), self.scale, self.softcap, pointer(self.sink_logits), rows(self.out),
                    pointer(self.lse), pointer(self.kept))

    def to(self, dev):
        """A copy on another device, its caches of the same strides."""
        copy = object.__new__(Step)
        copy.__dict__.update(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, torch.Tensor):
                moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=dev)
                copy_into(moved, value)
                setattr(copy, name, moved)
        return copy

    def take_caches(self, other):
        for name in self.CACHES:
            copy_into(getattr(self, name), getattr(other, name))

    def cache_bytes(self):
        return [getattr(self, name).contiguous().view(torch.uint8).cpu() for name in self.CACHES]

    def run_ref(self):
        library.decode_ref(self.args())

    def run(self, step_plan=None, workspace=None):
        """Launches on the current stream; returns the plan and the workspace, to be passed again."""
        step_plan = step_plan or plan(self.shape)
        if workspace is None:
            workspace = torch.full((step_plan.workspace_bytes,), 0xA5, dtype=torch.uint8, device=self.q.device)
        library.decode(self.args(), step_plan, POINTER(workspace.data_ptr()), stream())
        return step_plan, workspace
