"""The command `spa3r`: its verbs and their helps."""

import pytest
from terminal import verb

from spa3r.data_scripts.benchmarks import BENCHMARKS
from spa3r.trainers.integrations.cli import VERBS, main

SCREEN = 60


@pytest.mark.parametrize("name", VERBS)
def test_the_help_of_a_verb_fits_a_screen(name, capsys):
    try:
        verb(name)(["--help"])
    except SystemExit as ended:
        assert not ended.code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: spa3r {name} ") and len(lines) <= SCREEN


def test_the_help_of_an_option_names_its_choices(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        verb("benchmark")(["--help"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  --benchmark ")]
    assert all(name in line for name in BENCHMARKS)


def test_the_help_lists_every_verb(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in VERBS)


def test_an_unknown_verb_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match="`fly`") as ended:
        main(["fly"])
    assert all(name in str(ended.value) for name in VERBS)
