"""Configuration, one way: Hydra composes ``config/``, pydantic validates, and nothing is written back.

Of Hydra only the compose API is used: no ``@hydra.main``, no change of working directory, no output folder.

Usage: ``config = load_config("cfg_pretrain", ["arch=trm", "lr=3e-4", "+run_name=first"])``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from datasets.common import InputError
from models import load_class
from models.diffusion_blocks import DiffusionHead
from models.losses import ACTLossHead
from training.config_errors import describe, nearest, show, valid_names
from training.config_schema import ArchConfig, PretrainConfig, Section
from training.diffusion_schema import TEACHER_KEYS, DiffusionSection, DiffusionTrainConfig
from training.evaluate_schema import EvaluateConfig

CONFIG_DIR = Path(__file__).resolve().parent.parent / "config"

SCHEMAS: dict[str, type[Section]] = {
    "cfg_pretrain": PretrainConfig,
    "cfg_evaluate": EvaluateConfig,
    "cfg_diffusion_train": DiffusionTrainConfig,
}

# Keys of every architecture that come from the data set's metadata and the batch, never from here.
DATA_KEYS = ("batch_size", "seq_len", "vocab_size", "num_puzzle_identifiers")

# How the experiments of `diffusion_train.py` begin; the others are those of `pretrain.py`.
HEAD_EXPERIMENT = "diffusion_"

ConfigT = TypeVar("ConfigT", bound=Section)


@overload
def load_config(config_name: Literal["cfg_pretrain"], overrides: Sequence[str]) -> PretrainConfig: ...
@overload
def load_config(config_name: Literal["cfg_evaluate"], overrides: Sequence[str]) -> EvaluateConfig: ...
@overload
def load_config(config_name: Literal["cfg_diffusion_train"], overrides: Sequence[str]) -> DiffusionTrainConfig: ...
@overload
def load_config(config_name: str, overrides: Sequence[str], schema: type[ConfigT]) -> ConfigT: ...
def load_config(config_name: str, overrides: Sequence[str], schema: type[Section] | None = None) -> Section:
    """The validated configuration of ``config/{config_name}.yaml`` under command-line `overrides`.

    An override is ``key=value``, ``+key=value`` (the same, the key may exist or not) or ``group=choice``.
    ``--help`` and ``--cfg`` among them print the keys or the resolved configuration and end the program.
    `schema`: that of an entry point which this package does not know.
    Raises `InputError`, one line, for anything that is wrong with them.
    """
    schema = SCHEMAS[config_name] if schema is None else schema
    options = [text for text in overrides if text.startswith("-")]
    for option in options:
        if option not in ("--help", "-h", "--cfg"):
            raise InputError(f"{option}: unknown option, use key=value, --help or --cfg")
    settings = [text for text in overrides if text not in options]
    if {"--help", "-h"} & set(options):
        print(_help(config_name, schema, compose_mapping(config_name, settings, allow_missing=True)))
        raise SystemExit(0)
    config = validate_config(schema, compose_mapping(config_name, settings), config_name)
    if "--cfg" in options:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def validate_config(schema: type[ConfigT], data: Mapping[str, Any], config_name: str | None = None) -> ConfigT:
    """`data`, composed or recorded in a checkpoint, as a `schema`; architecture and head check their own keys."""
    names = [*valid_names(schema), *config_groups(config_name or _config_name(schema))]
    for section, excluded in (("arch", DATA_KEYS), ("diffusion", TEACHER_KEYS)):
        if section in schema.model_fields:
            names += [f"{section}.{key}" for key in _own_keys(data.get(section)) if key not in excluded]
    try:
        config = schema.model_validate(data)
    except ValidationError as error:
        raise InputError(describe(error, names)) from error
    if isinstance(arch := getattr(config, "arch", None), ArchConfig):
        _check_architecture(arch, names)
    if isinstance(diffusion := getattr(config, "diffusion", None), DiffusionSection):
        _check_head(diffusion, names)
    return config


def to_yaml(config: BaseModel) -> str:
    """Every key with its resolved value, in the order of the schema; `validate_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def compose_mapping(config_name: str, overrides: Sequence[str], allow_missing: bool = False) -> dict[str, Any]:
    """What Hydra composes, with interpolations resolved; not validated yet. A missing value is ``???``."""
    groups = config_groups(config_name)
    arguments = [_normalise(text, groups) for text in overrides]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            composed = compose(config_name, arguments)
        data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=not allow_missing)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key}: a value is required, as in {error.full_key}=…") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{' '.join(overrides) or config_name}: {_one_line(error)}") from error
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def config_groups(config_name: str) -> dict[str, list[str]]:
    """The groups that ``{config_name}.yaml`` composes, each with its choices."""
    defaults = yaml.safe_load((CONFIG_DIR / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]
    groups = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    choices = {group: sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml")) for group in groups}
    if "experiment" in choices:
        of_heads = config_name == "cfg_diffusion_train"
        choices["experiment"] = [name for name in choices["experiment"] if name.startswith(HEAD_EXPERIMENT) == of_heads]
    return choices


def _normalise(text: str, groups: Mapping[str, list[str]]) -> str:
    """The override as Hydra should see it: any key may be set, unknown ones are for the schema to refuse."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise InputError(f"{text}: not an override, expected key=value or group=choice") from error
    key = override.key_or_group
    if not key:
        raise InputError(f"{text}: not an override, expected key=value or group=choice")
    if key.partition(".")[0] == "hydra":
        raise InputError(f"{text}: Hydra's own settings have no effect here; see --help for the keys that do")
    if override.is_sweep_override():
        raise InputError(f"{text}: expected one value; start one run for each, or quote a value that holds a comma")
    if key not in groups:
        if (CONFIG_DIR / key).is_dir():
            raise InputError(f"{text}: there is no group {key} here, only {', '.join(groups)}")
        return text if override.is_delete() else "++" + text.lstrip("+")
    choice = override.value()
    if choice is None:
        return f"~{key}"
    if choice not in groups[key]:
        near = nearest(str(choice), groups[key])
        hint = f", the nearest is {near}" if near else ""
        raise InputError(f"{text}: unknown choice{hint}; there are {', '.join(groups[key])}")
    return text.lstrip("+")


def _check_architecture(arch: ArchConfig, names: Sequence[str]) -> None:
    for key, spec in (("arch.loss.name", arch.loss.name), ("arch.name", arch.name)):
        try:
            model_class = load_class(spec)
        except ValueError as error:
            raise InputError(f"{key}={spec}: {error}") from error
    if not (isinstance(loss_class := load_class(arch.loss.name), type) and issubclass(loss_class, ACTLossHead)):
        raise InputError(f"arch.loss.name={arch.loss.name}: not a loss head; use losses@ACTLossHead")
    config_class = getattr(model_class, "config_class", None)
    if config_class is None:
        raise InputError(f"arch.name={arch.name}: that class has no config_class, so it is no architecture")
    settings = arch.hyperparameters
    for key in DATA_KEYS:
        if key in settings:
            raise InputError(f"arch.{key}={show(settings[key])}: the data set decides this, drop the key")
    if settings.get("forward_dtype") == "auto":  # the device decides later
        settings["forward_dtype"] = "bfloat16"
    try:
        stand_ins = dict.fromkeys(DATA_KEYS, 1)
        config_class.model_validate(settings | stand_ins, strict=True, context={"before_data": True})
    except ValidationError as error:
        raise InputError(describe(error, names, prefix="arch.")) from error


def _check_head(section: DiffusionSection, names: Sequence[str]) -> None:
    try:
        head_class = load_class(section.name)
    except ValueError as error:
        raise InputError(f"diffusion.name={section.name}: {error}") from error
    if not (isinstance(head_class, type) and issubclass(head_class, DiffusionHead)):
        raise InputError(f"diffusion.name={section.name}: that class is no diffusion head")
    takes = ("h_cycle", "jump") if "target_kind" in head_class.config_class.model_fields else ("layer",)
    if section.rows not in takes:
        raise InputError(
            f"diffusion.rows={section.rows} does not suit diffusion.name={section.name}: use {' or '.join(takes)}"
        )
    settings = section.hyperparameters
    if "target_kind" in settings:
        raise InputError(f"diffusion.target_kind={show(settings['target_kind'])}: diffusion.rows decides this, drop it")
    for key in TEACHER_KEYS:
        if key in settings:
            raise InputError(f"diffusion.{key}={show(settings[key])}: the teacher decides this, drop the key")
    # Stand-ins for what the teacher decides.
    stand_ins = {"num_heads": 1, "expansion": 4.0} | ({"loops": 1} if "loops" in settings else {})
    for key, value in stand_ins.items():
        if settings.get(key) is None:
            settings[key] = value
    if settings.get("forward_dtype") == "auto":
        settings["forward_dtype"] = "float32"
    heads = settings["num_heads"] if isinstance(settings["num_heads"], int) else 1
    teacher = {"latent_size": 2 * max(1, heads), "length": 1, "target_blocks": 2, "mlp_t": False}
    try:
        head_class.config_class.model_validate(settings | teacher, strict=True)
    except ValidationError as error:
        raise InputError(describe(error, names, prefix="diffusion.")) from error


def _own_keys(section: Any) -> list[str]:
    """Keys of the class that a section names; none when it names none, which is reported elsewhere."""
    try:
        return list(load_class(section["name"]).config_class.model_fields)
    except (TypeError, KeyError, ValueError, AttributeError):
        return []


def _config_name(schema: type[Section]) -> str:
    return next(name for name, known in SCHEMAS.items() if known is schema)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _help(config_name: str, schema: type[Section], data: dict[str, Any]) -> str:
    """The groups and their choices, then every key with its value and what it is."""
    entry_point = f"{config_name.removeprefix('cfg_')}.py"
    lines = [
        f"usage: python {entry_point} [group=choice ...] [key=value ...] [--cfg] [--help]",
        "",
        "Groups (files of config/); --help after a choice shows what it sets:",
    ]
    lines += [f"  {group}={'|'.join(choices)}" for group, choices in config_groups(config_name).items()]
    lines += ["", "Keys, with their values under the choices made:"]
    descriptions = _descriptions(schema)
    in_order = {key: data[key] for key in schema.model_fields if key in data}
    for key, value in leaves(in_order):
        setting = f"{key}={show(value)}"
        lines.append(f"  {setting:<44}  {descriptions.get(key, '')}".rstrip())
    return "\n".join(lines)


def _descriptions(schema: type[BaseModel], prefix: str = "") -> dict[str, str]:
    found = {}
    for key, field in schema.model_fields.items():
        found[prefix + key] = field.description or ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _descriptions(field.annotation, f"{prefix}{key}.")
    return found


def leaves(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Every value of a nested configuration with its dotted key."""
    found = []
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found
