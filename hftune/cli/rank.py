"""``hftune rank``: compares, scores and ranks images with a model, and evaluates the model."""

from __future__ import annotations

import argparse
import itertools
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import ConfigurationError
from .rank_evaluate import evaluate
from .rank_model import find_model
from .rank_score import NOT_CALIBRATED, percent, score, shown_scores
from .tables import Column, console, one_line, print_json, table

__all__ = ["main"]

_DESCRIPTION = """\
Compare images, rank a folder of them, and say how good the model is that does it.

A model (--model, -m) is a folder that recipes/ranking.py or save_pretrained
wrote, a registered model (art, art:3, art@production) or a repository on the
Hub. Without it the newest registered ranking model is taken."""

_EXAMPLES = """\
examples:
  hftune rank compare a.jpg b.jpg
  hftune rank score photos/ -o scores.csv --report ranking.html
  hftune rank evaluate --checkpoint runs/art/model \\
      --test-data data/test_metadata.csv --image-dir data/images
  hftune rank benchmark --model runs/art/model

hftune rank COMMAND --help says more."""


_TOSS = 0.55  # the probability below which neither image is better to speak of


def _option(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Adds ``--snake_case``, which may be written ``--kebab-case`` as well."""
    parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), **settings)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number such as 8")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError("found 0, expected 1 or more")
    return int(text)


def _computing(parser: argparse.ArgumentParser, *, dtype: bool = True) -> None:
    _option(parser, "device", help="cpu, cuda, mps (default: the fastest there is)")
    _option(
        parser, "batch_size", type=_positive, default=32, metavar="N",
        help="images at a time (default 32); fewer if memory is short",
    )  # fmt: skip
    if dtype:
        _option(
            parser, "dtype", choices=("float32", "bfloat16"), default="float32",
            help="what the backbone computes in (default float32; GPUs are faster in bfloat16)",
        )  # fmt: skip


def _scoring(parser: argparse.ArgumentParser) -> None:
    _computing(parser)
    _option(
        parser, "num_workers", type=_count, metavar="N",
        help="processes that decode images (default: up to 4 where there are many images)",
    )  # fmt: skip
    _option(
        parser, "feature_cache", choices=("auto", "off"), default="auto",
        help="auto (the default) keeps what a backbone that was not trained sees in an image, so "
        "that scoring it again, or with another model on that backbone, takes no time; off",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hftune rank", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def command(
        name: str, run: Callable[..., int], text: str, more: str, example: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, formatter_class=raw,
            description=textwrap.fill(f"{text[0].upper()}{text[1:]}. {more}", 79),
            epilog=f"example:\n  hftune rank {name} {example}",
        )  # fmt: skip
        made.set_defaults(function=run)
        made.add_argument("-m", "--model", metavar="MODEL", help="folder, registered model or Hub")
        _option(made, "json", action="store_true", help="print JSON")
        return made

    one = command(
        "compare", _compare, "say which of two images is better, and how sure that is",
        "Of more than two it makes a ranking. --json prints each pair: image1, image2, score1, "
        "score2, winner (image1, image2 or tie), confidence (the difference of the scores) and "
        "probability.", "a.jpg b.jpg --model runs/art/model",
    )  # fmt: skip
    one.add_argument("images", nargs="+", metavar="IMAGE", help="two image files, or more")
    _computing(one, dtype=False)

    one = command(
        "score", score, "rank the images in a folder",
        "Writes rank, image (its path in the folder), score and win_probability: the mean "
        "probability to be better than one of the others, empty for a model without a temperature. "
        "An image passes the model once, and a second time it need not at all.",
        "photos/ -o scores.csv --report ranking.html",
    )  # fmt: skip
    one.add_argument("folder", metavar="FOLDER", help="with the images")
    one.add_argument("-o", "--output", required=True, metavar="FILE.csv", help="table to write")
    one.add_argument(
        "--report", metavar="FILE.html",
        help="write a page with pictures of the best, the worst and the most contested images",
    )  # fmt: skip
    _option(one, "recursive", action="store_true", help="look in subfolders too")
    _scoring(one)

    one = command(
        "evaluate", evaluate, "say how often a model is right, with the interval of that",
        "On images whose tiers, or scores, are known, and that the model was not trained on. All "
        "pairs of images of different tiers are counted. The 95 % interval is that over images: "
        "with few of them it is wide, and where it contains 0.5 the model is not above chance.",
        "--checkpoint runs/art/model \\\n"
        "      --test-data data/test_metadata.csv --image-dir data/images",
    )  # fmt: skip
    one.add_argument("checkpoint", nargs="?", metavar="MODEL", help="the same as --checkpoint")
    _option(one, "checkpoint", dest="checkpoint_option", metavar="MODEL", help="as --model")
    _option(one, "test_data", metavar="FILE", help="table: image_id, filename, tier or score")
    _option(one, "image_dir", metavar="FOLDER", help="of the images (default: beside the table)")
    _option(
        one, "comparisons", metavar="FILE",
        help="people's votes on pairs (image_1, image_2, votes_1, votes_2), beside tiers or alone",
    )  # fmt: skip
    _option(
        one, "tiers", nargs="+", metavar="TIER",
        help="names of all tiers, best first (default: those that the model was trained on)",
    )  # fmt: skip
    _option(
        one, "rank_by", choices=("tier", "score"),
        help="which column ranks the images (default: the tier, if there is one)",
    )  # fmt: skip
    _option(
        one, "group_column", metavar="COLUMN",
        help="images with the same value there (an artist) are drawn together for the interval",
    )  # fmt: skip
    one.add_argument("--report", metavar="FILE.html", help="write a page with plots and pictures")
    _scoring(one)

    one = command(
        "benchmark", _benchmark, "measure time and memory of a model",
        "Of a pair, of a batch and of training, against targets: less than 100 ms, 12 GB and, for "
        "10,000 images and 100 epochs, 6 hours.", "--model runs/art/model --batch_size 32",
    )  # fmt: skip
    _computing(one)
    _option(
        one, "image_size", type=_positive, metavar="PIXELS",
        help="side of the images (default: the model's own)",
    )  # fmt: skip
    one.add_argument("--seed", type=_count, default=42, help="of the pixels (default 42)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv (sequence of str): Arguments after ``hftune rank``.

    Returns:
        The exit code.
    """
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    arguments = parser.parse_args(argv)
    return arguments.function(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    images = arguments.images
    if len(images) < 2:
        raise ConfigurationError(
            f"compare: found one image, {images[0]}; expected two or more. To rank a folder: "
            "hftune rank score FOLDER -o scores.csv"
        )
    model = find_model(arguments.model)

    from ..tasks.ranking.inference_ranking import batch_compare, load_ranking_model
    from ..utils.modules import best_device

    rows = batch_compare(
        load_ranking_model(model.source),
        list(itertools.combinations(images, 2)),
        device=arguments.device or best_device(),
        batch_size=arguments.batch_size,
    )
    if arguments.json:
        print_json(rows)
    elif len(images) == 2:
        _print_pair(rows[0])
    else:
        _print_ranking(rows)
    return 0


def _print_pair(row: Mapping[str, Any]) -> None:
    out = console()
    first, second = _names([row["image1"], row["image2"]])
    if row["winner"] == "tie":
        out.print(f"{first} and {second} are equally good.", style="bold", soft_wrap=True)
    else:
        if row["probability"] is None:
            how = f". {NOT_CALIBRATED}"
        elif row["probability"] < _TOSS:
            how = f", but that is nearly a coin toss: {percent(row['probability'])} sure."
        else:
            how = f": {percent(row['probability'])} sure."
        better = first if row["winner"] == "image1" else second
        out.print(f"{better} is better{how}", style="bold", soft_wrap=True)
    out.print()
    scores = shown_scores([row["score1"], row["score2"]])
    out.print(table([Column("image", [first, second]), Column("score", scores, right=True)]))


def _print_ranking(rows: Sequence[Mapping[str, Any]]) -> None:
    scores = {row[f"image{side}"]: row[f"score{side}"] for row in rows for side in (1, 2)}
    between = {(row["image1"], row["image2"]): row["probability"] for row in rows}
    between |= {(second, first): p for (first, second), p in between.items()}
    order = sorted(scores, key=lambda image: -scores[image])
    next_one = [between[pair] for pair in itertools.pairwise(order)]
    columns = [
        Column("", [str(place) for place in range(1, len(order) + 1)], right=True),
        Column("image", _names(order)),
        Column("score", shown_scores([scores[image] for image in order]), right=True),
    ]
    if None not in next_one:
        sure = [*map(percent, next_one), ""]
        columns.append(Column("better than the next one", sure, right=True))
    out = console()
    out.print(table(columns))
    if None in next_one:
        out.print(f"\n{NOT_CALIBRATED}", soft_wrap=True)


def _names(images: Sequence[str]) -> list[str]:
    """Their names without folders, unless two have the same."""
    names = [Path(image).name for image in images]
    return [one_line(name) for name in (names if len({*names}) == len({*images}) else images)]


def _benchmark(arguments: argparse.Namespace) -> int:
    model = find_model(arguments.model)

    from ..tasks.ranking.benchmarks_ranking import PerformanceBenchmarks, render, set_seed
    from ..tasks.ranking.inference_ranking import load_ranking_model
    from ..utils.modules import best_device

    set_seed(arguments.seed)
    report = PerformanceBenchmarks(
        load_ranking_model(model.source),
        arguments.device or best_device(),
        arguments.image_size,
        arguments.batch_size,
        arguments.dtype,
    ).run_full_benchmark()
    if arguments.json:
        print_json(report)
    else:
        console().print(render(report))
    return 0
