"""Gradients of PyTorch models, held against a plain loop of backward()."""

import copy
import re

import numpy as np
import processes
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from mbsim import Gram, InvalidArgument  # noqa: E402
from mbsim.extra.torch import per_example as module  # noqa: E402
from mbsim.extra.torch import per_example_gradients  # noqa: E402

CLOSE = 1e-10
CROSS_ENTROPY = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """All is small here, and threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loop(model, loss_fn, inputs, labels):
    """The other witness: one example after another, and .grad of whatever has one."""
    model, rows = copy.deepcopy(model), []
    trained = [p for p in model.parameters() if p.requires_grad]
    for i in range(len(labels)):
        model.zero_grad(set_to_none=True)
        loss_fn(model(inputs[i : i + 1]), labels[i : i + 1]).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained]
        rows.append(torch.cat([g.ravel() for g in grads]).double())
    return torch.stack(rows).numpy()


def one_line(error):
    return "\n" not in str(error) and len(str(error)) < 320


def close(found, expected, rtol=CLOSE):
    return np.allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


class Tokens(nn.Module):
    """An embedding, one layer of a transformer, and its mean to three classes."""

    def __init__(self, *, dropout=0.0, **options):
        super().__init__()
        self.words = nn.Embedding(11, 8, **options)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.words(tokens)).mean(1))


class Tied(nn.Module):
    """The words' weights are those of the output too."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.words(tokens).mean(1)))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.recurrent(x[:, None] * torch.ones(5, 1))[0][:, -1])


class Written(nn.Module):
    """A linear layer, and what `after` makes of it."""

    def __init__(self, after=lambda x: x):
        super().__init__()
        self.layer, self.after = nn.Linear(6, 3), after

    def forward(self, x):
        return self.after(self.layer(x))


def mlp(*between):
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), *between, nn.Linear(5, 3))


def convnet(*between):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *between, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 3),
    )  # fmt: skip


def vectors(n=10, dtype=torch.float64):
    return torch.randn(n, 6, dtype=dtype), torch.arange(n) % 3


def images(n=10):
    return torch.randn(n, 2, 8, 8, dtype=torch.float64), torch.arange(n) % 3


def tokens(n=10):
    return torch.randint(11, (n, 7)), torch.arange(n) % 3


MODELS = {
    "mlp": (mlp, vectors),
    "convnet": (convnet, images),
    "transformer": (Tokens, tokens),
    "transformer, eval": (lambda: Tokens(dropout=0.5).eval(), tokens),
    "tied": (Tied, tokens),
    "group norm": (lambda: convnet(nn.GroupNorm(2, 4)), images),
    "batch norm, eval": (lambda: convnet(nn.BatchNorm2d(4)).eval(), images),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), vectors),
}


# ------------------------------------------------------------------ the gradients


@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_a_loop_of_backward(name, chunk):
    make, draw = MODELS[name]
    model, (inputs, labels) = make().double(), draw()
    if name == "batch norm, eval":
        model[1].running_mean.uniform_()
        model[1].running_var.uniform_(0.5, 2)
    expected = loop(model, CROSS_ENTROPY, inputs, labels)
    found = per_example_gradients(model, CROSS_ENTROPY, (inputs, labels), chunk=chunk, rows=True)
    assert found.dtype == np.float64
    assert close(found, expected)
    gram = per_example_gradients(model, CROSS_ENTROPY, (inputs, labels), chunk=chunk)
    assert close(gram.matrix, expected @ expected.T)
    assert gram.target_norm is None


@pytest.mark.parametrize("chunk", [1, 4])
def test_passes_over_coordinates_change_nothing(chunk, monkeypatch):
    model, data = mlp().double(), vectors()
    whole = per_example_gradients(model, CROSS_ENTROPY, data, chunk=chunk)
    computed = []
    gradients = module._Source._gradients

    def counted(self, wanted, *rest):
        computed.append(sorted(wanted))
        return gradients(self, wanted, *rest)

    monkeypatch.setattr(module._Source, "_gradients", counted)
    # 53 coordinates of 10 examples take 4240 bytes; half of 2000 has 12 coordinates.
    found = per_example_gradients(model, CROSS_ENTROPY, data, chunk=chunk, budget=2000)
    assert close(found.matrix, whole.matrix)
    assert len(computed) == 5 * -(-10 // chunk)
    assert computed[0] == ["0.weight"]
    assert computed[-1] == ["2.bias", "2.weight"]


def test_a_target_is_the_mean_gradient_of_held_out_examples():
    model, data, held_out = mlp().double(), vectors(), vectors(7)
    rows, goal = loop(model, CROSS_ENTROPY, *data), loop(model, CROSS_ENTROPY, *held_out).mean(0)
    for target in (held_out, [held_out], goal, torch.from_numpy(goal)):
        found = per_example_gradients(model, CROSS_ENTROPY, data, target=target, chunk=4)
        assert close(found.matrix, rows @ rows.T)
        assert close(found.target_products, rows @ goal)
        assert close(found.target_norm, np.linalg.norm(goal))


def test_a_sketch_is_that_of_the_rows():
    model, data, held_out = mlp().double(), vectors(), vectors(7)
    rows, goal = loop(model, CROSS_ENTROPY, *data), loop(model, CROSS_ENTROPY, *held_out).mean(0)
    found = per_example_gradients(
        model, CROSS_ENTROPY, data, target=held_out, sketch=16, rng=5, chunk=4
    )
    expected = Gram(rows, target=goal, project=16, rng=5)
    assert close(found.matrix, expected.matrix)
    assert close(found.target_products, expected.target_products)
    assert found.relative_error == expected.relative_error > 0


def read_only(tensor):
    array = tensor.numpy().copy()
    array.setflags(write=False)
    return array


def test_every_form_of_data():
    model, (inputs, labels) = mlp().double(), vectors()
    whole = per_example_gradients(model, CROSS_ENTROPY, (inputs, labels))
    pairs = torch.utils.data.TensorDataset(inputs, labels)
    batches = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    for data in (
        [inputs, labels],
        (inputs.numpy(), labels.numpy()),
        (inputs.numpy(), labels.tolist()),
        (read_only(inputs), read_only(labels)),
        ((inputs,), labels),
        ({"input": inputs}, labels),
        pairs,
        torch.utils.data.DataLoader(pairs, batch_size=4),
        batches,
        tuple(batches),
        iter([*batches]),
        [*batches, (inputs[:0], labels[:0])],
    ):
        assert per_example_gradients(model, CROSS_ENTROPY, data) == whole
    two = per_example_gradients(model, CROSS_ENTROPY, (inputs[:2], labels[:2]))
    assert per_example_gradients(model, CROSS_ENTROPY, (inputs[:2], [0, 1])) == two


def test_inputs_may_be_several_and_have_names():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, one, *, other):
            return self.left(one) + self.right(other)

    class InOrder(Both):
        def forward(self, one, other):
            return super().forward(one, other=other)

    model, (one, labels), (other, _) = Both().double(), vectors(), vectors()
    ordered = InOrder().double()
    ordered.load_state_dict(model.state_dict())
    named = per_example_gradients(model, CROSS_ENTROPY, ({"one": one, "other": other}, labels))
    placed = per_example_gradients(ordered, CROSS_ENTROPY, ((one, other), labels))
    assert named == placed
    pairs = [((one[i], other[i]), labels[i]) for i in range(10)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)  # which makes lists of them
    assert named == per_example_gradients(ordered, CROSS_ENTROPY, loader)
    residual = torch.softmax(model(one, other=other), 1) - functional.one_hot(labels, 3)
    # Of an outer product with inputs and a bias, twice.
    expected = (residual @ residual.T) * (one @ one.T + other @ other.T + 2)
    assert close(named.matrix, expected.detach().numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_how_a_loss_reduces_its_batch_does_not_matter(reduction, chunk):
    model, data = mlp().double(), vectors()
    expected = loop(model, CROSS_ENTROPY, *data)
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    found = per_example_gradients(model, loss_fn, data, rows=True, chunk=chunk)
    assert close(found, expected)


@pytest.mark.parametrize("chunk", [1, 4])
def test_frozen_parameters_are_left_out_and_unused_ones_have_zeros(chunk):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Linear(2, 2), mlp()
            self.used[0].weight.requires_grad_(False)

        def forward(self, x):
            return self.used(x)

    model, data = Partly().double(), vectors()
    rows = per_example_gradients(model, CROSS_ENTROPY, data, rows=True, chunk=chunk)
    assert rows.shape == (10, 6 + 5 + 18)
    assert not rows[:, :6].any()
    assert close(rows, loop(model, CROSS_ENTROPY, *data))
    # With so little memory, nothing of what the first pass asks for is used.
    found = per_example_gradients(model, CROSS_ENTROPY, data, chunk=chunk, budget=352)
    assert close(found.matrix, rows @ rows.T)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("chunk", [1, 4])
def test_gradients_are_in_the_models_type_and_their_products_in_float64(kind, chunk):
    model, data = mlp().to(kind), vectors(dtype=kind)
    rows = per_example_gradients(model, CROSS_ENTROPY, data, rows=True, chunk=chunk)
    assert rows.dtype == np.float32
    assert torch.from_numpy(rows).to(kind).double().numpy().tolist() == rows.tolist()
    rough = 8 * torch.finfo(kind).eps  # roundings in three layers
    assert close(rows, loop(model, CROSS_ENTROPY, *data), rtol=rough)
    gram = per_example_gradients(model, CROSS_ENTROPY, data, chunk=chunk)
    assert close(gram.matrix, rows.astype(float) @ rows.T.astype(float))


def test_parameters_of_two_types():
    model = mlp()
    model[2].double()
    model[1].register_forward_hook(lambda *call: call[-1].double())
    inputs, labels = vectors(dtype=torch.float32)
    found = per_example_gradients(model, CROSS_ENTROPY, (inputs, labels), rows=True)
    assert found.dtype == np.float64
    assert close(found, loop(model, CROSS_ENTROPY, inputs, labels), rtol=1e-5)


class Twice(torch.autograd.Function):
    """In the old form, which vmap refuses."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def added_in_place(x):
    total = torch.zeros(1, 3, dtype=x.dtype)
    total += x
    return total


# What vmap refuses: the model, the data, what the message says and where.
REFUSED = {
    "in place": (lambda: Written(added_in_place), vectors, "in place", "Written; write it out of"),
    "item": (
        lambda: Written(lambda x: x if x.sum().item() > 0 else 2 * x),
        vectors, "branches on values", "Written; use torch.where",
    ),
    "branch": (
        lambda: nn.Sequential(nn.Linear(6, 6), Written(lambda x: x if x.sum() > 0 else 2 * x)),
        vectors, "branches on values", "'1' (Written); use torch.where",
    ),
    "function": (lambda: Written(Twice.apply), vectors, "setup_context", "fails in Written: "),
    "checkpoint": (
        lambda: Written(lambda x: checkpoint(torch.tanh, x, use_reentrant=False)),
        vectors, "saved tensor hooks", "one example at a time",
    ),
    "sparse": (lambda: Tokens(sparse=True), tokens, "sparse", "backward pass; make it sparse=F"),
    "recurrent": (Last, vectors, "in place", "'recurrent' (LSTM)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_vmap_refuses_is_said_and_a_loop_does_it(name):
    make, draw, *shows = REFUSED[name]
    model, data = make().double(), draw()
    with pytest.raises(InvalidArgument, match=r"^model .*chunk=1, a plain loop") as caught:
        per_example_gradients(model, CROSS_ENTROPY, data)
    for text in shows:
        assert text in str(caught.value)
    assert one_line(caught.value)
    found = per_example_gradients(model, CROSS_ENTROPY, data, rows=True, chunk=1)
    assert close(found, loop(model, CROSS_ENTROPY, *data))


def test_recurrent_layers_in_single_precision():
    """These vmap can do."""
    model, data = Last(), vectors(dtype=torch.float32)
    found = per_example_gradients(model, CROSS_ENTROPY, data, rows=True)
    assert close(found, loop(model, CROSS_ENTROPY, *data), rtol=1e-5)


# ------------------------------------------------------------------ what is left as it was


@pytest.mark.parametrize("chunk", [1, 4])
def test_nothing_of_the_callers_is_changed(chunk):
    """Neither the model, though it counts and changes its input in place, nor data nor draws."""
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)),
        nn.Dropout(0.5),
    ).double()  # fmt: skip
    model[1].weight.grad_sentinel = model[1].bias.grad = torch.ones(3, dtype=torch.float64)
    inputs, labels = vectors()
    before = copy.deepcopy((model.state_dict(), inputs, labels, torch.get_rng_state()))
    hooks = [len(part._forward_hooks) for part in model.modules()]
    per_example_gradients(
        model, CROSS_ENTROPY, (inputs, labels), chunk=chunk, randomness="different"
    )
    state, *others = before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for one, other in zip((inputs, labels, torch.get_rng_state()), others, strict=True):
        assert torch.equal(one, other)
    assert model.training
    assert model[1].bias.grad.tolist() == [1, 1, 1]
    assert model[1].parametrizations.weight.original.grad is None
    assert [len(part._forward_hooks) for part in model.modules()] == hooks
    with pytest.raises(InvalidArgument):
        per_example_gradients(model, CROSS_ENTROPY, (inputs, labels[:3]))
    assert [len(part._forward_hooks) for part in model.modules()] == hooks


def test_weights_that_change_when_they_are_used():
    model, data = Tokens(max_norm=0.5).double(), tokens()
    expected, before = loop(model, CROSS_ENTROPY, *data), model.words.weight.clone()
    found = per_example_gradients(model, CROSS_ENTROPY, data, rows=True, chunk=1)
    assert close(found, expected)
    assert torch.equal(model.words.weight, before)


def test_under_no_grad():
    model, data = mlp().double(), vectors()
    whole = per_example_gradients(model, CROSS_ENTROPY, data)
    with torch.no_grad():
        assert per_example_gradients(model, CROSS_ENTROPY, data) == whole
        found = per_example_gradients(model, CROSS_ENTROPY, data, chunk=1)
    assert close(found.matrix, whole.matrix)


# ------------------------------------------------------------------ randomness


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_dropout_is_drawn_once_or_for_each_example(chunk):
    model = mlp(nn.Dropout(0.5)).double()
    inputs, labels = vectors(1)
    data = inputs.repeat(16, 1), labels.repeat(16)  # one example, sixteen times

    def rows(way, rng=0):
        return per_example_gradients(
            model, CROSS_ENTROPY, data, chunk=chunk, randomness=way, rng=rng, rows=True
        )

    same, different = rows("same"), rows("different")
    assert (same == same[0]).all()
    assert len(np.unique(different.round(10), axis=0)) > 8  # of 32 masks
    assert (different == rows("different")).all()
    assert (different != rows("different", rng=1)).any()
    # Weights of what was dropped have no gradient: about half of 80, within four deviations.
    dropped = different[:, 35:40] == 0
    assert 0.5 - 4 / 18 < dropped.mean() < 0.5 + 4 / 18


def test_the_same_draws_in_every_pass_and_every_chunk():
    model, data = mlp(nn.Dropout(0.5)).double(), vectors()
    for way in ("same", "different"):
        options = {"randomness": way, "chunk": 4}
        whole = per_example_gradients(model, CROSS_ENTROPY, data, **options)
        passes = per_example_gradients(model, CROSS_ENTROPY, data, budget=2000, **options)
        assert close(passes.matrix, whole.matrix)
    same = [
        per_example_gradients(model, CROSS_ENTROPY, data, randomness="same", chunk=chunk).matrix
        for chunk in (1, 4, 64)
    ]
    assert close(same[1], same[0])
    assert close(same[2], same[0])


# ------------------------------------------------------------------ memory


def test_memory_is_that_of_the_budget_and_a_chunk():
    """Peak memory from outside: a million parameters, 488 MiB of gradients of 128 examples."""
    code = """
import resource, numpy as np, torch, mbsim
from mbsim.extra.torch import per_example_gradients
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(1000, 500), torch.nn.ReLU(), torch.nn.Linear(500, 1000))
x = torch.randn(128, 1000, generator=torch.Generator().manual_seed(0))
def gram(n, **options):
    loss = torch.nn.functional.mse_loss
    return per_example_gradients(model, loss, (x[:n], x[:n]), chunk=8, **options)
per_example_gradients(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (x[:, :2], x[:, :1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = gram(128, budget=2**26).matrix
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
few = gram(8).matrix
print(np.abs(found[:8, :8] - few).max() / few.max())
"""
    out, err = processes.run(code, timeout=120)
    assert err == ""
    extra, off = map(float, out.split())
    assert extra < 64 + 32  # MiB, of the budget and of a chunk's gradients
    assert off < CLOSE


# ------------------------------------------------------------------ bad input


def bent(place, number):
    inputs, labels = vectors()
    inputs[place] = number
    return inputs, labels


def call(model=None, loss_fn=CROSS_ENTROPY, data=None, **options):
    model = mlp().double() if model is None else model
    return per_example_gradients(model, loss_fn, vectors() if data is None else data, **options)


def nan_weight():
    model = mlp().double()
    model[2].weight.data[0, 0] = float("nan")
    return model


def frozen():
    return mlp().requires_grad_(False)


X, Y = vectors()
NAN = float("nan")
# How the message begins, what else it shows, the call.
BAD = {
    "batch norm": (
        "model ties the examples", "'1' (BatchNorm2d)", "model.eval(), for the running",
        lambda: call(convnet(nn.BatchNorm2d(4)).double(), data=images()),
    ),
    "batch norm, no statistics": (
        "model ties the examples", "'1' (BatchNorm2d)", "take GroupNorm",
        lambda: call(convnet(nn.BatchNorm2d(4, track_running_stats=False)).eval(), data=images()),
    ),
    "instance norm": (
        "model updates running statistics", "'1' (InstanceNorm2d)", "track_running_stats=False",
        lambda: call(convnet(nn.InstanceNorm2d(4, track_running_stats=True)).double(),
                     data=images()),
    ),
    "dropout": (
        "model draws random numbers", "'2' (Dropout)", "'different' (one for each)",
        lambda: call(mlp(nn.Dropout(0.5)).double()),
    ),
    "dropout, loop": (
        "model draws random numbers", "'2' (Dropout)", "'different' (one for each)",
        lambda: call(mlp(nn.Dropout(0.5)).double(), chunk=1),
    ),
    "dropout inside": (
        "model draws random numbers", "'layer.", "model.eval()",
        lambda: call(Tokens(dropout=0.1).double(), data=tokens()),
    ),
    "dropout as a function, loop": (
        "model draws random numbers", "in Written;", "model.eval()",
        lambda: call(Written(functional.dropout).double(), chunk=1),
    ),
    "no vmap rule": (
        "model fails in '1' (RReLU)", "not yet support", "chunk=1",
        lambda: call(nn.Sequential(nn.Linear(6, 3), nn.RReLU()).double(), randomness="same"),
    ),
    "no such word": (
        "model fails in 'words' (Embedding)", "index out of range", "",
        lambda: call(Tokens().double(), data=(torch.full((3, 7), 11), torch.arange(3))),
    ),
    "no integers": (
        "model needs integers in 'words' (Embedding)", "torch.int64", "",
        lambda: call(Tokens().double(), data=(torch.rand(3, 7), torch.arange(3))),
    ),
    "labels that are no integers": (
        "model needs integers in loss_fn", "torch.int64", "",
        lambda: call(data=(X, Y.double())),
    ),
    "labels that are integers": (
        "model gets numbers of unlike types in loss_fn", "torch.float64", "",
        lambda: call(nn.Linear(6, 1).double(), functional.binary_cross_entropy_with_logits,
                     (X, Y[:, None] % 2), chunk=1),
    ),
    "wrong width": (
        "model fails in '0' (Linear): mat1 and mat2", "5", "",
        lambda: call(data=(X[:, :5], Y)),
    ),
    "wrong width, loop": (
        "model fails in '0' (Linear): mat1 and mat2", "", "(1x5 and 6x5)",
        lambda: call(data=(X[:, :5], Y), chunk=1),
    ),
    "wrong label": (
        "model fails in loss_fn: ", "Expected input batch_size", "",
        lambda: call(loss_fn=lambda out, label: CROSS_ENTROPY(out, label.repeat(2))),
    ),
    "half": (
        "model gets numbers of unlike types in '0' (Linear)", "parameters, torch.bfloat16", "",
        lambda: call(mlp().bfloat16()),
    ),
    "loss of many": (
        "loss_fn must return one number for an example, and returned (1, 3)", "mean or sum", "",
        lambda: call(loss_fn=lambda out, label: out),
    ),
    "loss that is none": (
        "loss_fn must return one number", "'low'", "", lambda: call(loss_fn=lambda *_: "low"),
    ),
    "nan in data": (
        "gradients must be finite", "1 of 10 rows are not: 3", "",
        lambda: call(data=bent((3, 1), NAN)),
    ),
    "infinity, in a sketch": (
        "gradients must be finite", "1 of 10 rows are not: 3", "",
        lambda: call(data=bent((3, 1), float("inf")), sketch=8),
    ),
    "nan in a target": (
        "target must be finite", "", "", lambda: call(target=bent((3, 1), NAN)),
    ),
    "nan in a parameter": (
        "model must have finite parameters", "'2.weight'", "", lambda: call(nan_weight()),
    ),
    "no gradient": (
        "gradients must not all be 0", "", "",
        lambda: call(loss_fn=lambda out, label: CROSS_ENTROPY(out.detach(), label)),
    ),
    "all frozen": ("model must have a parameter with requires_grad", "", "",
                   lambda: call(frozen())),
    "lazy": ("model has not made 'weight' yet", "run it once", "",
             lambda: call(nn.LazyLinear(3))),
    "complex": ("model must have real parameters; 'weight'", "complex64", "",
                lambda: call(nn.Linear(6, 3, dtype=torch.complex64))),
    "no model": ("model=", "torch.nn.Module", "", lambda: call(lambda x: x)),
    "no data": ("data=None must be a pair", "", "",
                lambda: per_example_gradients(mlp(), CROSS_ENTROPY, None)),
    "a tensor": ("batch 0 of data", "must be a pair (inputs, labels)", "", lambda: call(data=X)),
    "a mapping": ("data=", "must be a pair", "", lambda: call(data={"x": X, "y": Y})),
    "words": ("batch 0 of data='h'", "must be a pair", "", lambda: call(data="http")),
    "unequal": ("data has 3 labels and inputs of 10 examples", "", "",
                lambda: call(data=(X, Y[:3]))),
    "empty": ("data must not be empty", "", "", lambda: call(data=(X[:0], Y[:0]))),
    "no batches": ("data has no batches", "", "", lambda: call(data=iter([]))),
    "one number": ("labels of data=1", "", "", lambda: call(data=(X, 1))),
    "objects": ("inputs of data=", "tensor or an array", "",
                lambda: call(data=(np.array([None] * 10), Y))),
    "batches that differ": ("data must have batches that fit", "", "",
                            lambda: call(data=[(X, Y), (X[:, :5], Y)])),
    "names that differ": ("data must have the same inputs in every batch", "", "",
                          lambda: call(data=[(X, Y), ({"input": X}, Y)])),
    "target's form": ("target=3 must be a pair", "", "", lambda: call(target=3)),
    "target's length": ("target has 52 coordinates", "", "", lambda: call(target=np.ones(52))),
    "chunk": ("chunk=0", "at least 1", "", lambda: call(chunk=0)),
    "sketch": ("sketch=1.5", "integer", "", lambda: call(sketch=1.5)),
    "sketch and budget": ("budget=1000 must be at least 8800", "sketch=100", "",
                          lambda: call(sketch=100, budget=1000)),
    "randomness": ("randomness='all'", "'different'", "", lambda: call(randomness="all")),
    "budget": ("budget=100 must be at least 352 bytes", "or take sketch=k", "",
               lambda: call(budget=100)),
    "passes": ("budget=8000 must be at least 78400 bytes", "in 100 passes", "",
               lambda: call(nn.Linear(6, 7000).double(), budget=8000)),
    "rows and budget": ("budget=4239 must be at least 4240", "rows=True", "",
                        lambda: call(rows=True, budget=4239)),
    "rows and a target": ("rows=True must go without", "", "",
                          lambda: call(rows=True, target=(X, Y))),
    "rng": ("rng=-1", "", "", lambda: call(rng=-1)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    begins, one, other, wrong = BAD[name]
    with pytest.raises(InvalidArgument) as caught:
        wrong()
    message = str(caught.value)
    assert message.startswith(begins)
    assert one in message
    assert other in message
    assert one_line(caught.value)


def test_without_torch_the_message_says_what_to_install():
    out, err = processes.run(
        "import sys\nsys.modules['torch'] = None\nimport mbsim, mbsim.extra\n"
        "try:\n    import mbsim.extra.torch\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert err == ""
    assert re.search(r"pip install 'microbatch-clipping\[torch\]'", out)
