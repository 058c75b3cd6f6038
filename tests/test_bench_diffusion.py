"""The throughput table at tiny shapes: its arithmetic, not its speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datasets.common import InputError
from scripts.bench_diffusion import main


@pytest.mark.parametrize(("head", "tokens"), [("diffusion_916", 14), ("diffusion_9160", 84)])
def test_figures_belong_together(head: str, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    main(["--tiny", "--only", head, "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    cases = [row for row in found["heads"] if row["head"].startswith(f"{head} ")]
    # Two numbers of rows, which --tiny makes one, on the plain path and with kernels.
    assert len(cases) == (4 if head == "diffusion_916" else 1)
    for figures in cases:
        assert figures["tokens"] == tokens and figures["rows"] == 4
        training_gflop = figures["train_tflops"] * figures["train_ms"] / figures["rows"]
        assert training_gflop == pytest.approx(3 * figures["nfe_gflop"], rel=1e-6)
        assert figures["share_of_peak"] == pytest.approx(figures["train_tflops"] / found["matmul_tflops"])
        both = figures["train_ms"] + figures["harvest_ms"]
        assert figures["harvest_share"] == pytest.approx(figures["harvest_ms"] / both)
        assert figures["nfe_in_h_cycles"] == pytest.approx(figures["nfe_ms"] / found["teacher"]["h_cycle_ms"])
    assert head in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--only", "nothing"], "--only nothing: no case"), (["--json", "/nowhere/a.json"], "/nowhere is not a folder")],
)
def test_what_cannot_be_measured_or_written_is_refused_first(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=words):
        main(["--tiny", *arguments])
    assert not capsys.readouterr().out
