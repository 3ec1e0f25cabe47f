"""A folder that `write` makes of each family, with an expert folded in and another projector, answers as it did in memory."""

from pathlib import Path

import pytest
import torch

from hide_llava.interop import proof
from tests.families import FAMILIES, Zoo, asked, experts, logits, picture


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_written_folder(kind: str, zoo: Zoo, tmp_path: Path) -> None:
    family = zoo(kind)
    backbone = family.load()
    core = experts(backbone, "one", targets="attention" if backbone.lacks else "all")
    with torch.no_grad():
        for parameter in backbone.projector.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    sample = asked(backbone, "What is the object in the image?", [picture(60, 40)])
    core.fold(["one"], [1.0], "delta_sum", [])
    core.fuse()
    ours = logits(backbone, [sample])
    backbone.write(tmp_path / "out", family.folder, core.weights(), "pad")
    model = proof.loaded(tmp_path / "out", torch.float32, torch.device("cpu"))
    (theirs,) = proof.of_plain(model, type(backbone), [sample])
    torch.testing.assert_close(theirs, ours[0], atol=1e-4, rtol=1e-4)
    (bare,) = proof.of_plain(family.upstream, type(backbone), [sample])
    assert (bare - ours[0]).abs().max() > 0.01
    again = type(backbone).reader_of(tmp_path / "out")
    assert again.question("What is it?", [(60, 40)]).ids == family.reader.question("What is it?", [(60, 40)]).ids
