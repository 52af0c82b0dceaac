"""Reports of benchmark runs: figures, notes, charts, and rows of other models."""

import json
from statistics import fmean

import pytest
from benchmark_runs import PREDICTIONS, PROTOCOL, QUESTIONS, RUN, make_predictions, make_questions, write_without_chart
from matplotlib.figure import Figure
from PIL import Image
from refusals import refused

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.protocol import ReferenceRow
from spa3r.data_scripts.benchmarks.vsi_bench import QUESTION_TYPES
from spa3r.trainers.benchmark import chart
from spa3r.trainers.benchmark import report as benchmark_report
from spa3r.trainers.benchmark.answers import read_predictions
from spa3r.trainers.benchmark.formatting import format_table
from spa3r.trainers.benchmark.report import read_report, reference_rows, write_report

# Some runs here lack kinds of questions on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:No answers")

ROWS = [ReferenceRow("Somebody's model", {"overall": 51.25, "route_planning": 30.0}, "a paper")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    write_report(folder, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    return folder


def report_on(tmp_path, questions=QUESTIONS, rows=(), baselines=None, protocol=PROTOCOL, **run):
    """Write the report of a run, and return its Markdown page."""
    write_without_chart(tmp_path, RUN | run, questions, make_predictions(questions), protocol, rows, baselines or {})
    return (tmp_path / "report.md").read_text()


def cells(page, first):
    """Return the cells of the row of a table that begins with some text."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_columns_are_the_protocols_summary_of_all_scores(folder):
    scores = {}
    for question in QUESTIONS:
        score = PROTOCOL.score(question.record, PREDICTIONS[question.id])
        scores.setdefault(question.record["question_type"], []).append(score)
    means = {kind: fmean(each) for kind, each in scores.items()}
    expected = PROTOCOL.summarize(means, {kind: len(each) for kind, each in scores.items()})
    written = {column["key"]: column["value"] for column in read_report(folder)["columns"]}
    assert list(written) == list(expected) and written == pytest.approx(expected, abs=1e-15)


def test_intervals_enclose_their_values(folder):
    report = read_report(folder)
    for row in (*report["columns"], *report["groups"]):
        assert 0 <= row["low"] < row["value"] < row["high"] <= 1


def test_answers_are_kept_in_order_with_their_scores(folder):
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [question.id for question in QUESTIONS]
    for line, question in zip(lines, QUESTIONS, strict=True):
        assert list(line) == ["id", "scene_id", "group", "prediction", "score"]
        assert line["scene_id"] == question.scene_id and line["prediction"] == PREDICTIONS[question.id]
        assert line["score"] == PROTOCOL.score(question.record, line["prediction"])


def test_equal_arguments_give_equal_bytes_and_no_other_files(folder, tmp_path):
    report = write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    assert json.loads(json.dumps(report)) == read_report(tmp_path) and report["provenance"] == RUN
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["answers.jsonl", "report.json", "report.md", "report.png"]
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_report_is_written_last(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_report, "draw_report", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    assert not (tmp_path / "report.json").exists()


def test_the_chart_is_a_picture_without_software_and_date(folder):
    with Image.open(folder / "report.png") as image:
        image.load()
        assert min(image.size) > 300 and image.info.keys() == {"dpi"}


def test_numbers_in_the_chart_stand_beside_the_markers_of_others():
    axes = Figure().subplots()
    column = {"key": "overall", "heading": "Avg.", "value": 0.2, "low": None, "high": None}
    chart._draw_columns(axes, [column], [("others", {"overall": 62.1})], num_rows=1)
    ((number,), (position, _)) = [text.get_text() for text in axes.texts], axes.texts[0].xy
    assert number == "20.0" and position > 100


def test_charts_are_independent_of_the_users_style(folder, tmp_path):
    with chart.matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 20}):
        write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    assert (tmp_path / "report.png").read_bytes() == (folder / "report.png").read_bytes()


def test_the_page_has_the_papers_columns_with_others_and_the_run_in_bold(folder):
    page, report = (folder / "report.md").read_text(), read_report(folder)
    assert "vsi-bench" in page.splitlines()[0] and "spa3-vlm-4b.v2" in page.splitlines()[0]
    assert cells(page, "Model") == ["Model", *PROTOCOL.columns.values(), "Source"]
    own = [f"**{100 * column['value']:.1f}**" for column in report["columns"]]
    assert cells(page, "**spa3-vlm-4b.v2**") == ["**spa3-vlm-4b.v2**", *own, "this run"]
    ends = [f"{100 * column['low']:.1f}–{100 * column['high']:.1f}" for column in report["columns"]]
    assert cells(page, "95 % interval")[1:-1] == ends
    assert cells(page, "Somebody's model") == ["Somebody's model", "51.2", *"––––––", "30.0", "–", "a paper"]


def test_groups_are_shown_with_their_numbers(folder):
    page = (folder / "report.md").read_text()
    for group in read_report(folder)["groups"]:
        name, questions, scenes, score, _ = cells(page, group["name"])
        asked = [question for question in QUESTIONS if question.record["question_type"] == name]
        assert int(questions) == len(asked) and int(scenes) == len({question.scene_id for question in asked})
        assert score == f"{100 * group['value']:.1f}"


def test_provenance_is_listed_and_long_lists_are_cut_on_the_page_only(tmp_path):
    missing = [f"videos/{number}.mp4" for number in range(40)]
    page = report_on(tmp_path, missing=missing)
    assert "`videos/4.mp4`, and 35 more (in report.json)" in page and "videos/5.mp4" not in page
    assert read_report(tmp_path)["provenance"]["missing"] == missing
    assert "\n- num_frames: `32`\n" in page and "\n- versions: torch `2.13.0`, numpy `2.4.6`\n" in page


def test_baselines_are_joined_into_columns_like_the_run(tmp_path):
    frequency = {kind: number / 10 for number, kind in enumerate(QUESTION_TYPES)}
    page = report_on(tmp_path, benchmark="rooms", baselines={"frequency": frequency}, published_size=None)
    expected = PROTOCOL.summarize(frequency, dict.fromkeys(frequency, 1))
    assert cells(page, "frequency")[:-1] == ["frequency", *(f"{100 * value:.1f}" for value in expected.values())]
    assert cells(page, "Questions of")[-1] == "frequency" and cells(page, "object_rel_distance")[-1] == "30.0"
    assert "**Note.**" not in page


def test_baselines_are_over_the_groups_that_were_asked(tmp_path):
    questions = make_questions(types=QUESTION_TYPES[3:5])
    baseline = {QUESTION_TYPES[0]: 0.9, QUESTION_TYPES[3]: 0.2}
    page = report_on(tmp_path, questions, benchmark="rooms", baselines={"blind": baseline})
    assert cells(page, "blind")[1] == "20.0"
    assert any("blind" in note and QUESTION_TYPES[4] in note for note in notes(page))


def notes(page):
    return [line for line in page.splitlines() if line.startswith("- **Note.**")]


WITHOUT_TWO = [kind for kind in QUESTION_TYPES if kind not in ("route_planning", "object_rel_direction_easy")]
OTHER_PROTOCOL = BENCHMARKS["vsi-bench"].protocol("lmms-eval-2026")
NOTES = {
    "fewer questions than published": ({}, ["300 questions", "5,130"]),
    "a part of unknown size": ({"published_size": None}, ["whole published set"]),
    "a limit": ({"limit": 300}, ["first 300 questions"]),
    "missing media": ({"missing": ["a.mp4", "b.mp4"]}, ["2 videos", "a.mp4, b.mp4"]),
    "unreadable media": ({"unreadable": {"7": "It is cut."}}, ["1 question ", "7"]),
    "missing kinds": ({"questions": make_questions(types=WITHOUT_TWO)}, ["object_rel_direction_easy, route_planning"]),
    "another protocol than published": ({"protocol": OTHER_PROTOCOL}, ["`official`", "`lmms-eval-2026`"]),
    "few scenes": ({"questions": make_questions(num_scenes=5)}, ["5 scenes"]),
    "a single scene": ({"questions": make_questions(num_scenes=1)}, ["one scene"]),
}


@pytest.mark.parametrize("options, tokens", NOTES.values(), ids=NOTES)
def test_notes_name_what_cannot_be_compared(options, tokens, tmp_path):
    page = report_on(tmp_path, **options)
    assert any(all(token in note for token in tokens) for note in notes(page)), notes(page)


def test_a_whole_run_has_no_notes(tmp_path):
    assert not notes(report_on(tmp_path, published_size=300))


def test_what_cannot_be_computed_is_a_dash(tmp_path):
    page = report_on(tmp_path, make_questions(num_scenes=1, types=WITHOUT_TWO))
    assert cells(page, "**spa3-vlm-4b.v2**")[-3] == "–"
    assert set(cells(page, "95 % interval")[1:-1]) == {"–"}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_published_rows_stand_beside_a_run(benchmark):
    assert reference_rows({"benchmark": benchmark}) == list(BENCHMARKS[benchmark].published)


def test_other_runs_are_further_rows(folder):
    row = reference_rows(RUN, [folder])[-1]
    expected = {column["key"]: 100 * column["value"] for column in read_report(folder)["columns"]}
    assert row[:2] == ("spa3-vlm-4b.v2", expected) and "`run`" in row.source


@pytest.mark.parametrize(
    "name, value", [("benchmark", "cv-bench"), ("protocol", "spatial-mllm"), ("data_fingerprint", "def")]
)
def test_runs_that_cannot_be_compared_cannot_stand_beside(folder, name, value):
    with refused(f"`{name}`", f"`{value}`"):
        reference_rows(RUN | {name: value}, [folder])


LABELS = {
    "a/b": {"label": "a/b"},
    "Qwen2.5-VL-3B": {"model": "Qwen/Qwen2.5-VL-3B"},
    "of.jsonl": {"model": None, "predictions": "answers/of.jsonl"},
    "this run": {"model": None},
}


@pytest.mark.parametrize("label", LABELS)
def test_rows_are_named_by_label_model_or_file(label, tmp_path):
    report_on(tmp_path, make_questions(20), **LABELS[label])
    assert read_report(tmp_path)["label"] == label


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"label": "of another command"}'])
def test_missing_damaged_and_other_reports_are_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with refused(f"`{tmp_path}", "report.json"):
        read_report(tmp_path)


def test_questions_need_one_prediction_each(tmp_path):
    others = {"x": "A"} | {name: text for name, text in PREDICTIONS.items() if name != "0"}
    for questions, predictions, tokens in (([], {}, ["`questions`"]), (QUESTIONS, others, ["2 ids", "0, x"])):
        with refused(*tokens):
            write_report(tmp_path, RUN, questions, predictions, PROTOCOL, [], {})


@pytest.mark.parametrize("prediction", ["", " ", "ja\nnein\u2028\x85", "é | `x` 木", "cut \ud83d", "$x_1$"])
def test_answers_of_any_text_are_reported_and_read_again(prediction, tmp_path):
    questions = make_questions(20)
    predictions = {question.id: "A" if len(question.id) == 1 else prediction for question in questions}
    write_report(tmp_path, RUN, questions, predictions, PROTOCOL, [], {})
    assert read_predictions(tmp_path / "answers.jsonl", questions)["19"] == prediction


def test_tables_align_and_keep_bars_and_line_breaks_inside_cells():
    table = format_table(["a", "number"], [["x|y\nz", "1"], ["", "22.5"]], num_words=1)
    assert table.split("\n") == [
        "| a      | number |",
        "| ------ | -----: |",
        "| x\\|y z |      1 |",
        "|        |   22.5 |",
    ]
