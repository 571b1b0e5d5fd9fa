"""Runs on disk: hostile paths and hostile contents, each one line; nothing half-written."""

import json
import os
import resource
import stat
import zipfile

import numpy as np
import pytest
from test_run import ARRAYS, OwnLoss, problem, simulate

import mbsim
from mbsim import InvalidArgument, MicroBatchClipping, Run
from mbsim._shared.files import replacing, writable_folder


def one_line(caught, *parts):
    message = str(caught.value)
    assert type(caught.value) is InvalidArgument
    assert "\n" not in message
    assert len(message) <= 400
    for part in parts:
        assert part in message
    return message


# ------------------------------------------------------------------------- paths


@pytest.fixture
def places(tmp_path):
    """Paths that are no regular file, by name."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to_folder").symlink_to(tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"x")
    return {
        "folder": tmp_path / "folder",
        "pipe": tmp_path / "pipe",
        "dangling link": tmp_path / "dangling",
        "looping link": tmp_path / "loop",
        "link to a folder": tmp_path / "to_folder",
        "device": "/dev/null",
        "full device": "/dev/full",
        "empty": "",
        "dot": ".",
        "dots": "..",
        "zero byte": "a\0b",
        "surrogate": "\ud800",
        "None": None,
        "number": 3,
        "bytes": b"run",
        "list": ["run"],
        "too long": "x" * 300,
        "too deep": "x/" * 5000,
        "missing folder": tmp_path / "absent" / "run",
        "through a file": tmp_path / "file" / "run",
        "trailing slash": str(tmp_path / "new") + "/",
    }


def test_hostile_paths_are_one_line_and_nothing_changes(places, tmp_path):
    run = simulate(replicates=2, steps=2)
    before = sorted((p.name, p.lstat().st_mode) for p in tmp_path.rglob("*"))
    for path in places.values():
        with pytest.raises(InvalidArgument) as caught:
            run.save(path)
        one_line(caught, "path=", "must be a file that can be written: ")
        with pytest.raises(InvalidArgument) as caught:
            Run.load(path)
        one_line(caught, "path=", "must be a file written by Run.save: ")
    assert sorted((p.name, p.lstat().st_mode) for p in tmp_path.rglob("*")) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_a_file_is_written_through(tmp_path):
    run = simulate(replicates=2, steps=2)
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "link2").symlink_to(tmp_path / "link")
    run.save(tmp_path / "link2")
    assert (tmp_path / "link2").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert Run.load(tmp_path / "real") == run == Run.load(tmp_path / "link2")
    assert len(list(tmp_path.iterdir())) == 3


def test_modes_are_those_of_the_file_or_of_any_new_one(tmp_path):
    run = simulate(replicates=2, steps=2)
    old = os.umask(0o027)
    try:
        run.save(tmp_path / "new")
        (tmp_path / "old").write_bytes(b"")
        (tmp_path / "old").chmod(0o604)
        run.save(tmp_path / "old")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    run = simulate(replicates=2, steps=2)
    run.save(tmp_path / ("x" * 255))
    assert Run.load(tmp_path / ("x" * 255)) == run


def test_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = simulate(replicates=2, steps=2)
    run.save("run")
    assert Run.load("run") == run


@pytest.mark.skipif(os.geteuid() == 0, reason="a folder is never read-only to root")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InvalidArgument) as caught:
        simulate(replicates=2, steps=2).save(tmp_path / "run")
    one_line(caught, "Permission denied")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files is as good as a full disk."""
    import signal

    run = simulate(replicates=2, steps=2)
    run.save(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(InvalidArgument) as caught:
            simulate().save(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    one_line(caught, "path=", "File too large")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert Run.load(tmp_path / "run") == run


def test_a_failing_or_interrupted_body_leaves_nothing(tmp_path):
    def half(error):
        with replacing(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            half(error)
    assert not list(tmp_path.iterdir())


def test_folders_to_write_to(places, tmp_path):
    for name in ("folder", "link to a folder", "dot"):
        assert writable_folder(places[name], "out").is_dir()
    assert writable_folder(tmp_path / "a" / "b", "out").is_dir()
    refused = ("pipe", "device", "empty", "zero byte", "surrogate", "None", "number", "too long",
               "through a file", "dangling link", "looping link")  # fmt: skip
    for name in refused:
        with pytest.raises(InvalidArgument) as caught:
            writable_folder(places[name], "out")
        one_line(caught, "out=", "must be a folder that can be written to")
    with pytest.raises(InvalidArgument, match="out="):
        mbsim.reproduce(out=places["zero byte"])


# ------------------------------------------------------------------------- contents


@pytest.fixture
def saved(tmp_path):
    """A saved run with two diverged replicates of four, and a function that saves it changed."""
    steep = problem(loss=mbsim.losses.Quadratic([1.0, *[0.1] * 7]), draggers=None)
    settings = {"step_size": 2.2, "steps": 38, "record_every": 4}
    whole = simulate(steep, mbsim.SGD(), **settings, replicates=128)
    some = np.concatenate(
        [np.flatnonzero(which)[:2] for which in (whole.diverged, ~whole.diverged)]
    )
    arrays = {name: getattr(whole, name)[some].copy() for name in ARRAYS}
    run = mbsim.simulation.run.Run(**{**vars(whole), **arrays})
    path = tmp_path / "run"
    run.save(path)
    assert Run.load(path) == run
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    meta = json.loads(str(content.pop("meta")))

    def change(text=None, drop=(), **changes):
        plain = {k: changes.pop(k, v) for k, v in meta.items() if k not in drop}
        new = {k: changes.pop(k, v) for k, v in content.items() if k not in drop}
        text = json.dumps(plain | {k: v for k, v in changes.items() if not hasattr(v, "dtype")}
                          if text is None else text(plain))  # fmt: skip
        new |= {k: v for k, v in changes.items() if hasattr(v, "dtype")}
        with path.open("wb") as file:
            np.savez(file, meta=np.array(text if text is not None else ""), **new)
        return Run.load(path)

    assert change() == run
    change.content, change.meta, change.path = content, meta, path
    return change


def test_the_message_names_what_is_wrong(saved, monkeypatch):
    monkeypatch.chdir(saved.path.parent)
    with pytest.raises(InvalidArgument):
        saved(batch_size="x")
    with pytest.raises(InvalidArgument) as caught:
        Run.load("run")
    assert str(caught.value) == (
        "path='run' must be a file written by Run.save: "
        "batch_size='x' must be an integer of at least 1"
    )


BAD_PLAIN = {
    "batch_size": ["x", 0, -1, 2.5, True, None, 10**30, [6]],
    "step_size": ["x", 0, -0.1, None, [0.1], 10**400, True],
    "engine": ["auto", "fast", 3, None, ["exact_law"]],
    "seed": [5, None, [5], [5, 3], [5, [-1]], [5, [0.5]], [-5, []], ["5", []], [True, []],
             [None, []], [[1, "2"], []], {"5": []}],
    "method": [3, None, "SGD", [], {}, {"mbsim": "SGD", "more": 1}, {"mbsim": "Popen"},
               {"mbsim": "Gaussian", "sigma": 1.0}, {"mbsim": "MicroBatchClipping"},
               {"mbsim": "MicroBatchClipping", "micro_batch_size": 4,
                "rule": {"mbsim": "SmallestNorm"}},
               {"mbsim": "MicroBatchClipping", "micro_batch_size": 2, "rule": {"mbsim": "SGD"}},
               {"mbsim": ["SGD"]}, {"foreign": "x"}],
    "problem": [3, None, "x", {"mbsim": "SGD"}, {"mbsim": "Problem"}, {"foreign": "a.b"}],
    "versions": [None, 3, {"mbsim": 3}, []],
    "format": ["mbsim run 1", "mbsim run 99", None, 2],
    "surplus": [1],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PLAIN)
def test_wrong_settings_are_refused(saved, name):
    for bad in BAD_PLAIN[name]:
        with pytest.raises(InvalidArgument) as caught:
            saved(**{name: bad})
        one_line(caught, "path=", "must be a file written by Run.save: ")


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "a string"},
        {"loss": {"foreign": "a.B"}},
        {"loss": {"mbsim": "LogCosh", "dim": 10**15}},
        {"loss": {"mbsim": "Quadratic", "eigenvalues": [1.0, -1.0] * 4}},
        {"loss": {"mbsim": "Quadratic", "eigenvalues": "x"}},
        {"noise": {"mbsim": "Gaussian", "sigma": True}},
        {"noise": {"mbsim": "Gaussian", "sigma": 1.0, "df": 3.0}},
        {"draggers": None},
        {"benign_dim": 4.5},
        {"benign_dim": 9},
        {"start": [0.0] * 7},
        {"start": [1.0] * 7 + [None]},
    ],
    ids=str,
)
def test_a_wrong_problem_is_refused(saved, change):
    with pytest.raises(InvalidArgument) as caught:
        saved(problem=saved.meta["problem"] | change)
    one_line(caught, "path=", "Run.save: ")


def bad_arrays(content):
    loss, steps = content["loss"], content["steps"]
    last = int(steps[-1])
    for name in content:
        array = content[name]
        yield name, array[:-1]
        yield name, array[None]
        yield name, array.ravel()[0]
        yield name, array.astype(np.float32)
        yield name, array.astype(complex)
        yield name, array.astype(str)
        yield name, array.astype(array.dtype.newbyteorder())
        yield name, array[:0]
    yield "steps", steps[::-1].copy()
    yield "steps", steps + 1
    yield "steps", -steps
    yield "steps", np.zeros_like(steps)
    yield "steps", np.where(steps == 8, 9, steps)
    yield "steps", np.where(steps == last, 2**62, steps)
    yield "steps", np.where(steps == 4, -(2**63), steps)
    yield "steps", np.where(steps == last, last + 3, steps)
    for name in ("diverged_at", "stalled_at"):
        for wrong in (-2, last + 1, 2**62, 0):
            if name == "diverged_at" or wrong:
                yield name, np.full_like(content[name], wrong)
    for name in ("loss", "grad_norm_sq", "final_w", "mean_grad_norm_sq"):
        yield name, np.full_like(content[name], np.nan)
        yield name, np.zeros_like(content[name])
        yield name, np.where(np.isnan(content[name]), 1.0, content[name])
        if name != "final_w" and name != "loss":
            yield name, -content[name]
    yield "loss", np.where(np.isnan(loss), loss, np.inf)


def test_wrong_arrays_are_refused(saved):
    for name, array in bad_arrays(saved.content):
        with pytest.raises(InvalidArgument) as caught:
            saved(**{name: np.asarray(array)})
        one_line(caught, "path=", "Run.save: ", "must")


@pytest.mark.parametrize("name", ["meta", "steps", *ARRAYS])
def test_missing_surplus_and_twin_arrays_are_refused(saved, name):
    members = {}
    with zipfile.ZipFile(saved.path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    own = f"{name}.npy"
    twin = [*members.items(), (own, members[own])]
    surplus = [*members.items(), ("more.npy", members["steps.npy"])]
    missing = [item for item in members.items() if item[0] != own]
    for content in (missing, surplus, twin, [*members.items(), (name, members[own])]):
        with zipfile.ZipFile(saved.path, "w") as file, pytest.warns() if content is twin else ok():
            for member, data in content:
                file.writestr(member, data)
        with pytest.raises(InvalidArgument) as caught:
            Run.load(saved.path)
        one_line(caught, "Run.save: ")


def ok():
    import contextlib

    return contextlib.nullcontext()


def test_meta_that_is_not_one_plain_object(saved):
    whole = json.dumps(saved.meta)
    for text in (
        "", "3", "[]", "null", '"x"', "{", whole[:-1], whole + "}", "[" * 100_000,
        whole[:-1] + ', "batch_size": 6}', whole.replace("2.2", "NaN"),
        whole.replace("2.2", "Infinity"), whole.replace("2.2", "1" * 5000),
    ):  # fmt: skip
        with saved.path.open("wb") as file:
            np.savez(file, meta=np.array(text), **saved.content)
        with pytest.raises(InvalidArgument) as caught:
            Run.load(saved.path)
        one_line(caught, "Run.save: ")
    for meta in (np.array([whole]), np.array(whole.encode()), np.ones(3), np.array(None)):
        with saved.path.open("wb") as file:
            np.savez(file, meta=meta, **saved.content)
        with pytest.raises(InvalidArgument) as caught:
            Run.load(saved.path)
        one_line(caught, "Run.save: ")


def header(shape, descr="<f8", data=b"", version=b"\x01\x00"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode() + data


@pytest.mark.parametrize(
    "array",
    [
        header((10**15,)),
        header((10**15, 0)),
        header((2**32, 2**32)),
        header((-1,), data=b"\0" * 8),
        header((-1, -2), data=b"\0" * 16),
        header((2,), data=b"\0" * 8),
        header((1,), data=b"\0" * 16),
        header((), descr="|O", data=b"\0" * 8),
        header((1,), descr="<f8", data=b"\0" * 8, version=b"\x09\x00"),
        header((1,), descr="|V8", data=b"\0" * 8),
        header((1,), descr=f"|S{10**12}"),
        header("__import__('os')"),
        b"",
        b"\x93NUMPY",
        b"x" * 200,
    ],
    ids=range(15),
)
def test_arrays_that_are_not_what_they_say(saved, array, monkeypatch):
    """A header that claims 10¹⁵ numbers allocates nothing."""
    with zipfile.ZipFile(saved.path) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    for name in ("loss.npy", "meta.npy"):
        with zipfile.ZipFile(saved.path, "w") as file:
            for member, data in (members | {name: array}).items():
                file.writestr(member, data)
        with pytest.raises(InvalidArgument) as caught:
            Run.load(saved.path)
        one_line(caught, "Run.save: ")


def test_a_zip_bomb_does_not_go_off(saved):
    """100 MB of zeros in 100 kB."""
    import tracemalloc

    data = header((10**8 // 8,), data=b"\0" * 10**8)
    with zipfile.ZipFile(saved.path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("meta.npy", data)
    del data
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument) as caught:
            Run.load(saved.path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    one_line(caught, "must not be compressed")


def test_runs_of_all_kinds_load(tmp_path):
    """Whatever is saved can be loaded: foreign classes, stalls, divergence, few records."""
    runs = [
        simulate(problem(loss=OwnLoss()), replicates=2),
        simulate(problem(loss=OwnLoss()), replicates=3, step_size=1e300),
        simulate(problem(draggers=mbsim.Draggers(probability=1.0, norm_ratio=0.0)), replicates=2),
        simulate(steps=1, replicates=1),
        simulate(record_every=100, replicates=1),
        simulate(record_every=5, step_size=1e300, engine="reference"),
        simulate(method=MicroBatchClipping(6), replicates=65),
    ]
    for run in runs:
        run.save(tmp_path / "run")
        loaded = Run.load(tmp_path / "run")
        assert loaded.provenance == run.provenance
        for name in (*ARRAYS, "steps"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(run, name))
