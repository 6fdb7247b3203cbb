"""A bar a relay: the median, with the 95 % interval as a line; on a logarithmic scale where one of
them dwarfs the others."""

import statistics
from pathlib import Path


def label(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def draw(title: str, unit: str, figures: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from report import interval

    names = list(reversed(figures))
    medians = [statistics.median(figures[name]) for name in names]
    spans = [interval(figures[name]) for name in names]
    errors = [
        [middle - low for middle, (low, _) in zip(medians, spans, strict=True)],
        [high - middle for middle, (_, high) in zip(medians, spans, strict=True)],
    ]
    ours = ("comm", "decide", "policy", "examples/", "lusca_comm", "aio", "plane")
    colours = [
        "#2563eb" if name.startswith(ours) or " aio" in name else "#94a3b8" for name in names
    ]
    figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.36 * len(names)))
    bars = axes.barh(names, medians, xerr=errors, color=colours, ecolor="#334155", capsize=2)
    axes.bar_label(bars, labels=[label(value) for value in medians], padding=6, fontsize=8)
    axes.set_title(title, loc="left", fontsize=11)
    if max(medians) > 20 * min(medians):
        axes.set_xscale("log")
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
