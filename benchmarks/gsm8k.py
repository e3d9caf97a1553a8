"""SFT on real rows: a small model from scratch, 200 steps on gsm8k, and its curves as an SVG.

    python benchmarks/gsm8k.py TRAIN.jsonl TEST.jsonl --run RUN --svg curve.svg

Both files have text in `prompt` and `completion` on each line. RUN is the folder of the new run; where it holds one
already, its curves are drawn again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import work

from ft_host.report.chart import tick_labels, ticks
from ft_host.report.markup import Markup, el, join
from ft_host.report.record import RunRecord, read_run
from ft_host.report.series import Series, smooth

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 460, 280, 46, 40, 34  # of one picture, and its margins
TRAIN, EVAL, INK, SOFT, GRID = "#2a66c4", "#cc5a1c", "#1c2126", "#57616b", "#e3e6e9"


def train(rows: Path, test: Path, run: Path) -> None:
    from ft_sft.config import SFTConfig

    import ft_host

    tokenizer = work.make_tokenizer(work.read_rows(rows))
    with tempfile.TemporaryDirectory() as model:
        work.make_model(Path(model), "small", tokenizer)
        ft_host.train(
            SFTConfig(
                model=model,
                dataset=str(rows),
                eval_dataset=str(test),
                output_dir=str(run),
                max_length=work.MAX_LENGTH,
                per_device_train_batch_size=work.BATCH,
                max_steps=200,
                learning_rate=2e-3,  # from scratch: far above what suits a pretrained model
                lr_scheduler_type="cosine",
                warmup_steps=20,
                adam_beta2=0.99,
                eval_steps=25,
                eval_max_rows=200,
                save_steps=0,
            )
        )


# ---------------------------------------------------------------- the picture


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, colour: str = SOFT) -> Markup:
    at = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "font-size": str(size), "fill": colour}
    return el("text", words, attrs=at)


def _line(points: list[tuple[float, float]], colour: str, *, width: float = 1.8, opacity: float = 1.0) -> Markup:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return el("path", attrs={"d": path, "stroke": colour, "stroke-width": str(width), "opacity": str(opacity),
                             "fill": "none", "stroke-linejoin": "round"})  # fmt: skip


def _panel(left: float, heading: str, trained: Series, held_out: Series) -> Markup:
    """One metric: every step of training faint, smoothed over it, and the evaluations as dots."""
    steps = (0.0, max(trained.steps))
    values = [*trained.values, *held_out.values]
    pad = (max(values) - min(values)) * 0.04
    low, high = max(0.0, min(values) - pad), max(values) + pad
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - 16, HEIGHT - BOTTOM, TOP

    def place(series: Series) -> list[tuple[float, float]]:
        return [
            (x0 + (x1 - x0) * step / steps[1], y0 + (y1 - y0) * (value - low) / (high - low))
            for step, value in zip(series.steps, series.values, strict=True)
        ]

    drawn = [_text(x0, 22, heading, size=14, colour=INK)]
    heights = ticks(low, high, wanted=5)
    for tick, label in zip(heights, tick_labels(heights), strict=True):
        y = y0 + (y1 - y0) * (tick - low) / (high - low)
        drawn += [_line([(x0, y), (x1, y)], GRID, width=1), _text(x0 - 7, y + 4, label, anchor="end")]
    for tick in ticks(*steps, wanted=4, whole=True):
        name = f"step {tick:.0f}" if tick == steps[1] else f"{tick:.0f}"
        x = x0 + (x1 - x0) * tick / steps[1]
        drawn.append(_text(x, HEIGHT - 12, name, anchor="end" if tick == steps[1] else "middle"))
    drawn.append(_line(place(trained), TRAIN, width=1, opacity=0.35))
    soft = smooth(trained)
    if soft is not None:
        drawn.append(_line(place(soft), TRAIN))
    drawn.append(_line(place(held_out), EVAL))
    drawn += [el("circle", attrs={"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "fill": EVAL}) for x, y in place(held_out)]
    return join(*drawn)


def picture(record: RunRecord) -> str:
    """An SVG document with loss and token accuracy of a run."""
    panels = [
        _panel(0, "loss", record.train["loss"], record.evals["eval_loss"]),
        _panel(WIDTH, "token accuracy", record.train["mean_token_accuracy"], record.evals["eval_mean_token_accuracy"]),
    ]
    legend = [
        _text(2 * WIDTH - 16, 22, "held-out rows", anchor="end", colour=EVAL),
        _text(2 * WIDTH - 104, 22, "training rows", anchor="end", colour=TRAIN),
    ]
    last = record.evals["eval_loss"]
    spoken = f"Loss on held-out rows: {last.first:.2f} before training, {last.last:.2f} after {record.steps} steps"
    frame = el("rect", attrs={"width": str(2 * WIDTH), "height": str(HEIGHT), "rx": "10", "fill": "#ffffff"})
    return el(
        "svg", frame, *panels, *legend,
        attrs={"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {2 * WIDTH} {HEIGHT}", "role": "img",
               "width": str(2 * WIDTH), "height": str(HEIGHT),
               "font-family": "system-ui, -apple-system, Segoe UI, sans-serif", "aria-label": spoken},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/gsm8k"), help="default: %(default)s")
    parser.add_argument("--svg", type=Path, default=Path("gsm8k-sft.svg"), help="default: %(default)s")
    args = parser.parse_args()
    if not (args.run / "run.json").exists():
        train(args.train, args.test, args.run)
    args.svg.write_text(picture(read_run(args.run)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
