#!/usr/bin/env python3
"""Draws a FASA profile as a heatmap: layers and heads down, frequency chunks across."""
import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("picture")
    parser.add_argument("--criterion", default="energy")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit(3)  # `fasa inspect` says what to install
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(args.profile, encoding="utf-8") as file:
        profile = json.load(file)
    rows, ticks, labels = [], [], []
    for layer in profile["layers"]:
        heads = layer["measures"].get(args.criterion)
        if heads is None:
            continue
        ticks.append(len(rows) + (len(heads) - 1) / 2)
        labels.append(layer["layer"])
        for head in heads:
            top = max(head) or 1
            rows.append([value / top for value in head])
    if not rows:
        print(f"{args.profile} has no measure '{args.criterion}'", file=sys.stderr)
        return 1
    width = max(map(len, rows))
    rows = [row + [0] * (width - len(row)) for row in rows]
    figure, axes = plt.subplots(figsize=(4 + width / 12, 2 + len(rows) / 30))
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set_xlabel("frequency chunk (0 = highest frequency)")
    axes.set_ylabel("layer (a line for each head)")
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_title(f"{profile['model_name'] or profile['architecture']}: {args.criterion}, of the head's largest")
    figure.colorbar(image)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
