import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.base import PipelineStep
from web_pages import write_site

from mm1_hf.corpus.dataset_files import WriteDataset
from mm1_hf.corpus.fetch_images import FetchImages
from mm1_hf.corpus.page_files import ReadPages
from mm1_hf.corpus.report import read_counts
from mm1_hf.corpus.stages import SlurmOptions, Stage, data_folder, run_stages, work_folder
from mm1_hf.corpus.steps import CountedReader, DocumentRule
from mm1_hf.corpus.storage import ReadDocuments, WriteDocuments, read_documents
from mm1_hf.data.documents import Unusable


class Numbers(CountedReader):
    """The numbers below ten, of which seven is broken."""

    def __init__(self) -> None:
        super().__init__("numbers")

    def read(self, rank, world_size):
        for number in range(rank, 10, world_size):
            document = EngineDocument(str(number), f"number {number}")
            yield document if number != 7 else (document, Unusable("seven"))


def odd(document: EngineDocument) -> str | None:
    return "odd" if int(document.text) % 2 else None


class Once(PipelineStep):
    """Fails in a task of a rank, unless a file is there."""

    name, type = "once", "test"

    def __init__(self, flag: str, rank: int) -> None:
        super().__init__()
        self.flag, self.rank = flag, rank

    def run(self, data, rank=0, world_size=1):
        if rank == self.rank and not os.path.exists(self.flag):
            raise ConnectionError("the server is gone")
        yield from data


def two_stages(output, *more: PipelineStep) -> list[Stage]:
    numbers, even = (work_folder(output, name) for name in ("numbers", "even"))
    return [
        Stage("read", [Numbers(), WriteDocuments(numbers)]),
        Stage("filter", [ReadDocuments(numbers), DocumentRule("parity", odd), *more, WriteDocuments(even)]),
    ]


def even(output) -> list[str]:
    files = sorted((output / "work" / "even").iterdir())
    return sorted(document.text for file in files for document in read_documents(file))


def started(output) -> list[str]:
    """The tasks that have run or tried to, by the logs that datatrove writes anew each time."""
    return sorted(str(file.relative_to(output / "steps")) for file in (output / "steps").glob("*/logs/*.log"))


@pytest.mark.parametrize("tasks", [1, 3])
def test_stages_run_one_after_the_other_and_are_counted(tasks, tmp_path, capfd):
    output = tmp_path / "out"
    run_stages(two_stages(output), output, tasks=tasks)
    assert even(output) == ["0", "2", "4", "6", "8"]
    assert [(step.stage, step.name, step.counts) for step in read_counts(output) if step.counts] == [
        ("read", "numbers", {"dropped: seven": 1, "kept": 9}),
        ("filter", "parity", {"dropped: odd": 4, "kept": 5}),
    ]
    assert json.loads((output / "counts.json").read_text())[1] == {
        "stage": "filter",
        "step": "parity",
        "dropped: odd": 4,
        "kept": 5,
    }
    # datatrove's reports are in a file.
    assert capfd.readouterr().out == ""


def test_a_failed_run_is_resumed_where_it_stopped(tmp_path):
    output, flag = tmp_path / "out", tmp_path / "mended"
    with pytest.raises(ConnectionError):
        run_stages(two_stages(output, Once(str(flag), 1)), output, tasks=3)
    assert not (output / "counts.json").exists()
    completed = output / "steps" / "02-filter" / "completions"
    assert [file.name for file in completed.iterdir()] == ["00000"]
    before = {file: file.stat().st_mtime_ns for file in (output / "work").rglob("*.parquet")}
    left = output / "work" / "even" / ".00001.parquet.killed.partial"
    left.write_text("cut off")
    flag.touch()
    run_stages(two_stages(output, Once(str(flag), 1)), output, tasks=3)
    assert even(output) == ["0", "2", "4", "6", "8"]
    assert len(before) == 4 and all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert not left.exists()
    assert read_counts(output)[3].counts == {"dropped: odd": 4, "kept": 5}


def test_a_resumed_run_must_be_the_same(tmp_path):
    output = tmp_path / "out"
    run_stages(two_stages(output), output, tasks=2, started_with={"inputs": ("a",), "download": False})
    with pytest.raises(
        ValueError, match=r"holds a run with other settings: download was False and is True now; tasks was 2"
    ):
        run_stages(two_stages(output), output, tasks=3, started_with={"inputs": ("a",), "download": True})
    # Workers and executors may be others.
    run_stages(two_stages(output), output, tasks=2, workers=2, started_with={"inputs": ("a",), "download": False})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"is not empty and holds no run. Give a new folder, or that of the run to resume"
    ):
        run_stages(two_stages(tmp_path), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_two_processes_do_not_run_in_one_folder(tmp_path):
    output = tmp_path / "out"
    run_stages(two_stages(output), output)
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'rb+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", script, str(output / "run.json")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=r"Another process is running in .*out. Wait until it ends, or end it"):
            run_stages(two_stages(output), output)
        other.stdin.close()
    run_stages(two_stages(output), output)


@pytest.mark.parametrize("names", [["a", "a"], ["A b"], ["../a"], ["report"], [""]])
def test_names_of_stages_are_those_of_folders(names, tmp_path):
    with pytest.raises(ValueError, match="Give every stage a name of its own, of lower-case letters"):
        run_stages([Stage(name, [Numbers()]) for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_has_stages(tmp_path):
    with pytest.raises(ValueError, match="There are no stages to run"):
        run_stages([], tmp_path / "out")


def test_options_of_slurm_belong_to_slurm(tmp_path):
    with pytest.raises(ValueError, match="Slurm needs the name of a partition and a time limit"):
        run_stages(two_stages(tmp_path), tmp_path / "out", executor="slurm")
    with pytest.raises(ValueError, match="the executor is local: leave them out"):
        run_stages(two_stages(tmp_path), tmp_path / "out", slurm=SlurmOptions("cpu", "1:00:00"))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A queue that keeps the jobs in the place of Slurm: `sbatch` stores them, and they run when the test says so."""
    commands, queue = tmp_path / "bin", tmp_path / "queue"
    commands.mkdir()
    queue.mkdir()
    sbatch = (
        f"#!/bin/bash\nnumber=$(ls {queue} | wc -l)\nfor last; do true; done\n"
        f'cp "$last" {queue}/job-$number.sh\necho "$@" > {queue}/job-$number.options\n'
        "echo Submitted batch job $((number / 2))\n"
    )
    # It runs its command once for each task of the job, of which there is one here.
    srun = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n'
    scontrol = "#!/bin/bash\necho here\n"
    for name, script in (("sbatch", sbatch), ("srun", srun), ("scontrol", scontrol)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return queue


def test_jobs_of_slurm_wait_for_each_other(slurm, tmp_path):
    output = tmp_path / "out"
    stages = [*two_stages(output), Stage("single", [Numbers()], tasks=1)]
    run_stages(stages, output, tasks=3, workers=2, executor="slurm", slurm=SlurmOptions("cpu", "2:00:00"))
    jobs = sorted(slurm.glob("*.sh"), key=lambda file: int(re.findall(r"\d+", file.name)[0]))
    # Each stage has its job, and one that adds up its statistics.
    scripts = [job.read_text() for job in jobs]
    options = [job.with_suffix(".options").read_text() for job in jobs]
    names = [re.search("#SBATCH --job-name=(.+)", script)[1] for script in scripts]
    runs = [index for index, script in enumerate(scripts) if "launch_pickled_pipeline" in script]
    assert [names[index] for index in runs] == [f"mm1-data-{name}" for name in ("read", "filter", "single", "report")]
    first = scripts[runs[0]]
    for line in ("--partition=cpu", "--time=2:00:00", "--array=0-2%2", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in first
    assert "#SBATCH --array=0-0" in scripts[runs[2]]
    assert not re.search("qos|mail|conda", first)
    assert "--dependency" not in options[runs[0]]
    assert [f"--dependency=afterok:{index}" in options[runs[place + 1]] for place, index in enumerate(runs[:-1])] == [
        True
    ] * 3
    assert not (output / "counts.json").exists()


def small_way(output, site) -> list[Stage]:
    """Of steps of the package, which the processes of a cluster can import."""
    pages = work_folder(output, "pages")
    return [
        Stage("pages", [ReadPages([str(site)]), WriteDocuments(pages)]),
        Stage(
            "data",
            [ReadDocuments(pages), FetchImages(work_folder(output, "locks")), WriteDataset(data_folder(output))],
        ),
    ]


@pytest.mark.slow
def test_jobs_of_slurm_run_as_their_scripts_say(slurm, tmp_path):
    site = write_site(tmp_path / "site")
    run_stages(small_way(tmp_path / "local", site), tmp_path / "local", tasks=2)
    output = tmp_path / "out"
    stages = small_way(output, site)
    run_stages(stages, output, tasks=2, executor="slurm", slurm=SlurmOptions("cpu", "1:00:00"))
    for job in sorted(slurm.glob("*.sh"), key=lambda file: int(re.findall(r"\d+", file.name)[0])):
        last = re.search(r"--array=0-(\d+)", job.read_text())
        for index in range(int(last[1]) + 1 if last and "launch_pickled_pipeline" in job.read_text() else 1):
            environment = {
                **os.environ,
                "SLURM_ARRAY_TASK_ID": str(index),
                "SLURM_NODELIST": "here",
                "RUN_OFFSET": "0",
            }
            # The jobs enter the environment of Python by themselves, from any folder.
            environment.pop("PYTHONPATH", None)
            found = subprocess.run(["bash", str(job)], env=environment, cwd="/", capture_output=True, text=True)
            assert found.returncode == 0, found.stderr
    assert contents(output / "data") == contents(tmp_path / "local" / "data") != {}
    assert (output / "counts.json").read_text() == (tmp_path / "local" / "counts.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_runs_the_same_stages_with_two_workers(tmp_path):
    import ray

    site = write_site(tmp_path / "site")
    # The paths of Ray's sockets have to be short.
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder)
        try:
            for executor in ("ray", "local"):
                output = tmp_path / executor
                run_stages(
                    small_way(output, site), output, tasks=2, workers=2 if executor == "ray" else 1, executor=executor
                )
        finally:
            ray.shutdown()
    assert contents(tmp_path / "ray" / "data") == contents(tmp_path / "local" / "data") != {}


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
