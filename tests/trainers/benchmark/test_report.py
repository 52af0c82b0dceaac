"""Reports of benchmark runs: their figures, what they say beside these, and answers that others gave."""

import json
from statistics import fmean

import pytest
from benchmark_runs import PREDICTIONS, PROTOCOL, QUESTIONS, RUN, make_predictions, make_questions, write_without_chart
from matplotlib.figure import Figure
from PIL import Image

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.data_scripts.benchmarks.vsi_bench import DIRECTIONS, QUESTION_TYPES
from spa3r.trainers.benchmark import report as benchmark_report
from spa3r.trainers.benchmark.paper_results import PUBLISHED_ROWS, reference_rows
from spa3r.trainers.benchmark.report import format_table, read_predictions, read_report, write_report

# Some runs here lack kinds of questions on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:VSI-Bench. there are no answers")

ROWS = [("Somebody's model", {"overall": 51.25, "route_planning": 30.0}, "a paper")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    write_report(folder, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    return folder


def report_on(tmp_path, questions=QUESTIONS, rows=(), baselines=None, protocol=PROTOCOL, **run):
    """The Markdown page of a run."""
    write_without_chart(tmp_path, RUN | run, questions, make_predictions(questions), protocol, rows, baselines or {})
    return (tmp_path / "report.md").read_text()


def cells(page, first):
    """Cells of the row of a table that begins with some text."""
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
    tasks = {kind: mean for kind, mean in means.items() if kind not in DIRECTIONS}
    direction = fmean(means[kind] for kind in DIRECTIONS)
    assert written["overall"] == pytest.approx(fmean([*tasks.values(), direction]))


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


def test_the_run_is_kept_as_it_is(folder):
    assert read_report(folder)["provenance"] == RUN


def test_what_is_returned_is_what_is_written(tmp_path):
    report = write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    assert json.loads(json.dumps(report)) == read_report(tmp_path)


def test_equal_arguments_give_equal_bytes_and_no_other_files(folder, tmp_path):
    write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["answers.jsonl", "report.json", "report.md", "report.png"]
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_the_report_is_there_only_when_all_is(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_report, "draw_report", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    with pytest.raises(ValueError, match=r"holds no report: there is no report\.json in it"):
        read_report(tmp_path)


def test_the_chart_is_a_picture_without_software_and_date(folder):
    with Image.open(folder / "report.png") as image:
        image.load()
        assert min(image.size) > 300 and image.info.keys() == {"dpi"}


def test_numbers_in_the_chart_stand_clear_of_the_markers_of_others():
    axes = Figure().subplots()
    column = {"key": "overall", "heading": "Avg.", "value": 0.2, "low": None, "high": None}
    benchmark_report._draw_columns(axes, [column], [("others", {"overall": 62.1})], num_rows=1)
    ((number,), (position, _)) = [text.get_text() for text in axes.texts], axes.texts[0].xy
    assert number == "20.0" and position > 100


def test_charts_do_not_follow_the_users_style(folder, tmp_path):
    with benchmark_report.matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 20}):
        write_report(tmp_path, RUN, QUESTIONS, PREDICTIONS, PROTOCOL, ROWS, {})
    assert (tmp_path / "report.png").read_bytes() == (folder / "report.png").read_bytes()


def test_the_page_has_the_papers_columns_and_the_run_in_bold(folder):
    page, report = (folder / "report.md").read_text(), read_report(folder)
    assert page.startswith("# vsi-bench: spa3-vlm-4b.v2\n")
    assert cells(page, "Model") == ["Model", *PROTOCOL.columns.values(), "Source"]
    own = [f"**{100 * column['value']:.1f}**" for column in report["columns"]]
    assert cells(page, "**spa3-vlm-4b.v2**") == ["**spa3-vlm-4b.v2**", *own, "this run"]
    ends = [f"{100 * column['low']:.1f}–{100 * column['high']:.1f}" for column in report["columns"]]
    assert cells(page, "95 % interval")[1:-1] == ends


def test_figures_of_others_stand_beside_in_percent(folder):
    page = (folder / "report.md").read_text()
    assert cells(page, "Somebody's model") == ["Somebody's model", "51.2", *"––––––", "30.0", "–", "a paper"]


def test_groups_are_shown_with_their_numbers(folder):
    page = (folder / "report.md").read_text()
    for group in read_report(folder)["groups"]:
        name, questions, scenes, score, _ = cells(page, group["name"])
        asked = [question for question in QUESTIONS if question.record["question_type"] == name]
        assert int(questions) == len(asked) and int(scenes) == len({question.scene_id for question in asked})
        assert score == f"{100 * group['value']:.1f}"


def test_provenance_is_listed(folder):
    page = (folder / "report.md").read_text()
    assert "\n- num_frames: `32`\n" in page and "\n- versions: torch `2.13.0`, numpy `2.4.6`\n" in page


def test_long_lists_are_cut_on_the_page_only(tmp_path):
    missing = [f"videos/{number}.mp4" for number in range(40)]
    page = report_on(tmp_path, missing=missing)
    assert "`videos/4.mp4`, and 35 more (in report.json)" in page and "videos/5.mp4" not in page
    assert read_report(tmp_path)["provenance"]["missing"] == missing


def test_baselines_are_joined_into_columns_like_the_run(tmp_path):
    frequency = {kind: number / 10 for number, kind in enumerate(QUESTION_TYPES)}
    page = report_on(tmp_path, benchmark="rooms", baselines={"frequency": frequency}, published_size=None)
    expected = PROTOCOL.summarize(frequency, dict.fromkeys(frequency, 1))
    row = ["frequency", *(f"{100 * value:.1f}" for value in expected.values()), "without a look"]
    assert cells(page, "frequency") == row
    assert cells(page, "Questions of")[-1] == "frequency" and cells(page, "object_rel_distance")[-1] == "30.0"
    assert "**Note.**" not in page


def test_baselines_are_over_the_groups_that_were_asked(tmp_path):
    questions = make_questions(types=QUESTION_TYPES[3:5])
    baseline = {QUESTION_TYPES[0]: 0.9, QUESTION_TYPES[3]: 0.2}
    page = report_on(tmp_path, questions, benchmark="rooms", baselines={"blind": baseline})
    assert cells(page, "blind")[1] == "20.0"
    assert f"“blind” is not known for {QUESTION_TYPES[4]}" in page


NOTES = {
    "fewer questions than published": ({}, "The run is about 300 questions, the published set has 5,130"),
    "a part of unknown size": ({"published_size": None}, "The questions are not the whole published set"),
    "a limit": ({"limit": 300}, "The run was limited to the first 300 questions of the file."),
    "missing media": ({"missing": ["a.mp4", "b.mp4"]}, "Questions about 2 videos or images were left out"),
    "unreadable media": ({"unreadable": {"7": "It is cut."}}, "Left out as unreadable: 1 question (7)."),
}


@pytest.mark.parametrize("run, note", NOTES.values(), ids=NOTES)
def test_notes_say_what_is_not_comparable(run, note, tmp_path):
    assert f"- **Note.** {note}" in report_on(tmp_path, **run)


def test_a_whole_run_has_no_notes(tmp_path):
    assert "**Note.**" not in report_on(tmp_path, published_size=300)


def test_missing_kinds_of_questions_are_noted(tmp_path):
    kinds = [kind for kind in QUESTION_TYPES if kind not in ("route_planning", "object_rel_direction_easy")]
    page = report_on(tmp_path, make_questions(types=kinds))
    assert "- **Note.** There are no questions of object_rel_direction_easy, route_planning:" in page
    assert cells(page, "**spa3-vlm-4b.v2**")[-3] == "–"


def test_another_protocol_than_that_of_published_figures_is_noted(tmp_path):
    page = report_on(tmp_path, protocol=BENCHMARKS["vsi-bench"]["lmms-eval-2026"])
    assert "scored by the protocol `official`, and this run by `lmms-eval-2026`" in page


def test_few_scenes_are_noted(tmp_path):
    assert "too narrow: 5 scenes are too few" in report_on(tmp_path, make_questions(num_scenes=5))


def test_a_single_scene_has_no_intervals(tmp_path):
    page = report_on(tmp_path, make_questions(num_scenes=1))
    assert "there are no intervals" in page and set(cells(page, "95 % interval")[1:-1]) == {"–"}


@pytest.mark.parametrize("benchmark", list(PUBLISHED_ROWS))
def test_published_rows_name_columns_of_every_protocol(benchmark):
    for protocol in BENCHMARKS[benchmark].values():
        for row in PUBLISHED_ROWS[benchmark]:
            assert row.columns.keys() <= protocol.columns.keys()


@pytest.mark.parametrize("benchmark, overall", [("vsi-bench", 58.6), ("cv-bench", 75.6), ("spar-bench", 58.4)])
def test_published_rows_end_with_the_papers_model(benchmark, overall):
    row = reference_rows({"benchmark": benchmark})[-1]
    assert (row.label, row.columns["overall"]) == ("Spa3-VLM-4B", overall)


def test_published_averages_are_the_means_of_their_tasks():
    rows = [row for row in PUBLISHED_ROWS["vsi-bench"] if len(row.columns) == 9 and "Chance" not in row.label]
    assert len(rows) == 5
    for row in rows:
        tasks = [value for column, value in row.columns.items() if column != "overall"]
        assert abs(sum(tasks) / 8 - row.columns["overall"]) < 0.06, row.label


def test_nothing_is_published_about_rooms():
    assert reference_rows({"benchmark": "rooms"}) == []


def test_other_runs_are_further_rows(folder):
    row = reference_rows(RUN, [folder])[-1]
    expected = {column["key"]: 100 * column["value"] for column in read_report(folder)["columns"]}
    assert row == ("spa3-vlm-4b.v2", expected, "run `run`, 300 questions")


@pytest.mark.parametrize(
    "name, value", [("benchmark", "cv-bench"), ("protocol", "spatial-mllm"), ("data_fingerprint", "def")]
)
def test_runs_that_cannot_be_compared_cannot_stand_beside(folder, name, value):
    with pytest.raises(ValueError, match=f"cannot stand beside this one, as its {name} is `.*`, and not `{value}`"):
        reference_rows(RUN | {name: value}, [folder])


def test_rows_are_named_by_label_model_or_file(tmp_path):
    names = [{"label": "a/b"}, {"model": "Qwen/Qwen2.5-VL-3B"}, {"model": None, "predictions": "answers/of.jsonl"}, {}]
    labels = [benchmark_report._label(run) for run in names]
    assert labels == ["a/b", "Qwen2.5-VL-3B", "of.jsonl", "this run"]


def test_damaged_reports_are_refused(tmp_path):
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json` is damaged"):
        read_report(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '{"label": "of another command"}'])
def test_reports_of_another_kind_are_refused(content, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=r"report\.json` is no report of a benchmark"):
        read_report(tmp_path)


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is nothing to report"):
        write_report(tmp_path, RUN, [], {}, PROTOCOL, [], {})


def test_questions_without_a_prediction_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"differ in 2 ids \(0, x\)"):
        predictions = {"x": "A"} | {name: text for name, text in PREDICTIONS.items() if name != "0"}
        write_report(tmp_path, RUN, QUESTIONS, predictions, PROTOCOL, [], {})


@pytest.mark.parametrize("prediction", ["", " ", "ja\nnein\u2028\x85", "é | `x` 木", "cut \ud83d", "$x_1$"])
def test_answers_of_any_text_are_reported_and_read_again(prediction, tmp_path):
    questions = make_questions(20)
    write_report(
        tmp_path,
        RUN,
        questions,
        dict.fromkeys("0123456789", "A") | dict.fromkeys(map(str, range(10, 20)), prediction),
        PROTOCOL,
        [],
        {},
    )
    assert read_predictions(tmp_path / "answers.jsonl", questions)["19"] == prediction


def test_tables_align_and_keep_bars_and_line_breaks_inside_cells():
    table = format_table(["a", "number"], [["x|y\nz", "1"], ["", "22.5"]], num_words=1)
    assert table.split("\n") == [
        "| a      | number |",
        "| ------ | -----: |",
        "| x\\|y z |      1 |",
        "|        |   22.5 |",
    ]


def written(tmp_path, *lines):
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


THREE = QUESTIONS[:3]


def test_predictions_are_read_in_the_order_of_the_questions(tmp_path):
    lines = ['{"id": "2", "prediction": "C"}', "", '{"id": 0, "prediction": " A ", "seconds": 3}']
    path = written(tmp_path, *lines, '{"id": "1", "prediction": "é"}')
    assert list(read_predictions(path, THREE).items()) == [("0", " A "), ("1", "é"), ("2", "C")]


GOOD = [json.dumps({"id": str(number), "prediction": "A"}) for number in range(3)]
REFUSED = {
    "empty": ([], "holds no answers"),
    "blank": (["", " "], "holds no answers"),
    "bad JSON": ([*GOOD[:2], '{"id": "2", "prediction": "A'], "Line 3 of .* is not JSON"),
    "a list": (['["0", "A"]'], "Line 1 of .* is no object with `id` and `prediction`"),
    "no prediction": ([GOOD[0], '{"id": "1", "unreadable": "cut"}'], "Line 2 of .* is no object with `id` and"),
    "a number": (['{"id": "0", "prediction": 3}'], "Line 1 of .* has a `prediction` that is not text"),
    "no id": (['{"id": null, "prediction": "A"}'], "Line 1 of .* has an `id` that is neither"),
    "twice": ([*GOOD, GOOD[1]], "Line 4 of .* answers question 1 again"),
    "other questions": (
        [*GOOD, *(json.dumps({"id": f"x{number}", "prediction": "A"}) for number in range(1200))],
        r"answers to 1,200 questions that are not asked \(x0, x1, x2, x3, x4, …\)",
    ),
    "too few": (GOOD[1:2], r"lacks the answers to 2 of 3 questions \(0, 2\)"),
}


@pytest.mark.parametrize("lines, message", REFUSED.values(), ids=REFUSED)
def test_predictions_that_cannot_be_scored_are_refused(lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_predictions(written(tmp_path, *lines), THREE)


def test_predictions_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_predictions(tmp_path / "weights.bin", THREE)
