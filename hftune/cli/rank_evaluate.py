"""``hftune rank evaluate``: how often a model is right, and how sure that is."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ConfigurationError
from ..utils.terminal import say
from .rank_model import find_model, make_pipeline
from .rank_score import check_outputs
from .tables import Column, console, print_json, table

if TYPE_CHECKING:
    from ..tasks.ranking.evaluation_ranking import RankingEvaluator
    from ..tasks.ranking.tables_ranking import Comparisons, ImageTable

__all__ = ["evaluate"]


def evaluate(arguments: argparse.Namespace) -> int:
    """Scores images with known tiers, scores or votes, and prints what that says."""
    given = (arguments.checkpoint, arguments.checkpoint_option, arguments.model)
    models = list(dict.fromkeys(filter(None, given)))
    if len(models) > 1:
        raise ConfigurationError(f"evaluate: found the models {', '.join(models)}; expected one")
    source = arguments.test_data or arguments.comparisons
    if source is None:
        raise ConfigurationError(
            "evaluate: expected --test-data FILE (image_id, filename, tier), or --comparisons FILE "
            "(image_1, image_2, votes_1, votes_2)"
        )
    check_outputs(arguments.report)
    model = find_model(models[0] if models else None)

    from ..tasks.ranking.data_ranking import PixelImages
    from ..tasks.ranking.evaluation_ranking import RankingEvaluator
    from ..tasks.ranking.report_ranking import ranking_scores, render_scores
    from ..tasks.ranking.tables_ranking import images_of_comparisons, read_images, require_pairs

    folder = arguments.image_dir or Path(source).parent
    pipeline = make_pipeline(model, arguments)
    config = pipeline.model.config
    if arguments.test_data:
        images = read_images(
            source,
            folder,
            tiers=arguments.tiers or config.tiers or None,
            rank_by=arguments.rank_by,
            group_column=arguments.group_column,
        )
        require_pairs(images, arguments.test_data)
    else:
        images = images_of_comparisons(source, folder)
    votes = None
    if arguments.comparisons:
        votes = _comparisons_of(arguments.comparisons, images, source)
    evaluator = RankingEvaluator(
        PixelImages(images.paths, pipeline.model.image_processor.process),
        images.targets,
        images.scores,
        votes,
        tiers=images.tiers,
        groups=images.groups,
    )
    evaluator.scores = pipeline.scores(images.paths)
    scores = ranking_scores(evaluator, images, temperature=config.score_temperature)
    if arguments.report:
        _write_report(arguments.report, model.name, source, scores, evaluator, images)
    if arguments.json:
        print_json({"model": model.name, **scores})
        return 0
    out = console()
    out.print(render_scores(scores))
    if scores["tier_pairs"]:
        out.print()
        out.print(_tier_table(scores["tier_pairs"]))
    if arguments.report:
        out.print(f"\n✓ {arguments.report}", style="green", soft_wrap=True)
    return 0


def _comparisons_of(source: str, images: ImageTable, where: str) -> Comparisons:
    """The comparisons of which both images are to be scored; others are of other splits."""
    import pandas

    from ..tasks.ranking.table_rows_ranking import read_rows
    from ..tasks.ranking.tables_ranking import read_comparisons

    frame = pandas.DataFrame(read_rows(source, "comparisons").columns)
    if not {"image_1", "image_2"} <= {*frame.columns}:
        return read_comparisons(source, images)  # which says what is missing
    known = set(images.ids)
    for path in images.paths:
        parts = unicodedata.normalize("NFC", path.as_posix()).split("/")
        known |= {"/".join(parts[place:]) for place in range(len(parts))} | {Path(parts[-1]).stem}
    inside = frame["image_1"].isin(known) & frame["image_2"].isin(known)
    if inside.all() or not inside.any():
        return read_comparisons(source, images)  # and here what is unknown
    say(
        f"{(~inside).sum():,} of {len(frame):,} comparisons are left out: {where} does not have "
        "both of their images",
        markup=False,
        soft_wrap=True,
    )
    return read_comparisons(frame[inside], images)


def _tier_table(tier_pairs: Mapping[str, Mapping[str, float]]) -> Any:
    return table(
        [
            Column("pair", list(tier_pairs)),
            Column("accuracy", [f"{p['accuracy']:.3f}" for p in tier_pairs.values()], right=True),
            Column("pairs", [f"{p['total_pairs']:,}" for p in tier_pairs.values()], right=True),
            Column(
                "right", [f"{p['correct_predictions']:,g}" for p in tier_pairs.values()], right=True
            ),
        ]
    )


def _write_report(
    path: str,
    model_name: str,
    source: str,
    scores: Mapping[str, Any],
    evaluator: RankingEvaluator,
    images: ImageTable,
) -> None:
    from ..tasks.ranking.sections_ranking import ranking_sections
    from ..tracking.report import Report

    facts = {"model": model_name, "data": source, "images": len(images)}
    report = Report("Evaluation of a ranking", "Images whose order people know", facts)
    for section in ranking_sections(scores, evaluator, images):
        report.add(section)
    report.write(path)
