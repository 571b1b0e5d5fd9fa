"""Peak memory of each way to Algorithm 1, in bytes of tensors, and that all ways are one."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

PATH = Path(__file__).parents[2] / "benchmarks" / "drop_ins.py"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drop_ins():
    spec = importlib.util.spec_from_file_location("drop_ins", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(drop_ins):
    torch.manual_seed(0)
    model, x, y = drop_ins.MODELS["network"]()
    gradient = sum(p.numel() * p.element_size() for p in model.parameters())

    def peak(way, b):
        return drop_ins.peak_bytes(drop_ins.WAYS[way], model, x, y, b)

    return peak, gradient


def test_the_clipper_takes_one_buffer_whatever_the_number_of_micro_batches(network):
    """Some per cent are activations, norms, and a block of squares in float64."""
    peak, gradient = network
    for b in (4, 32):
        assert peak("clipper", b) <= peak("accumulation", b) + 1.02 * gradient
        assert 1.95 * gradient < peak("clipper", b) < 2.2 * gradient
    assert peak("two passes", 16) <= 1.02 * peak("clipper", 16)
    assert peak("clipper", 16) == peak("clipper", 16)


def test_stored_gradients_take_m_of_them(network):
    peak, gradient = network
    for b in (8, 32):
        assert 1 + 64 / b <= peak("stored", b) / gradient < 1.2 + 64 / b
        assert peak("vmap", b) > 64 / b * gradient


@pytest.mark.parametrize("name", ["network", "transformer", "conv net"])
def test_clipped_backward_takes_half_more_than_a_plain_step_at_most(drop_ins, name):
    torch.manual_seed(0)
    model, x, y = drop_ins.MODELS[name]()
    plain = drop_ins.peak_bytes(drop_ins.WAYS["plain"], model, x, y, 64)
    way = drop_ins.WAYS["clipped_backward"]
    for b in (2, 64):
        assert plain <= drop_ins.peak_bytes(way, model, x, y, b) <= 1.5 * plain


@pytest.mark.parametrize("name", ["network", "transformer", "conv net"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of attention
def test_all_ways_leave_the_same_update(drop_ins, name):
    torch.manual_seed(0)
    model, x, y = drop_ins.MODELS[name]()
    found = {}
    for way in ("clipper", "stored", "vmap", "clipped_backward"):
        model.zero_grad(set_to_none=True)
        drop_ins.WAYS[way](model, x, y, 16)
        found[way] = torch.cat([p.grad.ravel() for p in model.parameters()])
    whole = found["stored"].norm()
    assert all((one - found["stored"]).norm() < 1e-4 * whole for one in found.values())


def test_what_is_counted_is_what_is_alive():
    from mbsim.study.torch_memory import Counted

    with Counted() as counted:
        kept = torch.ones(1000)
        gone = torch.ones(500)
        view = gone[:10]
        del gone
        assert counted.now == 6000
        del view
        assert counted.now == 4000
        kept.add_(1)
    assert (counted.now, counted.peak) == (4000, 6000)
