"""Checkpoints of Xiao et al. 2023 (medical_mae), and what pre-trains a classifier.

| file | keys | ours |
|---|---|---|
| masked autoencoder | `blocks.*`, `norm.*`, `decoder_*`, `mask_token` | `MAE`, the same keys |
| fine-tuned ViT | `blocks.*`, `fc_norm.*` (class token: `norm.*`), `head.*` | `ViTClassifier` |
| masked U-Net | `model.encoder.*`, `model.decoder.*`, ... | `CNNMAE`, the same keys |
| fine-tuned CNN | as timm's or torchvision's | `timm:densenet121`, ... |

Their files hold `model, optimizer, epoch, scaler, args`; nothing but `model` is used, and the
`argparse.Namespace` among it is read as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from crossband.shared.backbones.vit import ViTTrunk
from crossband.shared.backbones.vit_keys import LoadReport, load_vit
from crossband.shared.checkpoints import HEADER_KEY, load_state, read_state_dict
from crossband.shared.errors import CheckpointError
from crossband.shared.pretraining.cnn_mae import CNNMAE, ENCODER, HEAD, load_cnn_encoder
from crossband.shared.pretraining.mae import MAE

_HEAD_STD = 2e-5


@dataclass(frozen=True)
class PretrainedReport(LoadReport):
    """What became of every key, and of the head.

    Attributes:
        new_head: Whether the head starts anew.
    """

    new_head: bool = False

    def __str__(self) -> str:
        """Return one line."""
        return super().__str__() + ("; the head starts anew" if self.new_head else "")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our keys of the authors', which are the same but for a wrapper of several GPUs."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict as it is: our keys are the authors'."""
    return dict(state)


def load_pretrained(model: nn.Module, path: str | Path) -> PretrainedReport:
    """Start a network from a file, ours or the authors'; nothing is left unsaid.

    A classifier takes the encoder of masked pre-training, or a trained classifier, whose head is
    kept if it has as many outputs. A ViT's `norm.*` is dropped where patches are pooled (`fc_norm`
    is new then), and its positions are interpolated bicubically to another grid; they are trained
    from then on. A head that starts anew has weights of standard deviation 2e-5. Masked
    autoencoders go on from files of their own kind.

    Args:
        model: `ViTClassifier`, or one that holds a plain ViT; a CNN of timm, torchvision or MONAI;
            `MAE` or `CNNMAE`.
        path: The file.

    Raises:
        CheckpointError: unreadable, unsafe, or of another network.
    """
    raw, header = read_state_dict(path)
    state = from_official(raw)
    if isinstance(model, MAE | CNNMAE):
        return _continue(model, state, HEADER_KEY in header, path)
    trunk = next((m for m in model.modules() if isinstance(m, ViTTrunk)), None)
    masked_cnn = any(key.startswith(ENCODER) for key in state)
    if trunk is not None:
        if masked_cnn:
            raise CheckpointError(
                f"{path} is of masked pre-training of a CNN, {type(model).__name__} is a ViT: give "
                "a file of a masked ViT, or train the CNN."
            )
        report = load_vit(trunk, path)
    elif masked_cnn:
        report = load_cnn_encoder(model, path)
    else:
        report = _load_cnn(model, state, path)
    new = _renew_head(model if trunk is None else trunk, report)
    return PretrainedReport(**vars(report), new_head=new)


def _continue(
    model: MAE | CNNMAE, state: dict[str, Tensor], ours: bool, path: str | Path
) -> PretrainedReport:
    """Go on with masked pre-training: the whole network must be there."""
    before = state
    if isinstance(model, MAE):
        state = model.adapt_state(state if ours else model.adapt_official(state))
    load_state(model, state, path)
    resampled = tuple(sorted(key for key in state if state[key] is not before.get(key)))
    layout = "timm" if isinstance(model, MAE) else "smp"
    return PretrainedReport(str(path), layout, tuple(sorted(state)), (), (), resampled)


def _load_cnn(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> LoadReport:
    """Load a trained CNN; a head of another number of outputs is left out."""
    own = model.state_dict()
    left = tuple(sorted(k for k, v in state.items() if HEAD.match(k) and _misfit(v, own.get(k))))
    kept = {key: value for key, value in state.items() if key not in left}
    missing = tuple(sorted(key for key in own if HEAD.match(key) and key not in kept))
    load_state(model, kept | {key: own[key] for key in missing}, path)
    return LoadReport(str(path), "the network's own", tuple(sorted(kept)), missing, left, ())


def _misfit(value: Tensor, own: Tensor | None) -> bool:
    return own is None or own.shape != value.shape


def _renew_head(owner: nn.Module, report: LoadReport) -> bool:
    """Initialise linear layers of a head that were not in the file; say whether there are any.

    Args:
        owner: What the keys of the report belong to.
        report: Of the loading.
    """
    found = False
    for key in report.missing:
        module = owner.get_submodule(key.rpartition(".")[0])
        if HEAD.match(key) and key.endswith(".weight") and isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_HEAD_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            found = True
    return found
