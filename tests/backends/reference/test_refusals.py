"""What is not covered is refused by name: operations, masks, rope, attention, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.backends.families import SMALL, random_model, torch, transformers

from isonomy.backends import reference
from isonomy.backends.reference import replacements
from isonomy.backends.reference.dispatch import Canonical
from isonomy.sdk.errors import InputError

IDS = np.arange(20)
X = torch.linspace(-2, 2, 12).reshape(3, 4)


def run(compute: Callable[[], Any]) -> Any:
    with torch.no_grad(), Canonical(lambda: "here") as mode:
        return compute(), mode


@pytest.mark.parametrize(
    ("operation", "compute", "reason"),
    [
        ("aten.logsumexp.default", lambda: torch.logsumexp(X, -1), "not covered"),
        ("aten.sigmoid.default", lambda: torch.sigmoid(X), "not covered"),
        ("aten.bmm.default", lambda: torch.bmm(X[None], X[None].mT), "not covered"),
        ("aten.addcmul.default", lambda: torch.addcmul(X, X, X), "not covered"),
        ("aten._to_copy.default", lambda: X.double(), "not covered"),
        ("aten.add.Tensor", lambda: torch.add(X, X, alpha=3), "alpha = 3"),
        ("aten.add.Tensor", lambda: X + DOUBLE, "float64"),
        ("aten.sum.dim_IntList", lambda: X.sum(0), "last dimension only, not over [0]"),
        ("aten.mean.dim", lambda: X.mean((0, 1)), "last dimension only"),
        ("aten.mean.dim", lambda: X.mean(-1, dtype=torch.float64), "in float32 only"),
        ("aten.pow.Tensor_Scalar", lambda: X**0.5, "exponents 2 and 3"),
        ("aten.addmm.default", lambda: torch.addmm(X[0], X, X.mT, beta=2), "beta = 2"),
        ("aten.addmm.default", lambda: torch.addmm(X[:, :3], X, X.mT), "a bias of shape"),
        ("aten.topk.default", lambda: torch.topk(X, 2, largest=False), "the largest"),
        ("aten.cumsum.default", lambda: X.cumsum(0), "integers only"),
        ("aten._local_scalar_dense.default", lambda: X[0, 0].item(), "integers only"),
        ("aten.arange.default", lambda: torch.arange(3.0), "integers only"),
        (
            "aten.index_add_.default",
            lambda: torch.zeros(3, 4).index_add_(0, REPEATED, X),
            "different indices",
        ),
        ("aten.native_layer_norm.default", lambda: torch.layer_norm(X, (4,)), "with weight"),
    ],
)
def test_operations(operation: str, compute: Callable[[], Any], reason: str) -> None:
    with pytest.raises(reference.OperationRefused) as caught:
        run(compute)
    error = caught.value
    assert (error.operation, error.module) == (operation, "here")
    assert reason in error.reason
    assert f"{operation} in here: {error.reason}" in str(error)


DOUBLE = torch.ones((), dtype=torch.float64).expand(3, 4)
REPEATED = torch.tensor([0, 1, 0])


def test_statistics_of_a_layer_norm_are_not_there() -> None:
    weight = torch.ones(4)
    (y, *unused), _ = run(lambda: torch.native_layer_norm(X, (4,), weight, weight, 1e-5))
    assert torch.isfinite(y).all()
    assert all(torch.isnan(one).all() for one in unused)


def test_the_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that uses another operation is refused where it does, in the words of the model."""
    random_model("llama").save_pretrained(tmp_path)
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    monkeypatch.setattr(mlp, "forward", lambda self, x: self.down_proj(torch.sin(self.up_proj(x))))
    with pytest.raises(reference.OperationRefused) as caught:
        reference.logits(tmp_path, IDS)
    assert caught.value.operation == "aten.sin.default"
    assert caught.value.module == "model.layers.0.mlp (LlamaMLP)"


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not supported"),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, "'proportional'"),
    ],
)
def test_rope(rope: dict[str, Any], message: str, tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    change(tmp_path, rope_parameters=rope | {"rope_theta": 10000.0})
    with pytest.raises(reference.GraphRefused, match=message) as caught:
        reference.logits(tmp_path, IDS)
    assert caught.value.feature == f"rope type: {rope['rope_type']}"
    assert caught.value.where == "model.rotary_emb (LlamaRotaryEmbedding)"


def test_rope_of_another_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model("llama").save_pretrained(tmp_path)
    honest = replacements.kernels.rope_frequencies
    monkeypatch.setattr(
        replacements.kernels, "rope_frequencies", lambda *given: honest(*given) * 1.001
    )
    with pytest.raises(reference.GraphRefused, match="other frequencies"):
        reference.logits(tmp_path, IDS)


def test_a_mask_that_is_not_causal(tmp_path: Path) -> None:
    random_model("gemma3").save_pretrained(tmp_path)
    change(tmp_path, use_bidirectional_attention=True)
    with pytest.raises(reference.OpinionError):
        reference.logits(tmp_path, IDS)


@pytest.mark.parametrize(
    "seen",
    [
        torch.ones(3, 3, dtype=torch.bool),
        torch.eye(3, dtype=torch.bool)[[0, 1, 1]],
        torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool),
        torch.ones(3, 3).tril(),
        torch.ones(1, 3, dtype=torch.bool),
        None,
    ],
)
def test_masks(seen: Any) -> None:
    q = torch.ones(1, 2, 3, 4)
    mask = None if seen is None else seen[None, None]
    with pytest.raises(reference.GraphRefused, match="not a causal window"):
        replacements._attention(torch.nn.Identity(), q, q, q, mask, scaling=0.5)


@pytest.mark.parametrize("asked", [{"dropout": 0.1}, {"s_aux": "sinks"}, {"scaling": None}])
def test_attention(asked: dict[str, Any]) -> None:
    q = torch.ones(1, 2, 3, 4)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with pytest.raises(reference.GraphRefused, match="asks for attention with"):
        replacements._attention(torch.nn.Identity(), q, q, q, mask, **{"scaling": 0.5} | asked)


@pytest.mark.parametrize("ids", [[], [-1], [SMALL["vocab_size"]], [[1, 2]], [0.5], [True]], ids=str)
def test_ids(ids: list[Any], tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ids must"):
        reference.logits(tmp_path, ids)


def change(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | keys))


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(reference.GraphRefused, match=r"no config\.json"):
        reference.logits(tmp_path, IDS)


def test_a_gap_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    change(tmp_path, num_hidden_layers=4)
    with pytest.raises(reference.GraphRefused, match=r"missing keys: model\.layers\.3") as caught:
        reference.logits(tmp_path, IDS)
    assert caught.value.feature == "weights: missing_keys"


def test_left_over_weights(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    change(tmp_path, num_hidden_layers=2)
    with pytest.raises(reference.GraphRefused, match=r"unexpected keys: model\.layers\.2"):
        reference.logits(tmp_path, IDS)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    model = random_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(reference.GraphRefused, match="does not load it"):
        reference.logits(tmp_path, IDS)


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change(
        tmp_path,
        model_type="theirs",
        auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
    )
    with pytest.raises(reference.GraphRefused, match="does not load it"):
        reference.logits(tmp_path, IDS)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(reference.OpinionError, match=r"model\.layers\.1\.mlp\.up_proj \(Linear\)"):
        reference.logits(tmp_path, IDS)


def test_a_torch_that_flushes_subnormal_numbers(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor can't flush them")
    try:
        with pytest.raises(reference.OpinionError, match="set_flush_denormal"):
            reference.logits(tmp_path, IDS)
    finally:
        torch.set_flush_denormal(False)


def test_inside_inference_mode(tmp_path: Path) -> None:
    """There torch would hand over whole linears, which are not listed."""
    random_model("llama").save_pretrained(tmp_path)
    outside = reference.logits(tmp_path, IDS)
    with torch.inference_mode():
        assert reference.logits(tmp_path, IDS).tobytes() == outside.tobytes()
