from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crossband.shared.checkpoints import load_state
from crossband.shared.errors import CheckpointError
from crossband.shared.registry import create_model
from crossband.spatiotemporal.predformer.model import PredFormer
from crossband.spatiotemporal.predformer.official import (
    from_official,
    from_official_config,
    to_official,
    to_official_config,
)

# The authors' model_config of TaxiBJ, Triplet-STS, at a smaller width.
THEIRS = {
    "height": 32,
    "width": 32,
    "num_channels": 2,
    "pre_seq": 4,
    "after_seq": 4,
    "patch_size": 4,
    "dim": 16,
    "heads": 2,
    "dim_head": 4,
    "dropout": 0.1,
    "attn_dropout": 0.2,
    "drop_path": 0.3,
    "scale_dim": 3,
    "depth": 1,
    "Ndepth": 2,
}
OURS = {
    "variant": "triplet_sts",
    "legacy_order": True,
    "history": 4,
    "in_channels": 2,
    "height": 32,
    "width": 32,
    "patch_size": 4,
    "dim": 16,
    "heads": 2,
    "dim_head": 4,
    "dropout": 0.1,
    "attn_dropout": 0.2,
    "drop_path": 0.3,
    "mlp_ratio": 3,
    "block_depth": 1,
    "depth": 2,
}


@pytest.fixture
def model() -> PredFormer:
    torch.manual_seed(0)
    return PredFormer(**OURS).eval()


def test_configuration_there_and_back() -> None:
    assert from_official_config(THEIRS, "triplet_sts") == OURS
    assert to_official_config(OURS) == THEIRS
    # Their full and factorised networks have one transformer each and ignore `depth`.
    assert "block_depth" not in from_official_config({**THEIRS, "depth": 7}, "fac_ts")


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_their_training_checkpoint_loads_by_name(
    model: PredFormer, tmp_path: Path, prefix: str
) -> None:
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "state_dict": {
            prefix + key: value for key, value in to_official(model.state_dict()).items()
        },
        "scheduler": {"t_initial": 50},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    sizes = {key: OURS[key] for key in ("dim", "heads", "dim_head", "mlp_ratio")}
    path = tmp_path / "checkpoint.pth"
    loaded = create_model("predformer_triplet_sts_taxibj", weights=path, **sizes).eval()
    x = torch.randn(1, 4, 2, 32, 32)
    assert torch.equal(loaded(x), model(x))


def test_bare_state_dict_there_and_back(model: PredFormer) -> None:
    state = model.state_dict()
    there_and_back = from_official(to_official(state))
    assert there_and_back.keys() == state.keys()
    assert all(torch.equal(there_and_back[key], state[key]) for key in state)


def test_weights_of_another_variant_are_refused(model: PredFormer) -> None:
    other = PredFormer(**{**OURS, "variant": "binary_ts"})
    with pytest.raises(CheckpointError, match="does not fit PredFormer: .* tensors match"):
        load_state(other, from_official(model.state_dict()), "theirs.pth")
