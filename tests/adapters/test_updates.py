"""What an adapter says of its update without the base: the same as merging it makes of the base's weight."""

import itertools

import pytest
import torch

from peftcli.adapters.base import AdapterLayer
from peftcli.adapters.method import Method
from peftcli.adapters.updates import MOST, Dense, Kronecker, Product
from peftcli.adapters.walk import walk
from peftcli.adapters.weights import base_weight
from peftcli.methods.loha.config import LoHaConfig
from peftcli.methods.loha.method import LoHaMethod
from peftcli.methods.lokr.config import LoKrConfig
from peftcli.methods.lokr.method import LoKrMethod
from peftcli.peft.model import get_peft_model
from peftcli.registry import ENGINES, METHODS, resolve
from tests.methods.cases import CASES, build, shake


def tells(case):
    """Whether the case's method says what it adds, and merging adds nothing else."""
    engine = resolve(ENGINES, case.peft_type, what="peft_type")
    return getattr(engine, "update", None) is not Method.update and not case.config.get("use_dora")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "case", [case for case in CASES if tells(case)], ids=lambda case: f"{case.peft_type}: {case.name}"
)
def test_an_update_is_what_merging_adds(case):
    config = resolve(METHODS, case.peft_type, what="peft_type")(**case.config)
    model = get_peft_model(build(case), config)
    shake(model)
    told = 0
    for site in walk(model.get_base_model()):
        if not isinstance(site.module, AdapterLayer) or site.module.parameter:
            continue
        layer = site.module
        tensors = {item.saved: item.tensor.detach() for item in layer.adapter_tensors("default")}
        update = model.tuner.method_of("default").update(tensors, model.peft_config["default"], site.name)
        if update is None:
            continue
        told += 1
        weight = base_weight(layer.get_base_layer())
        added = layer.merge_tensors(["default"])["weight"] - weight
        assert update.inner(update) == pytest.approx(float(added.square().sum()), rel=1e-9)
        assert update.shape[0] * update.shape[1] == weight.numel()
    # Of convolutions with groups and of experts' parameters LoRA's factors are no product.
    assert told or "groups" in case.name or case.config.get("target_parameters")


def some(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


UPDATES = [
    Product(some(6, 2), some(2, 8)),
    Product(some(6, 5), some(5, 8)),
    Product(some(6, 60), some(60, 8)),
    Kronecker(some(2, 4), some(3, 2)),
    Kronecker(some(3, 2), some(2, 4)),
    Dense(some(6, 8)),
]


@pytest.mark.parametrize(("one", "other"), list(itertools.product(UPDATES, UPDATES)))
def test_inner_products_are_those_of_the_matrices_however_they_are_said(one, other):
    assert one.inner(other) == pytest.approx(float((one.dense() * other.dense()).sum()))


def test_matrices_of_different_shapes_have_no_inner_product():
    assert Product(some(6, 2), some(2, 8)).inner(Product(some(6, 2), some(2, 9))) is None
    assert Kronecker(some(2, 4), some(3, 2)).inner(Dense(some(8, 6))) is None


def test_a_small_file_cannot_ask_for_a_matrix_that_fills_the_memory():
    side = int(MOST**0.5) + 1
    thin = some(side, 1)
    assert (
        LoHaMethod().update(
            {"hada_w1_a": thin, "hada_w1_b": thin.T, "hada_w2_a": thin, "hada_w2_b": thin.T},
            LoHaConfig(),
            "layer",
        )
        is None
    )
    assert (
        LoKrMethod().update(
            {"lokr_w1_a": thin, "lokr_w1_b": thin.T, "lokr_w2": some(1, 1)}, LoKrConfig(), "layer"
        )
        is None
    )
    # Thin factors and grids are never written out.
    million = torch.ones(1_000_000, 1, dtype=torch.float64)
    assert Product(million, million.T).inner(Product(million, million.T)) == 1e12
    assert Product(million.T, million).inner(Product(million.T, million)) == 1e12
    assert Kronecker(million, million.T).inner(Kronecker(million, million.T)) == 1e12
    assert Product(million, million.T).inner(Kronecker(million, million.T)) is None
