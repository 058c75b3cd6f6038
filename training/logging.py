"""What a run says about itself: metrics files, progress on the terminal, W&B and TensorBoard if wanted.

A run logs like this:

    with RunLogger(run_dir, total_steps=1000, start_step=0) as logger:
        logger.log(10, {"train/loss": 1.25})
        logger.progress(10, {"loss": 1.25})
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

from datasets.common import InputError
from training.config import to_yaml
from training.config_schema import RunConfig
from training.distributed import Distributed
from training.metrics_file import MetricsFile
from training.progress import Progress

_WANDB_ID_NAME = "wandb_run_id.txt"


class RunLogger:
    """Writes on the main process and does nothing on the others (``is_main=False``).

    Args:
        start_step: the step to continue from; records of later steps are dropped from the files.
        wandb: log to Weights & Biases, to the same run again after a resume. ``WANDB_MODE`` (online, offline,
            disabled) is W&B's own switch.
        tensorboard: write event files to ``run_dir/tensorboard``.
        config: the resolved configuration, shown by W&B.

    Raises `InputError` at once if a package or an account that was asked for is missing.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        total_steps: int,
        start_step: int = 0,
        wandb: bool = False,
        tensorboard: bool = False,
        progress_bar: bool = True,
        project: str | None = None,
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
        is_main: bool = True,
    ) -> None:
        self._is_main = is_main
        if not is_main:
            return
        check_packages(wandb=wandb, tensorboard=tensorboard)
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._tensorboard = _open_tensorboard(run_dir, start_step) if tensorboard else None
        self._wandb = _open_wandb(run_dir, start_step, project, run_name, config) if wandb else None
        self._metrics = MetricsFile(run_dir, start_step)
        self._progress = Progress(total_steps, start_step, bar=progress_bar)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record figures of ``step`` everywhere; keys are "train/...", "eval/..." and the like."""
        if not self._is_main:
            return
        self._metrics.append(step, values)
        if self._wandb is not None:
            self._wandb.log({"step": step} | {key: float(value) for key, value in values.items()})
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, float(value), step)

    def evaluation(self, step: int, figures: Mapping[str, float], headlines: tuple[str, ...]) -> None:
        """Record the figures of an evaluation, and print those whose names end like one of `headlines`."""
        self.log(step, {f"eval/{key}": value for key, value in figures.items()})
        shown = [f"{key} {value:.4g}" for key, value in figures.items() if key.endswith(headlines)]
        self.message(f"step {step}: " + ", ".join(shown))

    def progress(self, step: int, texts: Mapping[str, float | str] | None = None) -> None:
        """Show on the terminal that ``step`` steps are done, with a few figures."""
        if self._is_main:
            self._progress.update(step, texts)

    def message(self, text: str) -> None:
        """Print a line on the terminal without tearing the progress bar."""
        if self._is_main:
            self._progress.message(text)

    def close(self, *, failed: bool = False) -> None:
        """Flush and close everything; ``failed`` marks the W&B run."""
        if not self._is_main:
            return
        self._progress.close()
        self._metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))


def open_logger(config: RunConfig, total_steps: int, start_step: int, dist: Distributed) -> RunLogger:
    """The logger of a run in its folder, where ``config.yaml`` is written first."""
    if dist.is_main:
        (config.run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return RunLogger(
        config.run_dir,
        total_steps=total_steps,
        start_step=start_step,
        wandb=config.logger.wandb,
        tensorboard=config.logger.tensorboard,
        progress_bar=config.logger.progress_bar,
        project=config.project_name,
        run_name=config.run_label,
        config=config.model_dump(mode="json"),
        is_main=dist.is_main,
    )


def check_packages(*, wandb: bool, tensorboard: bool) -> None:
    """`InputError` if a package that is asked for is missing; entry points ask before they write anything."""
    # `wandb` may be but a folder of logs in the working directory, hence a module inside.
    for wanted, package, module in (
        (wandb, "wandb", "wandb.errors"),
        (tensorboard, "tensorboard", "torch.utils.tensorboard"),
    ):
        if not wanted:
            continue
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(
                f"logger.{package}=true, but the package is missing; pip install {package} or set it to false"
            ) from None


def _open_tensorboard(run_dir: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1)


def _open_wandb(
    run_dir: Path, start_step: int, project: str | None, name: str | None, config: Mapping[str, Any] | None
) -> Any:
    import wandb
    import wandb.errors

    id_file = run_dir / _WANDB_ID_NAME
    if start_step == 0 or not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    try:
        run = wandb.init(
            project=project,
            name=name,
            config=dict(config or {}),
            dir=str(run_dir),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
        )
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"logger.wandb=true, but W&B does not start ({reason}); log in, or set WANDB_MODE=offline"
        ) from None
    # Steps done again after a resume would be refused as W&B's own step, which may only grow.
    run.define_metric("*", step_metric="step")
    return run
