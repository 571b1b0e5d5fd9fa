"""Gram matrices: every source, the direct computation, projections, memory, bad input."""

import contextlib
import io
import math
import re
import textwrap
import tracemalloc

import numpy as np
import processes
import pytest
from heavy_gradients import CLOSE, RULES, gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import mbsim
from mbsim import Gram, InvalidArgument, clipping
from mbsim.clipping import UnitNorm
from mbsim.gradients import gram as gram_module

G = gradients(dim=300)
TARGET = np.full(300, 0.3)


def close(found, expected):
    return np.allclose(found, expected, rtol=CLOSE, atol=CLOSE * np.abs(expected).max())


# ------------------------------------------------------------------ the pass


def saved(path, array):
    np.save(path, array)
    return path


SOURCES = {
    "array": lambda folder: G,
    "nested lists": lambda folder: G.tolist(),
    "columns one after another": lambda folder: np.asfortranarray(G),
    "more axes": lambda folder: G.reshape(48, 3, 100),
    "path": lambda folder: saved(folder / "g.npy", G),
    "text of a path": lambda folder: str(saved(folder / "g.npy", G)),
    "path, Fortran order": lambda folder: saved(folder / "g.npy", np.asfortranarray(G)),
    "mapped": lambda folder: np.load(saved(folder / "g.npy", G), mmap_mode="r"),
    "mapped to change": lambda folder: np.load(saved(folder / "g.npy", G), mmap_mode="c"),
    "part of a mapped file": lambda folder: np.load(
        saved(folder / "g.npy", np.concatenate([G, G], axis=1)), mmap_mode="r"
    )[:, :300],
    "blocks": lambda folder: iter([G[:, :7], G[:, 7:100], G[:, 100:]]),
    "blocks of more axes": lambda folder: iter([G[:, :200].reshape(48, 10, 20), G[:, 200:]]),
    "mapping": lambda folder: {"weight": G[:, :200].reshape(48, 20, 10), "bias": G[:, 200:]},
}


@pytest.mark.parametrize("columns", [None, 64, 1])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_products_of_the_rows(source, columns, tmp_path, monkeypatch):
    if columns:  # blocks of few coordinates, none of which ends where the source's do
        monkeypatch.setattr(gram_module, "_BLOCK", columns * 49)
    found = Gram(SOURCES[source](tmp_path), target=TARGET)
    assert close(found.matrix, G @ G.T)
    assert close(found.target_products, G @ TARGET)
    assert math.isclose(found.target_norm, np.linalg.norm(TARGET), rel_tol=CLOSE)
    assert (found.matrix == found.matrix.T).all()
    assert not found.matrix.flags.writeable
    assert found.relative_error == 0
    assert found.examples == 48


def test_blocks_do_not_change_a_digit(tmp_path):
    """To the last bit: what is added up does not depend on how it comes."""
    whole = Gram(G, target=TARGET)
    for source in SOURCES.values():
        assert Gram(source(tmp_path), target=TARGET) == whole


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8", "int64", "longdouble"])
def test_types_with_fewer_digits_are_multiplied_in_float64(kind):
    rounded = np.abs(G).astype(kind)
    assert close(Gram(rounded).matrix, rounded.astype(float) @ rounded.astype(float).T)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rounded = G.astype(ml_dtypes.bfloat16)
    assert close(Gram(rounded).matrix, rounded.astype(float) @ rounded.astype(float).T)


def test_many_examples_are_mirrored_in_tiles():
    many = np.random.default_rng(1).standard_normal((600, 5))
    assert close(Gram(many).matrix, many @ many.T)


def test_a_target_has_the_gradients_names_or_one_order():
    parts = {"weight": G[:, :200].reshape(48, 20, 10), "bias": G[:, 200:]}
    goal = np.arange(300.0)
    as_parts = {"bias": goal[200:], "weight": goal[:200].reshape(20, 10)}
    assert Gram(parts, target=goal) == Gram(parts, target=as_parts)


def test_a_target_from_a_file(tmp_path):
    path = saved(tmp_path / "held_out.npy", TARGET)
    assert Gram(G, target=path) == Gram(G, target=TARGET)


# ------------------------------------------------------------------ blocks of examples, projections


def rows(sizes=(5, 20, 23)):
    return iter(np.split(G, np.cumsum(sizes)[:-1]))


def test_blocks_of_examples_are_kept_within_the_budget():
    assert Gram(rows(), along="examples", target=TARGET) == Gram(G, target=TARGET)
    named = ({"weight": part[:, :200], "bias": part[:, 200:]} for part in rows())
    assert Gram(named, along="examples", target=TARGET) == Gram(G, target=TARGET)
    needed = G.nbytes
    with pytest.raises(InvalidArgument, match=r"^budget=\d+ must be at least .* project=k"):
        Gram(rows(), along="examples", budget=needed - 1)


@pytest.mark.parametrize("k", [1, 7, 64, 299, 300, 1000])
def test_a_projection_is_one_matrix_however_its_blocks_come(k, monkeypatch):
    whole = Gram(G, target=TARGET, project=k, rng=3)
    assert Gram(iter([G[:, :11], G[:, 11:]]), target=TARGET, project=k, rng=3) == whole
    assert Gram(rows(), target=TARGET, project=k, rng=3, along="examples") == whole
    assert whole.relative_error == math.sqrt(2 / k)
    if k < 300:
        assert whole != Gram(G, target=TARGET, project=k, rng=4)
    else:  # no two coordinates meet
        assert close(whole.matrix, G @ G.T)


def test_a_projection_is_linear():
    both = Gram(np.concatenate([G, G[:1] + 2 * G[1:2]]), project=16).matrix
    assert close(both[-1], both[0] + 2 * both[1])


@pytest.mark.parametrize("spread", ["even", "in four coordinates"])
def test_a_projections_error_is_the_one_that_is_stated(spread):
    """Squared norms over 1,500 projections: no bias, and a variance of at most 2/k.

    Both within 4.9 standard errors: wrong once in a million times. Of even coordinates the variance
    is 2/k (1 − k/d), and it must be seen to be there.
    """
    k, d, times = 20, 400, 1500
    x = np.ones(d) if spread == "even" else np.zeros(d)
    x[[0, 100, 205, 399]] += [3.0, 3.1, 3.3, 2.7]  # no signs of them cancel
    square = x @ x
    found = np.array([Gram(x[None], project=k, rng=i).matrix[0, 0] for i in range(times)]) / square
    error = found.std(ddof=1) / math.sqrt(times)
    assert abs(found.mean() - 1) < 4.9 * error
    centred = np.square(found - found.mean())
    slack = 4.9 * centred.std() / math.sqrt(times)
    assert centred.mean() < 2 / k + slack
    if spread == "even":
        assert centred.mean() > 0.9 * 2 / k - slack


# ------------------------------------------------------------------ memory, threads


def test_a_mapped_file_needs_little_memory(tmp_path):
    """Peak memory from outside, in a process of its own: a file of 192 MB, K of 8 kB."""
    path = tmp_path / "big.npy"
    big = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(32, 1_500_000))
    big[:] = np.arange(32)[:, None]
    big.flush()
    del big
    code = textwrap.dedent(
        f"""
        import resource, numpy as np, mbsim
        mbsim.Gram(np.ones((2, 2)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = mbsim.Gram({str(path)!r}, budget=2**25)
        assert found.matrix[3, 5] == 15 * 1_500_000
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        """
    )
    out, err = processes.run(code)
    assert err == ""
    assert float(out) < 96  # MiB: half of the file


def test_the_budget_holds():
    examples = np.ones((64, 40_000), np.float32)  # 10 MB; 20 in float64
    tracemalloc.start()
    Gram(examples, budget=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20 + 4 * 8 * 64**2 + 2**18


def test_threads_do_not_change_a_digit(monkeypatch):
    pytest.importorskip("threadpoolctl")
    code = (
        "import numpy as np, mbsim, hashlib\n"
        "g = np.random.default_rng(0).standard_normal((700, 3000))\n"
        "print(hashlib.sha256(mbsim.Gram(g).matrix.tobytes()).hexdigest())"
    )
    found = set()
    for threads in "12":
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
        found.add(processes.run(code))
    assert len(found) == 1


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("b", [1, 2, 3, 8, 24, 48])
def test_a_step_is_that_of_the_gradients(b, rule):
    gram = Gram(G, target=TARGET)
    for partition in ("contiguous", "random", np.repeat(["x", "y"], 24), np.arange(48) // 24 % 2):
        if b == 48 and not isinstance(partition, str):
            continue
        step = gram.step(b, rule=rule, partition=partition, rng=5)
        means = G[step.members].mean(axis=1)
        update = clipping.update(G[step.members.ravel()], b, rule)
        assert close(step.products, means @ means.T)
        assert close(step.norms, np.linalg.norm(means, axis=1))
        assert close(step.factors, rule.factors(step.norms))
        assert math.isclose(step.update_norm, np.linalg.norm(update), rel_tol=CLOSE)
        along = update @ TARGET / np.linalg.norm(TARGET)
        assert math.isclose(step.progress, along, rel_tol=CLOSE)
        assert math.isclose(step.cosine, along / np.linalg.norm(update), rel_tol=CLOSE)
        assert sorted(step.members.ravel()) == list(range(48))


def test_partitions():
    gram = Gram(G)
    assert gram.step(16).members.tolist() == np.arange(48).reshape(3, 16).tolist()
    random = gram.step(16, partition="random", rng=1)
    assert random == gram.step(16, partition="random", rng=1)
    assert random != gram.step(16, partition="random", rng=2)
    label = np.arange(48) % 3
    members = gram.step(8, partition=label).members
    assert (label[members] == label[members][:, :1]).all()
    assert (np.diff(members) > 0).all()
    some = gram.step(2, examples=[5, 1, 40, 7])
    assert some.members.tolist() == [[5, 1], [40, 7]]
    assert some.progress is None
    assert some.cosine is None


def test_a_step_that_stands_still():
    step = Gram([[1.0, 0.0], [-1.0, 0.0]], target=[1.0, 0.0]).step(1)
    assert (step.update_norm, step.progress, step.cosine) == (0, 0, 0)


@st.composite
def small_sets(draw):
    examples, dim = draw(st.sampled_from([4, 6, 12])), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    return rng.standard_normal((examples, dim)) * np.exp(rng.normal(0, 2, (examples, 1))), rng


@given(small_sets(), st.sampled_from(RULES), st.sampled_from([1, 2]))
def test_rotations_and_permutations_change_nothing(case, rule, b):
    found, rng = case
    examples, dim = found.shape
    target = rng.standard_normal(dim)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    one = Gram(found, target=target).step(b, rule=rule)
    turned = Gram(found @ rotation.T, target=rotation @ target).step(b, rule=rule)
    order = rng.permutation(examples)
    back = np.argsort(order)
    moved = Gram(found[order], target=target).step(b, rule=rule, examples=back)
    for other in (turned, moved):
        assert close(other.norms, one.norms)
        size = one.norms.max()  # of which all that cancels is made
        for name in ("update_norm", "progress"):
            assert abs(getattr(one, name) - getattr(other, name)) <= 1e-7 * size


# ------------------------------------------------------------------ a matrix from elsewhere


def test_a_matrix_from_elsewhere():
    gram = Gram(G, target=TARGET)
    same = Gram.from_matrix(
        gram.matrix, target_products=gram.target_products, target_norm=gram.target_norm
    )
    assert close(same.matrix, gram.matrix)
    assert same.step(8, rule=UnitNorm()).cosine == gram.step(8, rule=UnitNorm()).cosine
    single = (G.astype(np.float32) @ G.astype(np.float32).T).astype(np.float32)
    assert Gram.from_matrix(single).examples == 48
    assert "48 examples, no target" in repr(Gram.from_matrix(single))
    few = gradients(48, 3)  # of rank 3: eigenvalues of 0, and below by rounding
    assert Gram.from_matrix(few @ few.T).examples == 48


def changed(matrix, i, j, number):
    matrix = np.array(matrix)
    matrix[i, j] = matrix[j, i] = number
    return matrix


K = G @ G.T
NAN, INF = float("nan"), float("inf")


def bent(place, number):
    found = G.copy()
    found[place] = number
    return found


def cut(folder):
    path = saved(folder / "cut.npy", G)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def text_file(folder):
    path = folder / "text.npy"
    path.write_text("1 2 3")
    return path


def archive(folder):
    np.savez(folder / "a.npz", G)
    return folder / "a.npz"


def pickled(folder):
    np.save(folder / "o.npy", np.array([[1, None], [2, 3]], object), allow_pickle=True)
    return folder / "o.npy"


# How the message begins, what else it shows, the call.
BAD = [
    ("gradients must be finite", "1 of 48 rows are not: 3", lambda f: Gram(bent((3, 5), NAN))),
    (
        "gradients must be finite",
        "7 of 48 rows are not: 3, 4, 5, 6, 7, …",
        lambda f: Gram(bent(slice(3, 10), INF)),
    ),
    ("gradients must be finite", "1e154", lambda f: Gram(bent(2, 1e200))),
    ("gradients must be finite", "not: 3", lambda f: Gram(bent((3, 5), NAN), project=7)),
    ("gradients must not all be 0", "48 rows", lambda f: Gram(0 * G)),
    ("gradients", "array of real", lambda f: Gram(b"abc")),
    ("gradients", "array of real", lambda f: Gram([[1, 2], [3]])),
    ("gradients", "array of real", lambda f: Gram(G.astype(complex))),
    ("gradients", "array of real", lambda f: Gram(G.astype(object))),
    ("gradients", "array of real", lambda f: Gram(None)),
    ("gradients", "two axes", lambda f: Gram(G[0])),
    ("gradients", "empty", lambda f: Gram(G[:0])),
    ("gradients={}", "empty", lambda f: Gram({})),
    ("gradients", "no blocks", lambda f: Gram(iter([]))),
    ("gradients", "no blocks", lambda f: Gram(iter([]), along="examples")),
    ("gradients", "48 examples in its first", lambda f: Gram(iter([G, G[:5]]))),
    ("gradients", "48 examples in its first", lambda f: Gram({"a": G, "b": G[:5]})),
    ("gradients", "300 coordinates in its", lambda f: Gram(iter([G, G[:, 1:]]), along="examples")),
    ("gradients['b']", "two axes", lambda f: Gram({"a": G, "b": G[0]})),
    ("block 1 of gradients", "two axes", lambda f: Gram(iter([G, G[0]]))),
    ("gradients=", "pickle is never loaded", lambda f: Gram(pickled(f))),
    ("gradients=", "npy file", lambda f: Gram(cut(f))),
    ("gradients=", "npy file", lambda f: Gram(text_file(f))),
    ("gradients=", "npy file", lambda f: Gram(archive(f))),
    ("gradients=", "No such file", lambda f: Gram(f / "none.npy")),
    ("gradients=", "it is a folder", lambda f: Gram(f)),
    ("gradients=", "it names no file", lambda f: Gram("")),
    ("target", "299 coordinates", lambda f: Gram(G, target=TARGET[1:])),
    ("target", "301 coordinates", lambda f: Gram(G, target=np.ones(301))),
    ("target", "299 coordinates", lambda f: Gram(G, target=TARGET[1:], project=8)),
    ("target", "299 coordinates", lambda f: Gram(rows(), target=TARGET[1:], along="examples")),
    ("target", "longer than 0", lambda f: Gram(G, target=0 * TARGET)),
    ("target", "finite", lambda f: Gram(G, target=TARGET * NAN)),
    ("target", "longer than 0 and finite", lambda f: Gram(G, target=TARGET * 1e200)),
    ("target", "array of real", lambda f: Gram(G, target=[[1], "a"])),
    ("target", "names", lambda f: Gram(G, target={"a": TARGET})),
    ("target", "names", lambda f: Gram({"a": G}, target={"b": TARGET})),
    ("target=", "npy file", lambda f: Gram(G, target=f / "none.npy")),
    ("project=0", "at least 1", lambda f: Gram(G, project=0)),
    ("project=1.5", "integer", lambda f: Gram(G, project=1.5)),
    ("budget=1 ", "at least 768", lambda f: Gram(G, budget=1)),
    ("budget=1000 ", "at least 3920", lambda f: Gram(G, budget=1000, project=10)),
    ("budget='1'", "integer", lambda f: Gram(G, budget="1")),
    ("along='rows'", "'examples'", lambda f: Gram(G, along="rows")),
    ("along='examples'", "iterator", lambda f: Gram(G, along="examples")),
    ("rng=-1", "at least 0", lambda f: Gram(G, rng=-1)),
    ("matrix", "square", lambda f: Gram.from_matrix(G)),
    ("matrix", "2 axes", lambda f: Gram.from_matrix(G[0])),
    ("matrix", "finite", lambda f: Gram.from_matrix(changed(K, 3, 4, NAN))),
    ("matrix must be symmetric", "differs", lambda f: Gram.from_matrix(np.triu(K))),
    ("matrix must be positive", "eigenvalue", lambda f: Gram.from_matrix(changed(K, 1, 2, 9e4))),
    ("matrix must be positive", "eigenvalue", lambda f: Gram.from_matrix(-K)),
    ("matrix must be positive", "-0.001", lambda f: Gram.from_matrix(np.diag([1, 1, -1e-3]))),
    ("gradients must not all be 0", "2 rows", lambda f: Gram.from_matrix(np.zeros((2, 2)))),
    ("target_products", "together", lambda f: Gram.from_matrix(K, target_norm=1.0)),
    ("target_products", "together", lambda f: Gram.from_matrix(K, target_products=K[0])),
    (
        "target_products",
        "one for each of 48",
        lambda f: Gram.from_matrix(K, target_products=K[0, 1:], target_norm=1.0),
    ),
    (
        "target_products and target_norm must be possible",
        "positive semidefinite",
        lambda f: Gram.from_matrix(K, target_products=K[0], target_norm=1.0),
    ),
    (
        "target_norm=-1",
        "at least 0",
        lambda f: Gram.from_matrix(K, target_products=K[0], target_norm=-1.0),
    ),
    ("relative_error", "0", lambda f: Gram.from_matrix(K, relative_error=-1)),
    ("micro_batch_size=5", "divide batch_size=48", lambda f: Gram(G).step(5)),
    ("rule=", "factors", lambda f: Gram(G).step(2, rule="smallest")),
    ("partition='shuffled'", "'random'", lambda f: Gram(G).step(2, partition="shuffled")),
    ("partition", "3 labels", lambda f: Gram(G).step(2, partition=[1, 2, 3])),
    (
        "partition has 47 examples with the label 0",
        "leave 1 of them out",
        lambda f: Gram(G).step(2, partition=[7] + [0] * 47),
    ),
    ("examples=[48]", "0 to 47", lambda f: Gram(G).step(1, examples=[48])),
    ("examples=[0.5]", "0 to 47", lambda f: Gram(G).step(1, examples=[0.5])),
]


@pytest.mark.parametrize(("begins", "shows", "call"), BAD)
def test_bad_input_is_one_line(begins, shows, call, tmp_path):
    with pytest.raises(InvalidArgument) as caught:
        call(tmp_path)
    message = str(caught.value)
    assert message.startswith(begins)
    assert shows in message
    assert "\n" not in message
    assert len(message) < 300


def test_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(tmp_path / "trap.npy", np.array([[Trap()]], object), allow_pickle=True)
    with pytest.raises(InvalidArgument, match=re.escape("pickle is never loaded")):
        Gram(tmp_path / "trap.npy")
    assert not (tmp_path / "sprung").exists()


@settings(max_examples=10)
@given(st.binary(max_size=300))
def test_no_file_does_worse_than_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "x.npy"
    good = io.BytesIO()
    np.save(good, G[:2, :2])
    path.write_bytes(good.getvalue()[: 128 - len(content) // 3] + content)
    with contextlib.suppress(InvalidArgument):
        Gram(path)


def test_the_names_are_public():
    assert mbsim.Gram is Gram
