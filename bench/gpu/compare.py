"""Builds of the GPU library, or plans, against each other: microseconds of one decode step, in turn in one process.

    PYTHONPATH=bench/gpu python bench/gpu/compare.py --shapes 1x128x256,4x32x256 old=old.so new=build/cuda/lib/libfasa_paged_c.so
    ... new=LIBRARY pairs=LIBRARY:cluster=2 ring=LIBRARY:cluster=9:ring=4 late=LIBRARY:lead=4000 two=LIBRARY:launches=2:ctas=32:cluster=8
    ... new=LIBRARY short=LIBRARY:cluster=2:keys=2                          # keys of 16 bits
    ... --sweep 8 new=LIBRARY                                               # the 8 fastest of all plans

A shape is sequences x K tokens x budget. Machines of the same kind differ, and so do runs: compare what one run prints. Without
cluster= a build takes its own plan; lead= is PagedPlan's lead_ns. Results are checked before they are timed (not those of --sweep).
"""

import argparse
import os


def parse_variant(text):
    name, rest = text.split("=", 1)
    path, *settings = rest.split(":")
    return name, path, {key: int(value) for key, value in (s.split("=") for s in settings)}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", type=parse_variant, metavar="NAME=LIBRARY[:SETTING=VALUE...]")
    parser.add_argument("--shapes", default="1x8x256,1x32x256,1x128x256,4x32x256,16x8x256,16x32x256,64x8x256")
    parser.add_argument("--index", default="int8:32", help="type and dims (int8:32)")
    parser.add_argument("--per-query-head", action="store_true", help="each query head chooses its own tokens")
    parser.add_argument("--sweep", type=int, metavar="COUNT", help="of the first build, the fastest plans of each shape beside its own")
    parser.add_argument("--turns", type=int, default=3, help="of which the median is printed (3)")
    parser.add_argument("--pool", type=int, default=4096, help="K tokens that all steps share (4096: 17 GB)")
    return parser.parse_args()


def plan_of(paged, shape, settings):
    plan = paged.plan(shape)
    if "cluster" in settings:
        plan.cluster = settings["cluster"]
        two = settings.get("launches", 1) == 2
        plan.path = paged.FUSED if two else paged.ONE_LAUNCH
        plan.score_ctas = settings["ctas"] if two else plan.cluster
        plan.ring = settings.get("ring", 0)
        plan.key_bytes = settings.get("keys", 4)
        plan.lead_ns = 0
        paged.library.complete_plan(shape, plan)
    if "lead" in settings:
        plan.lead_ctas = paged.device().num_sms // plan.cluster * plan.cluster
        plan.lead_ns = settings["lead"]
    return plan


def sweep(paged, shape, time, count):
    """The time of the library's own plan, and the fastest of the others by how they would be asked for."""
    every = [dict(cluster=c, ring=r) for r in (0, paged.STEP_RING) for c in range(1, 17) if paged.one_launch(shape, c, r)]
    every += [dict(launches=2, ctas=2**i, cluster=c) for i in range(7) for c in range(1, 9)]
    found = []
    for settings in every:
        plan = plan_of(paged, shape, settings)
        fits = settings.get("launches") is None or max(plan.score_smem, plan.attend_smem) <= 227 * 1024
        if fits and max(plan.score_rows * plan.score_ctas, plan.attend_rows * plan.cluster) <= 2112:  # eight waves, two CTAs an SM
            found.append((time(plan), ":".join(f"{key}={value}" for key, value in settings.items() if value)))
    own = paged.plan(shape)
    kind = {paged.ONE_LAUNCH: "one launch", paged.FUSED: "two launches"}.get(own.path, "four launches")
    print(f"own ({kind}, ctas {own.score_ctas}, cluster {own.cluster}, ring {own.ring}, lead {own.lead_ns}) {time(own):.2f} | "
          + "  ".join(f"{name} {us:.2f}" for us, name in sorted(found)[:count]), flush=True)


def main():
    options = parse()
    os.environ.setdefault("FASA_PAGED_LIBRARY", options.variants[0][1])  # for the import
    import torch

    import decode_step
    import paged
    import paged_check
    libraries = {}
    for _, path, _ in options.variants:
        os.environ["FASA_PAGED_LIBRARY"] = path
        libraries.setdefault(path, paged.Library())

    kind, dims = options.index.split(":")
    pool = decode_step.Pool(options.pool * 1024, kind, int(dims))
    print(torch.cuda.get_device_name(), flush=True)
    for text in options.shapes.split(","):
        batch, context, budget = (int(x) for x in text.split("x"))
        context *= 1024
        shape = pool.shape(batch, context, budget, options.per_query_head)
        if options.sweep:
            print(text, end=": ")
            sweep(paged, shape, lambda plan: decode_step.time_step(pool, batch, context, budget, options.per_query_head, plan)[0],
                  options.sweep)
            continue
        times = {name: [] for name, *_ in options.variants}
        for turn in range(options.turns):
            for name, path, settings in options.variants:
                for module in (paged, paged_check, decode_step):
                    module.library = libraries[path]
                plan = plan_of(paged, shape, settings)
                if turn == 0:
                    decode_step.check(pool, batch, context, budget, options.per_query_head, plan)
                times[name].append(decode_step.time_step(pool, batch, context, budget, options.per_query_head, plan)[0])
        medians = {name: sorted(us)[len(us) // 2] for name, us in times.items()}
        print(f"{text}: " + "  ".join(f"{name} {us:.2f}" for name, us in medians.items()), flush=True)


if __name__ == "__main__":
    main()
