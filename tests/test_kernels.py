"""Products by faster kernels beside plain ones, and what is noticed of a change of weights that are kept."""

import gc
import pickle
import weakref
from copy import deepcopy
from threading import Barrier, Thread

import pytest
import torch
from conftest import random_pairs, tiny_model
from torch import nn
from torch.nn import functional as F

from bidir_seq2seq import kernels_bidir_seq2seq
from bidir_seq2seq.kernels_bidir_seq2seq import (
    MANY_PRODUCTS,
    MANY_SUMS,
    FixedLinear,
    MatmulLinear,
    SideBySide,
    addmm_,
    can_pack,
    keep,
    largest_sums,
    matmul,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
# Of a layer with 6 inputs and 9 outputs, for large products.
MANY_ROWS = MANY_PRODUCTS // (6 * 9) + 1


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 70])
@pytest.mark.parametrize("with_bias", [False, True])
def test_fixed_layers_are_the_plain_ones(dtype, num_rows, with_bias):
    weights = [torch.randn(9, 6, dtype=dtype) for _ in range(2)]
    biases = [torch.randn(9, dtype=dtype) if with_bias else None for _ in range(2)]
    x = torch.randn(2, num_rows, 6, dtype=dtype)
    plain = torch.stack([F.linear(*parts) for parts in zip(x, weights, biases)])
    single = torch.stack([FixedLinear(weight, bias)(rows) for rows, weight, bias in zip(x, weights, biases)])
    both = SideBySide(weights, biases if with_bias else None)(x)
    tolerance = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {}
    for found in (single, both):
        assert found.dtype == dtype
        torch.testing.assert_close(found, plain, **tolerance)


@torch.no_grad()
def test_under_autocast_fixed_layers_round_as_plain_ones():
    layer, x = nn.Linear(6, 9), torch.randn(2, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, found = layer(x), FixedLinear(layer.weight, layer.bias)(x)
        side_by_side = SideBySide([layer.weight] * 2, [layer.bias] * 2)(x)
    assert found.dtype == side_by_side.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.05)
    torch.testing.assert_close(side_by_side, plain, rtol=0.02, atol=0.05)


def precision() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def leaves(monkeypatch):
    """Counts for how many products leave to round is given."""
    entered = []
    enter = kernels_bidir_seq2seq._OneDNNProducts.__enter__

    def count(leave):
        enter(leave)
        entered.append(precision())

    monkeypatch.setattr(kernels_bidir_seq2seq._OneDNNProducts, "__enter__", count)
    kernels_bidir_seq2seq._stays_float32()
    entered.clear()
    return entered


LARGE = [
    ((1100, 40), (40, 30)),
    ((64, 8, 5, 16), (64, 8, 16, 200)),
    ((512, 3, 48), (512, 48, 16)),
    ((7, 210, 30), (30, 40)),
]


@pytest.mark.parametrize("left_shape, right_shape", LARGE)
@pytest.mark.parametrize("transposed", [False, True])
def test_large_products_are_exact_in_float32(left_shape, right_shape, transposed, leaves):
    def draw(shape):
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).mT if transposed else torch.randn(shape)

    left, right = draw(left_shape), draw(right_shape)
    wanted = left.double() @ right.double()
    before = precision()
    # Rounding to bfloat16, or to 10 bits as some processors do, would be off by a hundred times as much.
    torch.testing.assert_close(matmul(left, right).double(), wanted, rtol=1e-4, atol=2e-5)
    assert precision() == before
    expected = ["bf16"] if kernels_bidir_seq2seq._stays_float32() else []
    assert leaves == expected
    if left.dim() == right.dim() == 2:
        total = torch.randn(wanted.shape)
        wanted += total.double()
        assert addmm_(total, left, right) is total
        torch.testing.assert_close(total.double(), wanted, rtol=1e-4, atol=2e-5)
        assert leaves == 2 * expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_products_are_plain_ones(dtype, leaves):
    left, right = torch.randn(1100, 40, dtype=dtype), torch.randn(40, 30, dtype=dtype)
    assert torch.equal(matmul(left, right), left @ right)
    small = torch.randn(3, 40), torch.randn(40, 30)
    assert torch.equal(matmul(*small), small[0] @ small[1])
    assert not leaves


def test_where_leave_is_made_use_of_none_is_given(leaves, monkeypatch):
    monkeypatch.setattr(kernels_bidir_seq2seq, "_stays_float32", lambda: False)
    left, right = torch.randn(1100, 40), torch.randn(40, 30)
    assert torch.equal(matmul(left, right), left @ right)
    assert torch.equal(addmm_(torch.ones(1100, 30), left, right), torch.ones(1100, 30).addmm_(left, right))
    assert not leaves


def test_leave_is_of_no_use_where_products_round(monkeypatch):
    kernels_bidir_seq2seq._stays_float32.cache_clear()
    plain = torch.Tensor.__matmul__

    def rounding(left, right):
        assert precision() == "bf16"
        return plain(left.bfloat16(), right.bfloat16()).float()

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__matmul__", rounding)
        assert not kernels_bidir_seq2seq._stays_float32()
    kernels_bidir_seq2seq._stays_float32.cache_clear()


@pytest.fixture(params=["none", "ieee", "bf16"])
def before(request):
    was = precision()
    torch.backends.mkldnn.matmul.fp32_precision = request.param
    yield request.param
    torch.backends.mkldnn.matmul.fp32_precision = was


def test_the_setting_is_again_what_it_was_when_the_last_thread_is_done(before):
    leave = kernels_bidir_seq2seq._BY_ONEDNN
    seen, inside, outside = [], Barrier(2, timeout=10), Barrier(2, timeout=10)

    def short():
        with leave:
            inside.wait()
        outside.wait()

    thread = Thread(target=short)
    thread.start()
    with leave:
        inside.wait()
        outside.wait()
        seen.append(precision())
    thread.join()
    assert seen == ["bf16"] and precision() == before
    with pytest.raises(RuntimeError, match="size|shape"), leave:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert precision() == before


@pytest.mark.parametrize("twin_memory", ["hidden", "features"])
def test_models_learn_and_write_the_same_by_either_kernels(twin_memory, monkeypatch):
    if not kernels_bidir_seq2seq._stays_float32():
        pytest.skip("oneDNN's products of this processor round, and are never used")
    model = tiny_model(twin_memory=twin_memory, twin_dropout=0.0)
    input_ids, labels = random_pairs(batch_size=3)
    # Every product is large enough.
    monkeypatch.setattr(kernels_bidir_seq2seq, "MANY_PRODUCTS", 0)
    found = []
    for direct in (True, False):
        monkeypatch.setattr(kernels_bidir_seq2seq, "_stays_float32", lambda direct=direct: direct)
        model.zero_grad()
        loss = model.train()(input_ids=input_ids, labels=labels).loss
        loss.backward()
        flags = {"num_beams": 3, "max_new_tokens": 20, "return_dict_in_generate": True}
        written = [
            model.eval().generate(input_ids, decoding_direction=direction, **flags) for direction in ("l2r", "both")
        ]
        grads = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        found.append([loss.detach(), *grads, *(x for out in written for x in (out.sequences, out.sequences_scores))])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_rows", [3, MANY_ROWS])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_linear_layer_and_its_gradients_are_the_plain_ones(num_rows, bias, autocast):
    layer = MatmulLinear(6, 9, bias=bias)
    plain = nn.Linear(6, 9, bias=bias)
    plain.load_state_dict(layer.state_dict())
    # As attention hands them on: neither the input nor the gradient lies in one piece.
    x = torch.randn(6, num_rows, 2).permute(2, 1, 0)
    found, wanted = [], []
    for module, results in ((layer, found), (plain, wanted)):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = module(given)
        output.float().pow(2).transpose(1, 2).sum(1).mean().backward()
        results += [output, given.grad, *(weight.grad for weight in module.parameters())]
    assert [y.dtype for y in found] == [y.dtype for y in wanted]
    # Sums of so many rows differ more with their order.
    torch.testing.assert_close(found, wanted, **({"rtol": 1e-5, "atol": 1e-4} if num_rows == MANY_ROWS else {}))


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_wants_no_gradient_gets_none(frozen):
    layer, x = MatmulLinear(6, 9), torch.randn(MANY_ROWS, 6, requires_grad=True)
    parts = {"x": x, "weight": layer.weight, "bias": layer.bias}
    parts[frozen].requires_grad_(False)
    layer(x).sum().backward()
    assert [name for name, part in parts.items() if part.grad is None] == [frozen]


def one_entry(weight):
    weight[-1, -1] += 1e-3


def two_rows_exchanged(weight):
    weight[:2] = weight[:2].flip(0)


def two_columns_exchanged(weight):
    weight[:, 1:3] = weight[:, 1:3].flip(1)


@pytest.mark.parametrize(
    "change", [one_entry, two_rows_exchanged, two_columns_exchanged, torch.Tensor.neg_, torch.Tensor.zero_]
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_change_of_a_weight_is_noticed(change, dtype, autocast):
    layer = nn.Linear(6, 8, bias=False, dtype=dtype)
    x = torch.randn(3, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        if not can_pack(layer.weight):
            pytest.skip("this processor has no such products")
        assert_noticed(change, layer, x)


def assert_noticed(change, layer, x):
    def make() -> FixedLinear:
        return FixedLinear(layer.weight)

    made = keep(make, layer)
    assert keep(make, layer) is made
    version = layer.weight._version
    # What edits `data` leaves no trace but the weight itself.
    change(layer.weight.data)
    assert layer.weight._version == version
    changed = keep(make, layer)
    assert changed is not made and keep(make, layer) is changed
    torch.testing.assert_close(changed(x), layer(x), rtol=0.02, atol=0.02)


def test_one_kept_in_autocast_serves_in_autocast_only():
    layer, x = nn.Linear(6, 8), torch.randn(3, 6)

    def product() -> torch.Tensor:
        return keep(lambda: FixedLinear(layer.weight, layer.bias), layer)(x)

    plain = product()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product().dtype == torch.bfloat16
    assert torch.equal(product(), plain)


def _train(model):
    input_ids, labels = random_pairs(batch_size=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train()(input_ids=input_ids, labels=labels).loss.backward()
    optimizer.step()
    model.eval()


def _load(model):
    model.load_state_dict(tiny_model().state_dict())


def _assign(model):
    model.load_state_dict(tiny_model().state_dict(), assign=True)


def _edit_data(model):
    for weight in model.parameters():
        weight.data.mul_(-2)


@pytest.mark.parametrize("change", [_train, _load, _assign, _edit_data])
@pytest.mark.parametrize("direction", ["both", "r2l"])
def test_titles_are_those_of_the_present_weights(change, direction):
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=3)
    flags = {"decoding_direction": direction, "num_beams": 3, "max_new_tokens": 8, "return_dict_in_generate": True}
    before = model.generate(input_ids, **flags)
    change(model)
    found, wanted = model.generate(input_ids, **flags), deepcopy(model).generate(input_ids, **flags)
    assert torch.equal(found.sequences, wanted.sequences)
    assert torch.equal(found.sequences_scores, wanted.sequences_scores)
    assert not torch.equal(found.sequences_scores, before.sequences_scores)


def test_what_is_kept_lives_no_longer_than_its_model_and_stays_out_of_copies():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=2)
    for direction in ("both", "l2r"):
        model.generate(input_ids, decoding_direction=direction, num_beams=2, max_new_tokens=4)
    decoder = weakref.ref(model.model.direction_decoder("l2r"))
    assert decoder() in kernels_bidir_seq2seq._KEPT
    deepcopy(model)
    pickle.dumps(model)
    count = len(kernels_bidir_seq2seq._KEPT)
    del model
    gc.collect()
    assert decoder() is None and len(kernels_bidir_seq2seq._KEPT) < count


def test_what_is_kept_in_inference_mode_serves_outside_it_too():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=2)
    flags = {"num_beams": 2, "max_new_tokens": 6}
    with torch.inference_mode():
        inside = model.generate(input_ids, **flags)
    assert torch.equal(model.generate(input_ids, **flags), inside)
    _train(model)
    assert torch.equal(model.generate(input_ids, **flags), deepcopy(model).generate(input_ids, **flags))


@pytest.mark.parametrize("size", [8, 9, 1600, 4096, 8001])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("is_log", [True, False])
@pytest.mark.parametrize("many_sums", [0, MANY_SUMS])
def test_the_largest_sums_are_found_where_topk_finds_them(size, count, is_log, many_sums, monkeypatch):
    monkeypatch.setattr(kernels_bidir_seq2seq, "MANY_SUMS", many_sums)
    x, scores = torch.rand(5, 2, 3, size), torch.randn(5, 2, 3)
    sums, rows, columns = largest_sums(x, scores, count, is_log)
    wanted = ((x if is_log else x.log()) + scores[..., None]).flatten(-2).topk(count)
    assert torch.equal(sums, wanted.values) and torch.equal(rows * size + columns, wanted.indices)


def test_the_largest_sums_of_equals_and_of_nothing_are_some_of_them():
    x = torch.full((20, 2, 4096), float("-inf"))
    x[:, :, 7::512] = 1.0
    sums, rows, columns = largest_sums(x, torch.zeros(20, 2), 30)
    assert torch.equal(sums, x.flatten(1).topk(30).values)
    places = rows * 4096 + columns
    assert torch.equal(x.flatten(1).gather(1, places), sums)
    assert all(len(set(row)) == 30 for row in places.tolist())
