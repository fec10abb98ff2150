from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from model_tester import ModelTester
from torch import Tensor, nn

from crossband.shared.errors import ConfigError
from crossband.shared.registry import create_model
from crossband.spatiotemporal.predformer.model import (
    INTERLEAVED,
    VARIANTS,
    DropPath,
    GatedTransformer,
    Patchify,
    PredFormer,
)


def small(variant: str = "fac_ts", **arguments: object) -> PredFormer:
    sizes = {"history": 3, "in_channels": 2, "height": 8, "width": 8, "patch_size": 4}
    network = {"dim": 24, "heads": 3, "dim_head": 6, "mlp_ratio": 2, "depth": 1}
    torch.manual_seed(0)
    return PredFormer(variant=variant, **{**sizes, **network, **arguments}).eval()


class TestNetwork(ModelTester):
    input_shape = (3, 2, 8, 8)
    output_shape = (3, 1, 8, 8)  # other channels out than in

    @pytest.fixture(params=["full", "fac_st", "triplet_sts"])
    def model(self, request: pytest.FixtureRequest) -> nn.Module:
        self.variant = request.param
        return self.make()

    def make(self) -> nn.Module:
        return small(self.variant, out_channels=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_forecasts(variant: str) -> None:
    x = torch.randn(2, 3, 2, 8, 8)
    y = small(variant)(x)
    assert y.shape == x.shape
    assert y.std() > 0


class TestAuthorsKeys:
    @pytest.mark.parametrize(
        "name", ["mmnist_quadruplet_tsst", "t2m_fac_ts", "taxibj_full", "taxibj_triplet_sts"]
    )
    def test_keys_and_shapes(self, shared_dir: Path, name: str) -> None:
        data, variant = name.split("_", 1)
        lines = (shared_dir / f"specs/spatiotemporal/keys/predformer_{name}.txt").read_text()
        expected = [line.split("\t") for line in lines.splitlines() if line.count("\t") >= 1]
        with torch.device("meta"):
            state = create_model(f"predformer_{variant}_{data}").state_dict()
        found = {key: list(value.shape) for key, value in state.items()}
        listed = {key: shape for key, shape, *_ in expected if "." in key}
        assert found.keys() == listed.keys()
        for key, shape in listed.items():
            sizes = [
                int(n) for n in shape.strip("()[]").replace(",", " ").replace("x", " ").split()
            ]
            assert found[key] == sizes, key

    def test_parameter_counts(self, shared_dir: Path) -> None:
        table = shared_dir / "specs/spatiotemporal/keys/predformer_param_counts.tsv"
        rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
        assert len(rows) == 45
        for data, variant, _, _, count in rows:
            with torch.device("meta"):
                model = create_model(f"predformer_{variant}_{data}")
            assert sum(p.numel() for p in model.parameters()) == int(count), (data, variant)

    def test_single_head_as_wide_as_the_tokens_has_no_output_projection(self) -> None:
        one = small(heads=1, dim_head=24)
        assert not any("to_out" in key for key in one.state_dict())
        assert one(torch.randn(1, 3, 2, 8, 8)).isfinite().all()
        other = small(heads=1, dim_head=12)
        assert any("to_out.0.weight" in key for key in other.state_dict())

    def test_initial_weights(self) -> None:
        model = small(dim=96, dim_head=32)
        weight = model.temporal_transformer.layers[0][1].fn.fc1_g.weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert model.temporal_transformer.layers[0][1].fn.fc1_g.bias.abs().max() == 0
        bound = 1 / math.sqrt(32)  # PyTorch's own for the 2 x 4 x 4 inputs of a patch
        assert 0.9 * bound < model.to_patch_embedding[1].weight.abs().max() <= bound


class TestTokens:
    def test_position_code(self) -> None:
        code = small().pos_embedding
        assert code.shape == (1, 3, 4, 24)
        for t, n, i in ((0, 0, 0), (0, 0, 1), (2, 3, 6), (1, 2, 7), (2, 1, 23)):
            angle = (4 * t + n) / 10000 ** (2 * (i // 2) / 24)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert code[0, t, n, i].item() == pytest.approx(expected, abs=1e-6)
        assert "pos_embedding" not in small().state_dict()

    def test_a_patch_is_read_row_column_channel(self) -> None:
        x = torch.randn(1, 2, 3, 4, 6)
        patches = Patchify(2)(x)
        assert patches.shape == (1, 2, 6, 12)
        for row, column, i, j, c in ((0, 0, 0, 1, 2), (1, 2, 1, 0, 1), (0, 1, 1, 1, 0)):
            found = patches[0, 1, row * 3 + column, (i * 2 + j) * 3 + c]
            assert found == x[0, 1, c, row * 2 + i, column * 2 + j]

    def test_a_patch_is_written_channel_row_column(self) -> None:
        model = small(dim=32)
        model.mlp_head = nn.Identity()  # tokens of 2 x 4 x 4 numbers are patches
        tokens = torch.randn(1, 3, 4, 32)
        y = model.read_out(tokens)
        for row, column, i, j, c in ((0, 0, 0, 1, 1), (1, 0, 3, 2, 0), (1, 1, 2, 3, 1)):
            found = tokens[0, 2, row * 2 + column, (c * 4 + i) * 4 + j]
            assert y[0, 2, c, row * 4 + i, column * 4 + j] == found


def blocks_that_see(variant: str, **arguments: object) -> Tensor:
    """Return which block (t, row, column) of the output sees which block of the input.

    Every attention and MLP branch is zero, so that a token passes through unmixed.
    """
    model = small(variant, **arguments)
    for name, parameter in model.named_parameters():
        if "to_out" in name or "fc2" in name:
            nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 2, 8, 8)
    y = model(x)
    seen = torch.zeros(3, 2, 2, 3, 2, 2, dtype=torch.bool)
    for t in range(3):
        for row in range(2):
            for column in range(2):
                other = x.clone()
                other[0, t, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
                change = (model(other) - y)[0].abs().amax(1) > 0  # (T, H, W)
                seen[:, :, :, t, row, column] = change.view(3, 2, 4, 2, 4).any(4).any(2)
    return seen.view(12, 12)


class TestOrder:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_unmixed_tokens_come_out_where_they_went_in(self, variant: str) -> None:
        assert torch.equal(blocks_that_see(variant), torch.eye(12, dtype=torch.bool))

    def test_the_authors_fac_st_mixes_space_and_time(self) -> None:
        seen = blocks_that_see("fac_st", legacy_order=True)
        assert torch.equal(seen.sum(0), torch.ones(12, dtype=torch.int64))
        assert seen[0 * 4 + 3, 0 * 4 + 1]  # site 1 at time 0 lands in site 3 at time 0
        for t in range(3):
            for site in range(4):
                place = site * 3 + t  # of the site-major tokens, read as if time-major
                assert seen[place, t * 4 + site]

    def test_legacy_order_is_of_fac_st_alone(self) -> None:
        x = torch.randn(1, 3, 2, 8, 8)
        assert torch.equal(small("fac_ts", legacy_order=True)(x), small("fac_ts")(x))
        assert not torch.allclose(small("fac_st", legacy_order=True)(x), small("fac_st")(x))


class TestTransformer:
    @pytest.fixture
    def transformer(self) -> GatedTransformer:
        torch.manual_seed(0)
        return GatedTransformer(16, 1, 2, 8, 32, 0.0, 0.0, 0.0, 1e-5).eval()

    @pytest.mark.parametrize(
        ("axis", "reached"),
        [("S", {(1, n) for n in range(5)}), ("T", {(t, 2) for t in range(4)}), ("F", None)],
    )
    def test_reach(self, transformer: GatedTransformer, axis: str, reached: set | None) -> None:
        x = torch.randn(1, 4, 5, 16)
        other = x.clone()
        other[0, 1, 2, 3] += 1
        change = (transformer(other, axis) - transformer(x, axis))[0].abs().amax(-1) > 0
        everywhere = {(t, n) for t in range(4) for n in range(5)}
        assert {tuple(place) for place in change.nonzero().tolist()} == (reached or everywhere)

    @pytest.mark.parametrize("axis", ["S", "T", "F"])
    def test_knows_no_order(self, transformer: GatedTransformer, axis: str) -> None:
        x = torch.randn(2, 4, 5, 16)
        frames, sites = torch.randperm(4), torch.randperm(5)
        y = transformer(x, axis)[:, frames][:, :, sites]
        shuffled = transformer(x[:, frames][:, :, sites], axis)
        torch.testing.assert_close(shuffled, y, rtol=1e-4, atol=1e-5)

    def test_one_token_attends_to_itself(self, transformer: GatedTransformer) -> None:
        x = torch.randn(2, 1, 1, 16)
        for axis in "ST":
            torch.testing.assert_close(transformer(x, axis), transformer(x, "F"))

    def test_ends_in_a_norm(self, transformer: GatedTransformer) -> None:
        y = transformer(100 * torch.randn(2, 4, 5, 16), "S")
        torch.testing.assert_close(y.mean(-1), torch.zeros(2, 4, 5), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            y.var(-1, unbiased=False), torch.ones(2, 4, 5), rtol=1e-3, atol=0
        )


class TestDropPath:
    @pytest.mark.parametrize(
        ("axis", "sequences"), [("S", (40, 6, 1)), ("T", (40, 1, 5)), ("F", (40, 1, 1))]
    )
    def test_drops_whole_sequences(self, axis: str, sequences: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        y = DropPath(0.25).train()(torch.ones(40, 6, 5, 3), axis)
        kept = 4 / 3  # scaled so that the mean stays
        torch.testing.assert_close(y.unique(), torch.tensor([0.0, kept]))
        rows = y[:, : sequences[1], : sequences[2], :1]
        assert torch.equal(rows.expand(y.shape), y)
        assert rows.mean().item() == pytest.approx(1, abs=0.2)

    def test_only_in_training(self) -> None:
        x = torch.randn(2, 3, 4, 5)
        assert torch.equal(DropPath(0.9).eval()(x, "S"), x)
        assert torch.equal(DropPath(0.0).train()(x, "S"), x)


@pytest.mark.parametrize("variant", ["triplet_sts", "binary_ts"])
def test_layer_skip_adds_the_input_of_each_block(variant: str) -> None:
    plain, skip = small(variant, depth=2), small(variant, depth=2, layer_skip=True)
    tokens = torch.randn(1, 3, 4, 24)
    with_skip = skip.run_block(skip.blocks[0], tokens)
    torch.testing.assert_close(with_skip, plain.run_block(plain.blocks[0], tokens) + tokens)
    x = torch.randn(1, 3, 2, 8, 8)
    assert not torch.allclose(skip(x), plain(x))


def test_block_depth_adds_layers_inside_a_transformer() -> None:
    model = small("binary_ts", block_depth=3)
    assert len(model.blocks) == 1
    assert [len(t.layers) for t in model.blocks[0].values()] == [3, 3]
    assert list(model.blocks[0]) == [name for name, _ in INTERLEAVED["binary_ts"]]


class TestErrors:
    def test_unknown_variant(self) -> None:
        with pytest.raises(ConfigError, match="no variant 'fac_tss'.*fac_ts"):
            small("fac_tss")

    def test_grid_that_the_patches_do_not_tile(self) -> None:
        with pytest.raises(ConfigError, match="32 x 64 .*patches of 5.*30 x 60.*35 x 65") as error:
            small(height=32, width=64, patch_size=5)
        assert "patch_size from 1, 2, 4, 8, 16, 32." in str(error.value)
        with pytest.raises(ConfigError, match="patches of 4: pad it to 4 x 8"):  # cannot crop
            small(height=3, width=8)

    def test_frames_of_another_shape(self) -> None:
        with pytest.raises(ConfigError, match=r"\(3, 2, 8, 8\), not \(3, 2, 8, 12\)"):
            small()(torch.randn(1, 3, 2, 8, 12))

    def test_layer_skip_without_blocks(self) -> None:
        with pytest.raises(ConfigError, match="'full' has no blocks"):
            small("full", layer_skip=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_are_numbered_from_the_embedding_to_the_head(variant):
    model = PredFormer(
        variant=variant, history=2, in_channels=1, height=8, width=8, dim=8, heads=2, dim_head=4,
        depth=3,
    )  # fmt: skip
    indices = {name: model.layer_index(name) for name, _ in model.named_parameters()}
    last = {"full": 3, "fac_st": 6, "fac_ts": 6}.get(variant, 3) + 1
    assert set(indices.values()) == set(range(last + 1))
    assert indices["to_patch_embedding.1.weight"] == 0
    assert indices["mlp_head.1.bias"] == last
    order = [i for name, i in indices.items() if name.startswith(("blocks", "space", "temporal"))]
    if variant not in ("fac_st", "fac_ts"):
        assert order == sorted(order)
