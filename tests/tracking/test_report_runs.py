import base64
import dataclasses
import hashlib
import html
import html.parser
import json
import math
import re

import pytest

from hftune.tracking.report import Report, Tile
from hftune.tracking.report_runs import runs_report, write_runs_report
from hftune.tracking.report_sections import TrainingHints, save_task_report
from hftune.tracking.run_record import RunRecord
from hftune.tracking.run_view import RunView
from hftune.utils.errors import ConfigurationError
from hftune.utils.files import write_json

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> 한국어"
SETTINGS = {
    "training": {
        "learning_rate": {"value": 1e-4, "source": "command line"},
        "bf16": {"value": False, "source": "default"},
    }
}


def start(folder, name="run", number=1, configuration=SETTINGS, **more):
    record = RunRecord.start(folder, task="t", configuration=configuration)
    record.update(name=name, experiment_id=f"exp_20261121_{number:03d}", **more)
    return record


def train(record, begin, end, offset=0.0):
    for step in range(begin + 10, end + 1, 10):
        record.log_metrics({"loss": 2.0 - step / 1000 + offset, "speed": 5.0, "epoch": 1}, step)
        record.log_metrics({"eval_loss": 1.0 - step / 1000, "eval_f1": step / 1000}, step)


def section(report, title):
    found = [one for one in report.sections if one.title == title]
    assert len(found) == 1, [one.title for one in report.sections]
    return found[0]


def parts(place, kind):
    """All blocks of a kind in a section and in what is inside it."""
    found = []
    for block in place.blocks:
        if block["kind"] == kind:
            found.append(block)
        for inner in block.get("sections", [block["section"]] if "section" in block else []):
            found += parts(inner, kind)
    return found


def charts(place):
    return {block["spec"]["title"]: block["spec"]["series"] for block in parts(place, "curves")}


def table(place, first):
    """Rows of the table whose first heading is given, as lists of values."""
    for block in parts(place, "table"):
        if block["columns"][0] == first:
            return [[cell.value for cell in row] for row in block["rows"]]
    raise AssertionError(first)


def tiles(place):
    return {tile.label: tile for block in parts(place, "tiles") for tile in block["tiles"]}


class Elements(html.parser.HTMLParser):
    """The elements of a page as a browser sees them."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def write(views, path, **more):
    """The page, after what holds for every page: it loads nothing and runs nothing of others."""
    text = write_runs_report(views, path, **more).read_text(encoding="utf-8")
    elements = Elements(text).found
    assert {tag for tag, _ in elements}.isdisjoint({"link", "iframe", "object", "embed", "base"})
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert re.match(r"#|data:image/png;base64,", attributes.get(name, "#")), attributes
        assert not re.search(r"url\((?!#)", attributes.get("style", ""))
    assert {address.split("/")[2] for address in re.findall(r"https?://[^\s\"'<]+", text)} <= {
        "www.w3.org"  # names of vocabularies, not addresses
    }
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text
    return text


# One run


def test_a_completed_run(tmp_path):
    with start(tmp_path, "기준선", data={"fingerprint": "abc123"}, stages=["sft"]) as record:
        train(record, 0, 100)
        record.log_event("checkpoint", 100, path="/somewhere/checkpoint-100")
        record.log_event("warning", message="odd data")
        record.log_event("warning", message="odd data")
    view = RunView.from_folder(tmp_path)
    models = [
        {"model_id": "model_20261121_007", "name": "summary", "version": 3,
         "experiment_id": "exp_20261121_001", "aliases": ["production"],
         "parent_model": "model_20261101_001"},
        {"model_id": "model_20261121_008", "name": "other", "version": 1,
         "experiment_id": "exp_20261121_999", "aliases": [], "parent_model": None},
    ]  # fmt: skip
    relatives = [
        {"experiment_id": "exp_20261122_001", "name": "child", "status": "running",
         "parent_run": "exp_20261121_001"},
        {"experiment_id": "exp_20261122_002", "name": "stranger", "status": "running",
         "parent_run": None},
    ]  # fmt: skip
    report = runs_report([view], models=models, relatives=relatives)
    titles = [one.title for one in report.sections]
    assert titles == ["Training", "Other metrics", "Lineage", "Events", "Run"]
    assert report.title == "기준선" and report.facts["status"] == "completed"
    drawn = charts(section(report, "Training"))
    assert drawn["Loss"][0]["x"] == list(range(10, 101, 10))
    assert drawn["Validation loss"][0]["y"][-1] == 0.9
    assert tiles(section(report, "Training"))["Best validation loss"].value == 0.9
    others = section(report, "Other metrics")
    assert set(charts(others)) == {"speed", "eval_f1"}
    assert table(others, "metric")[0][:5] == ["speed", 10, 5.0, None, None]
    assert table(others, "metric")[1][:5] == ["eval_f1 ↑", 10, 0.1, 0.1, 100]
    [flow] = parts(section(report, "Lineage"), "flow")
    assert [[(tile.label, tile.value) for tile in column] for column in flow["columns"]] == [
        [("data", "abc123"), ("parent model", "model_20261101_001")],
        [("this run", "기준선")],
        [("stage 1", "sft")],
        [("checkpoint", "checkpoint-100")],
        [("registered model", "summary v3")],
        [("child run", "child")],
    ]
    assert flow["columns"][4][0].note == "model_20261121_007, production"
    [warning] = table(section(report, "Events"), "warning")
    assert warning[:2] == ["odd data", 2]
    write([view], tmp_path / "report.html", models=models, relatives=relatives)


@pytest.mark.parametrize(
    ("status", "title", "sentence"),
    [
        ("running", "Still running", "as it stood when the page was written"),
        ("crashed", "Crashed", "never said how it ended"),
        ("killed", "Stopped", "stopped this run"),
        ("preempted", "Interrupted", "the same command goes on"),
    ],
)
def test_a_run_that_did_not_complete_says_so_first(tmp_path, status, title, sentence):
    record = start(tmp_path, max_steps=1000)
    train(record, 0, 100)
    record.log_event("checkpoint", 50, path="out/checkpoint-50")
    view = dataclasses.replace(RunView.from_folder(tmp_path), status=status)
    report = runs_report([view])
    first = report.sections[0]
    assert first.title == title and report.facts["status"] == status
    assert sentence in parts(first, "text")[0]["paragraphs"][0]
    found = tiles(first)
    assert (found["Last step logged"].value, found["Last step logged"].note) == (100, "of 1,000")
    assert found["Last checkpoint"] == Tile("Last checkpoint", "checkpoint-50", "step 50")
    assert re.fullmatch(r"\d\d:\d\d:\d\d UTC", found["Last sign of life"].value)
    write([view], tmp_path / "report.html")
    record.finish()


def test_a_failed_run_shows_its_traceback(tmp_path):
    with pytest.raises(RuntimeError):
        with start(tmp_path):
            raise RuntimeError(f"out of memory {EVIL}")
    view = RunView.from_folder(tmp_path)
    report = runs_report([view])
    assert [one.title for one in report.sections] == ["Failed", "Run"]
    [code] = parts(report.sections[0], "code")
    assert code["text"].startswith("Traceback") and "RuntimeError: out of memory" in code["text"]
    assert tiles(report.sections[0])["Last checkpoint"].tone == "warning"
    assert "<script>alert" not in write([view], tmp_path / "report.html")


def test_what_an_earlier_attempt_logged_past_its_checkpoint_is_drawn_behind(tmp_path):
    record = start(tmp_path)
    train(record, 0, 300)
    record.log_event("checkpoint", 200, path="checkpoint-200")
    record.log_event("checkpoint", 300, path="checkpoint-300")
    record.finish("crashed", "the machine went down")
    changed = json.loads(json.dumps(SETTINGS))
    changed["training"]["learning_rate"]["value"] = 3e-4
    record = RunRecord.start(tmp_path, task="t", configuration=changed)
    record.resumed(200, "checkpoint-200")
    train(record, 200, 400, offset=0.5)
    record.finish()
    view = RunView.from_folder(tmp_path)
    report = runs_report([view])
    loss = charts(section(report, "Training"))["Loss"]
    assert [line["name"] for line in loss] == [
        "attempt 1, superseded",
        "training (each)",
        "training",
    ]
    behind, line = loss[0], loss[-1]
    assert behind["faint"] and behind["dashed"] and behind["color"] == line["color"]
    assert behind["x"] == list(range(210, 301, 10)) and behind["y"][0] == 1.79
    assert not line["faint"] and line["x"] == list(range(10, 401, 10))
    rows = table(section(report, "Attempts"), "attempt")
    assert [(row[0], row[1], row[4], row[5]) for row in rows] == [
        (1, "crashed", "–", 20),
        (2, "completed", "step 200, checkpoint-200", 0),
    ]
    assert rows[1][-1] == "training.learning_rate: 0.0001 → 0.0003"
    assert [code["text"] for code in parts(section(report, "Attempts"), "code")] == [
        "the machine went down"
    ]
    [flow] = parts(section(report, "Lineage"), "flow")
    assert [tile.value for tile in flow["columns"][-1]] == ["checkpoint-200"]
    write([view], tmp_path / "report.html")


def test_each_stage_has_its_own_curves(tmp_path):
    record = start(tmp_path)
    record.begin_stage("pretrain")
    train(record, 0, 50)
    record.begin_stage("finetune")
    train(record, 0, 30)
    record.finish()
    report = runs_report([RunView.from_folder(tmp_path)])
    [panels] = [b for b in section(report, "Training").blocks if b["kind"] == "panels"]
    assert [(one.title, charts(one)["Loss"][0]["x"]) for one in panels["sections"]] == [
        ("pretrain", [10, 20, 30, 40, 50]),
        ("finetune", [10, 20, 30]),
    ]
    other = charts(section(report, "Other metrics"))["speed"]
    assert [line["name"] for line in other] == ["pretrain", "finetune"]


def test_what_the_manuals_calls_record(tmp_path):
    configuration = {"lr": 1e-4, "model": {"heads": {"count": 8}}, "list": [1, None]}
    record = start(tmp_path, configuration=configuration, notes="메모", tags=["a", "b"])
    for value in (0.5, math.nan, 0.75, math.inf):
        record.log_metrics({"val/accuracy": value, "mystery": value})
    record.log_metrics({"final_rouge1": 0.4})
    record.update(final_metrics={"rouge1": 0.4}, best_metrics={"rouge1": 0.45})
    record.finish()
    report = runs_report([RunView.from_folder(tmp_path)])
    assert table(section(report, "Results"), "") == [["rouge1", 0.4, 0.45]]
    [accuracy] = charts(section(report, "Metrics"))["val/accuracy"]
    assert (accuracy["x"], accuracy["y"]) == ([1, 2, 3, 4], [0.5, None, 0.75, None])
    rows = {row[0]: row[1:5] for row in table(section(report, "Metrics"), "metric")}
    assert rows["val/accuracy ↑"] == [4, math.inf, 0.75, 3]
    assert rows["mystery"] == [4, math.inf, None, None]
    assert table(section(report, "Run"), "section") == [
        ["", "lr", "0.0001"],
        ["model", "heads.count", "8"],
        ["", "list", "1, –"],
    ]
    assert report.facts["tags"] == "a, b"
    write([RunView.from_folder(tmp_path)], tmp_path / "report.html")


def test_a_run_of_which_hardly_anything_is_known(tmp_path):
    start(tmp_path, configuration={}).finish()
    view = RunView.from_folder(tmp_path)
    for name in ("experiment_id", "name", "data", "tags"):
        view.record.pop(name, None)
    view.record.update(git=None, hardware={}, versions={}, seeds={}, command=[])
    view = dataclasses.replace(view, folder=tmp_path / "gone" / "run 7")
    report = runs_report([view])
    assert [one.title for one in report.sections] == ["Run"] and report.title == "t"
    view.record["task"] = ""
    text = write([view, view], tmp_path / "report.html")
    assert "No settings were recorded." in write([view], tmp_path / "one.html")
    assert "run 7" in text
    with pytest.raises(ConfigurationError, match="expected one id or more"):
        write_runs_report([], tmp_path / "none.html")


def test_a_run_that_logged_nothing_has_the_trainers_history(tmp_path):
    start(tmp_path).finish()
    for step in (4, 12):
        state = {"log_history": [{"step": step, "loss": float(step), "x": "text", "y": None}]}
        write_json(tmp_path / f"checkpoint-{step}" / "trainer_state.json", state)
    view = RunView.from_folder(tmp_path)
    assert charts(section(runs_report([view]), "Training"))["Loss"][0]["y"] == [12.0]
    given = runs_report([view], log_history=[{"step": 7, "loss": 0.5}])
    assert charts(section(given, "Training"))["Loss"][0]["y"] == [0.5]


def test_samples_are_cut_and_earlier_ones_folded(tmp_path):
    record = start(tmp_path)
    for step in (100, 200):
        for number in range(60 if step == 100 else 2):
            record.log_event(
                "sample", step, input=f"{number} {EVIL} " * 30, prediction=f"at {step}",
                reference=EVIL, score=0.5,
            )  # fmt: skip
    record.log_event("sample", 200, input="x" * 50_000, prediction="p")
    record.finish()
    view = RunView.from_folder(tmp_path)
    samples = section(runs_report([view]), "Sample predictions")
    newest, fold = samples.blocks
    assert newest["columns"] == ["input", "reference", "prediction", "score"]
    assert [row[2].value for row in newest["rows"]] == ["at 200", "at 200", "p"]
    assert fold["section"].title == "Step 100: 60 samples"
    assert len(fold["section"].blocks[0]["rows"]) == 50
    assert "10 more" in fold["section"].blocks[1]["paragraphs"][0]
    text = write([view], tmp_path / "report.html")
    assert '<details class="long">' in text and "(50,000 characters, cut here)" in text
    assert "x" * 20_000 in text and "x" * 20_001 not in text


def test_the_tasks_sections_come_first_and_stay(tmp_path):
    record = start(tmp_path, "my run")
    train(record, 0, 50)
    task = Report("Task", "of mine")
    task.section("Scores").text("42 points")
    hints = TrainingHints("eval_f1", "validation F1", ("baseline", 0.01))
    save_task_report(tmp_path, task, training=hints)
    record.finish()
    report = runs_report([RunView.from_folder(tmp_path)])
    assert (report.title, report.subtitle) == ("Task: my run", "of mine")
    assert [one.title for one in report.sections][:2] == ["Scores", "Training"]
    drawn = charts(section(report, "Training"))["Validation F1"]
    assert drawn[1]["name"] == "baseline" and drawn[1]["y"] == [0.01, 0.01]
    assert tiles(section(report, "Training"))["Best validation F1"].value == 0.05  # higher
    # A newer attempt has not come to its scores: those of the earlier one are shown as such.
    RunRecord.start(tmp_path, task="t", configuration=SETTINGS).finish("killed")
    scores = section(runs_report([RunView.from_folder(tmp_path)]), "Scores")
    assert [block["tone"] for block in scores.blocks] == ["warning", ""]
    assert "Of attempt 1" in scores.blocks[0]["paragraphs"][0]


# Several runs


def several(tmp_path, names=("one", "two", "three")):
    views = []
    for number, name in enumerate(names, 1):
        settings = json.loads(json.dumps(SETTINGS))
        settings["training"]["learning_rate"]["value"] = number / 10000
        more = {"extra": {"value": EVIL, "source": "default"}} if number == 2 else {}
        settings["training"].update(more)
        folder = tmp_path / str(number)
        with start(folder, name, number, settings, data={"fingerprint": "ab"[number > 2]}) as run:
            train(run, 0, 40 + 10 * number, offset=0.1 * number)
            run.log_metrics({"nan": math.nan, "odd": number, "only_" + "abc"[number - 1]: 1}, 40)
            for item in ("first", "second"):
                answer = f"{item} {number}"
                run.log_event("sample", 40, input=item, prediction=answer, reference="r")
        views.append(RunView.from_folder(folder))
    return views


def test_runs_are_drawn_over_each_other(tmp_path):
    views = several(tmp_path)
    report = runs_report(views)
    titles = ["Runs", "Numbers", "Curves", "What differs", "Sample predictions"]
    assert [one.title for one in report.sections] == titles
    drawn = charts(section(report, "Curves"))
    assert [(line["name"], line["color"]) for line in drawn["loss"]] == [
        ("one · exp_20261121_001", 0),
        ("two · exp_20261121_002", 1),
        ("three · exp_20261121_003", 2),
    ]
    assert [len(line["x"]) for line in drawn["eval_f1"]] == [5, 6, 7]
    rows = table(section(report, "Runs"), "")
    assert [row[1:4] for row in rows][0] == ["one", "exp_20261121_001", "completed"]


def test_the_best_of_the_runs_is_marked_where_the_direction_is_known(tmp_path):
    numbers = section(runs_report(several(tmp_path)), "Numbers")
    rows = {
        row[0].value: row[1:]
        for block in parts(numbers.blocks[0]["sections"][0], "table")
        for row in block["rows"]
    }
    marked = {name: [cell.strong for cell in cells] for name, cells in rows.items()}
    assert marked["loss ↓"] == [True, False, False]
    assert [cell.value for cell in rows["eval_f1 ↑"]] == [0.05, 0.06, 0.07]
    assert marked["eval_f1 ↑"] == [False, False, True]
    assert marked["odd"] == [False] * 3 and [c.value for c in rows["odd"]] == [1, 2, 3]
    assert [cell.value for cell in rows["nan"]] == ["NaN"] * 3
    assert [cell.value for cell in rows["only_b"]] == [None, 1, None]
    best = parts(numbers.blocks[0]["sections"][1], "table")[0]
    assert {row[0].value for row in best["rows"]} == {"loss ↓", "eval_loss ↓", "eval_f1 ↑"}


def test_a_declared_direction_counts(tmp_path):
    views = several(tmp_path)
    views[0].record["metric_directions"] = {"odd": False}
    numbers = section(runs_report(views), "Numbers")
    assert [row for row in table(numbers, "metric") if row[0] == "odd ↓"] == [["odd ↓", 1, 2, 3]]


def test_only_what_differs_is_shown_at_once(tmp_path):
    differs = section(runs_report(several(tmp_path)), "What differs")
    shown = [block for block in differs.blocks if block["kind"] == "table"]
    assert [[cell.value for cell in row] for row in shown[0]["rows"]] == [
        ["training.learning_rate", "0.0001", "0.0002", "0.0003"],
        ["training.extra", "(not there)", EVIL, "(not there)"],
    ]
    assert ["data.fingerprint", "a", "a", "b"] in [
        [cell.value for cell in row] for row in shown[1]["rows"]
    ]
    folded = [block["section"] for block in differs.blocks if block["kind"] == "fold"]
    assert folded[0].title == "All 3: settings"
    assert len(folded[0].blocks[0]["rows"]) == 3


def test_predictions_for_the_same_input_stand_beside_each_other(tmp_path):
    rows = table(section(runs_report(several(tmp_path)), "Sample predictions"), "input")
    assert rows == [
        ["first", "r", "first 1", "first 2", "first 3"],
        ["second", "r", "second 1", "second 2", "second 3"],
    ]


def test_names_cannot_do_anything(tmp_path):
    views = several(tmp_path, (EVIL, "한국어 이름\n둘째 줄", "x" * 300))
    task = Report(EVIL, EVIL)
    task.section(EVIL).text(EVIL)
    save_task_report(views[0].folder, task)
    for chosen in (views, views[:1]):
        text = write(chosen, tmp_path / "report.html")
        scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
        assert text.count("<script") == len(scripts)
        assert all("alert" not in script for script in scripts[-1:])
        specs = [json.loads(script) for script in scripts[:-1]]
        assert len(specs) > 3
        assert html.escape(EVIL) in text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    titled = runs_report(views).sections[0].blocks[0]["rows"]
    assert [row[1].value for row in titled][0] == EVIL


def test_the_page_lets_only_its_own_script_run(tmp_path):
    start(tmp_path).finish()
    text = write([RunView.from_folder(tmp_path)], tmp_path / "report.html")
    [allowed] = re.findall(r"script-src '([^']*)'", text)
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert html.unescape(allowed) == f"sha256-{digest}"


def test_long_runs_make_small_pages(tmp_path):
    record = start(tmp_path)
    record.finish()
    with open(tmp_path / "metrics.jsonl", "w") as stream:
        for step in range(30_000):
            values = {name: math.sin(step) + 2 for name in ("loss", "a/b", "a/c", "d")}
            line = {"time": 1.0, "attempt": 1, "stage": 0, "step": step, "metrics": values}
            stream.write(json.dumps(line) + "\n")
    view = RunView.from_folder(tmp_path)
    text = write([view, view], tmp_path / "report.html")
    assert len(text) < 600_000
    smooth = charts(section(runs_report([view]), "Training"))["Loss"][1]
    assert len(smooth["x"]) <= 1501 and smooth["x"] == sorted(smooth["x"])
    assert all(abs(value - 2) < 0.05 for value in smooth["y"][100:-100])
