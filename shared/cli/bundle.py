"""`crossband bundle ...`: MONAI bundles, ours and others'."""

from __future__ import annotations

from crossband.shared.cli.domain import Domain, Verb

_HERE = "crossband.shared.bundles"

BUNDLE = Domain(
    name="bundle",
    summary="look at, check, run, fine-tune and write MONAI bundles",
    verbs={
        "info": Verb(
            config=f"{_HERE}.config:InfoConfig",
            run=f"{_HERE}.commands:info",
            summary="what a bundle is, and what code its configuration would import",
            examples=("crossband bundle info spleen_ct_segmentation/",),
            positional="bundle",
        ),
        "check": Verb(
            config=f"{_HERE}.config:CheckConfig",
            run=f"{_HERE}.commands:check",
            summary="compare with MONAI's specification: metadata, ids, the network's shapes",
            examples=("crossband bundle check chest_bundle/",),
            positional="bundle",
        ),
        "run": Verb(
            config=f"{_HERE}.config:RunConfig",
            run=f"{_HERE}.commands:run",
            summary="run a bundle on images; nothing outside an allow-list without --trust",
            examples=("crossband bundle run chest_bundle/ studies/ --out out/",),
            positional=("bundle", "inputs"),
        ),
        "finetune": Verb(
            config=f"{_HERE}.config:FinetuneConfig",
            run=f"{_HERE}.commands:finetune",
            summary="go on training on new data, into a new bundle",
            examples=("crossband bundle finetune chest_bundle/ --data ours/ --out ours_bundle/",),
            positional="bundle",
        ),
        "write": Verb(
            config=f"{_HERE}.config:WriteConfig",
            run=f"{_HERE}.commands:write",
            summary="make a bundle of a crossband checkpoint",
            examples=("crossband bundle write --weights best.safetensors --out chest_bundle/",),
        ),
    },
)
