"""One run in a folder at a time."""

from concurrent.futures import ThreadPoolExecutor

from refusals import refused

from spa3r.data_scripts.common.locks import only_run_in


def enter(folder, is_main_process=True):
    with only_run_in(folder, is_main_process):
        return True


def elsewhere(*arguments):
    """`enter`, from another thread: for the lock as good as another process."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(enter, *arguments).result()


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    with only_run_in(tmp_path):
        with refused(str(tmp_path)):
            elsewhere(tmp_path)
    assert elsewhere(tmp_path)


def test_other_processes_of_a_launch_may_enter(tmp_path):
    with only_run_in(tmp_path):
        assert elsewhere(tmp_path, False)


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    enter(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_that_was_there_stays(tmp_path):
    enter(tmp_path)
    assert tmp_path.is_dir()
