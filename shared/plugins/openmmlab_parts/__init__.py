"""What crossband registers with OpenMMLab: imported when a `crossband.` name is first looked up.

| room | what |
|---|---|
| `backbones` | families of the catalog, any backbone of the registry, necks for plain ViTs |
| `data` | `FolderSegDataset`, `LoadThermalImage`, `EpochSampler` |
| `hooks` | `RunFolderHook`, `ReseedHook`, `StepSeedHook` |
| `optimizers` | `LayerDecay` |
"""

from __future__ import annotations

from crossband.shared.plugins.openmmlab_parts import backbones, data, hooks, optimizers

__all__ = ["backbones", "data", "hooks", "optimizers"]
