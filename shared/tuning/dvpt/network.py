"""What the networks of the three released forms have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from crossband.shared.tuning.freeze import train_only


class PromptedNetwork(nn.Module):
    """A network with prompts; mixed in before, or a base.

    Attributes:
        head: Name of the module that is trained in full beside the prompts.
    """

    head_name = "fc_head"

    def train_prompts(self) -> list[str]:
        """Freeze all but prompts, projections, gates and head; return the names that remain."""
        patterns = ("*prompt*", f"{self.head_name}.*")
        names = [name for name, _ in self.named_parameters()]
        return train_only(self, [p for p in patterns if any(fnmatchcase(n, p) for n in names)])

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights to this network: tables are interpolated, and a file without prompts fits.

        Such a file is of the network that was pre-trained. Prompts and, where it does not fit,
        the head then keep their present values; a warning says so.
        """
        state = self.resample(dict(state))
        if any("prompt" in key for key in state):
            return state
        own = self.state_dict()
        new = {
            key: value
            for key, value in own.items()
            if "prompt" in key or self._is_other_head(key, value, state)
        }
        kept = {key: value for key, value in state.items() if key in own and key not in new}
        head = [key for key in new if "prompt" not in key]
        left = sorted({key.partition(".")[0] for key in state if key not in own})
        warnings.warn(
            f"The weights are of a network without prompts: {'; '.join(_news(head, left))}.",
            stacklevel=2,
        )
        return kept | new

    def resample(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate the tables of a state dict that are of another size."""
        return state

    def _is_other_head(self, key: str, value: Tensor, state: Mapping[str, Tensor]) -> bool:
        given = state.get(key)
        fits = given is not None and given.shape == value.shape
        return key.startswith(f"{self.head_name}.") and not fits


def _news(head: list[str], left: list[str]) -> list[str]:
    parts = ["prompts start as they are"]
    if head:
        parts.append(f"so does {', '.join(head)}")
    if left:
        parts.append(f"left out: {', '.join(f'{name}.*' for name in left)}")
    return parts
