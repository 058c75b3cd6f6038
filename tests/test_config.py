"""Configuration: every file composes and validates, published commands work, mistakes get one line."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from datasets.common import InputError
from training import cli
from training.config import CONFIG_DIR, compose_mapping, config_groups, load_config, to_yaml, validate_config
from training.config_errors import nearest, valid_names
from training.config_schema import PretrainConfig
from training.diffusion_head import recorded_config
from training.diffusion_schema import DiffusionTrainConfig
from training.evaluate_schema import EvaluateConfig

CHOICES = [(group, choice) for group, choices in config_groups("cfg_pretrain").items() for choice in choices]
HYBRID_GROUPS = {
    group: of for group, of in config_groups("cfg_hybrid_train").items() if group in ("texts", "llm", "hybrid")
}
HEAD_CHOICES = [
    (group, choice)
    for group, choices in config_groups("cfg_diffusion_train").items()
    for choice in choices
    if choice != "adam_atan2"  # for recursive models only
]

# As published for the original code, every override as written; a shell puts a name in place of ${run_name}.
QUICK_TEST = 'arch=trm data_paths="[data/sudoku-extreme-1k-aug-1000]" epochs=100 eval_interval=100 evaluators="[]"'
TWO_LEVELS = 'arch=trm data_paths="[data/arc1concept-aug-1000]" arch.H_layers=2 arch.L_layers=2'
ARC1 = """arch=trm data_paths="[data/arc1concept-aug-1000]" arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4
    +run_name=arc ema=True"""
SUDOKU_ATT = """arch=trm data_paths="[data/sudoku-extreme-1k-aug-1000]" evaluators="[]"
    epochs=50000 eval_interval=5000 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0
    arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=6 +run_name=att ema=True"""
SUDOKU_MLP = SUDOKU_ATT + " arch.mlp_t=True arch.pos_encodings=none"
MAZE = """arch=trm data_paths="[data/maze-30x30-hard-1k]" evaluators="[]"
    epochs=50000 eval_interval=5000 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0
    arch.L_layers=2 arch.H_cycles=3 arch.L_cycles=4 +run_name=maze ema=True"""


def pretrain(command: str = "") -> PretrainConfig:
    return load_config("cfg_pretrain", shlex.split(command))


def diffusion(command: str = "") -> DiffusionTrainConfig:
    return load_config("cfg_diffusion_train", ["checkpoint=runs/teacher", *shlex.split(command)])


# Files


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_validates(group: str, choice: str) -> None:
    config = pretrain(f"{group}={choice}")
    assert config == validate_config(PretrainConfig, yaml.safe_load(to_yaml(config)))


@pytest.mark.parametrize(("group", "choice"), HEAD_CHOICES)
def test_every_choice_of_a_head_composes_and_validates(group: str, choice: str) -> None:
    config = diffusion(f"{group}={choice}")
    assert config == validate_config(DiffusionTrainConfig, yaml.safe_load(to_yaml(config)))


@pytest.mark.parametrize("arch", config_groups("cfg_pretrain")["arch"])
def test_every_architecture_smokes(arch: str) -> None:
    config = pretrain(f"experiment=smoke arch={arch}")
    assert arch.removesuffix("_split") in config.arch.name
    assert config.arch.hyperparameters["hidden_size"] == 32


def test_every_file_is_a_choice_an_entry_point_or_a_list_of_presets() -> None:
    choices = {CONFIG_DIR / group / f"{choice}.yaml" for group, choice in CHOICES + HEAD_CHOICES}
    entry_points = set(CONFIG_DIR.glob("cfg_*.yaml"))
    # tests/hybrid_pipeline reads these
    choices |= {CONFIG_DIR / group / f"{choice}.yaml" for group, of in HYBRID_GROUPS.items() for choice in of}
    lists = set((CONFIG_DIR / "ablation").glob("*.yaml"))  # tests/training/test_ablation.py reads them
    assert set(CONFIG_DIR.rglob("*.yaml")) == choices | entry_points | lists


def test_experiments_belong_to_one_entry_point() -> None:
    ours, theirs = (set(config_groups(name)["experiment"]) for name in ("cfg_diffusion_train", "cfg_pretrain"))
    assert ours == {"diffusion_quickstart", "diffusion_smoke"} and "smoke" in theirs
    assert not ours & theirs


@pytest.mark.parametrize("choice", config_groups("cfg_pretrain")["data"])
def test_data_names_the_command_that_builds_it(choice: str) -> None:
    comments = re.findall(r"^# +(.*)$", (CONFIG_DIR / "data" / f"{choice}.yaml").read_text("utf-8"), re.MULTILINE)
    command = " ".join(comments).partition("python -m ")[2].partition(" Without ")[0].replace("\\ ", "")
    module, *arguments = shlex.split(command)
    parsed = importlib.import_module(module)._parser().parse_args(arguments)
    assert [parsed.output_dir] == pretrain(f"data={choice}").data_paths


def test_files_and_schemas_have_the_same_keys() -> None:
    assert set(compose_mapping("cfg_pretrain", [])) == set(PretrainConfig.model_fields)
    composed = compose_mapping("cfg_evaluate", ["checkpoint=runs/a"])
    assert set(composed) == set(EvaluateConfig.model_fields) - {"arch"}
    composed = compose_mapping("cfg_diffusion_train", ["checkpoint=runs/a"])
    assert set(composed) == set(DiffusionTrainConfig.model_fields)
    for section in ("harvest", "sampler", "noise"):
        assert set(composed[section]) == set(getattr(diffusion(), section).__class__.model_fields)


def test_every_key_is_explained() -> None:
    sections = {"arch", "arch.loss", "optim", "logger", "evaluators", "diffusion", "noise", "harvest", "sampler"}
    for schema in (PretrainConfig, EvaluateConfig, DiffusionTrainConfig):
        undocumented = {key for key, field in schema.model_fields.items() if not field.description}
        assert undocumented <= sections


@pytest.mark.parametrize("arch", config_groups("cfg_evaluate")["arch"])
def test_evaluation_of_a_file_of_weights(arch: str) -> None:
    config = load_config("cfg_evaluate", ["checkpoint=weights.pt", f"arch={arch}", "data=sudoku_extreme"])
    assert config.arch is not None
    assert arch.removesuffix("_split") in config.arch.name
    assert config.data_paths == ["data/sudoku-extreme-1k-aug-1000"]


def test_evaluation_leaves_everything_else_to_the_checkpoint() -> None:
    config = load_config("cfg_evaluate", ["checkpoint=runs/a"])
    assert (config.arch, config.data_paths, config.evaluators, config.halt_max_steps) == (None,) * 4


# Values


def test_defaults_are_the_published_ones() -> None:
    config = pretrain()
    published = {
        "global_batch_size": 768,
        "epochs": 100000,
        "eval_interval": 10000,
        "checkpoint_every_eval": True,
        "lr": 1e-4,
        "lr_min_ratio": 1.0,
        "lr_warmup_steps": 2000,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "puzzle_emb_weight_decay": 0.1,
        "puzzle_emb_lr": 1e-2,
        "seed": 0,
        "min_eval_interval": 0,
        "ema": False,
        "ema_rate": 0.999,
        "freeze_weights": False,
    }
    assert {key: getattr(config, key) for key in published} == published
    assert [evaluator.name for evaluator in config.evaluators] == ["arc@ARC"]
    assert config.arch.loss.model_dump() == {
        "name": "losses@ACTLossHead",
        "loss_type": "stablemax_cross_entropy",
    }
    assert config.arch.hyperparameters == {
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 16,
        "H_cycles": 3,
        "L_cycles": 6,
        "H_layers": 0,
        "L_layers": 2,
        "hidden_size": 512,
        "num_heads": 8,
        "expansion": 4,
        "puzzle_emb_ndim": 512,
        "puzzle_emb_len": 16,
        "pos_encodings": "rope",
        "forward_dtype": "auto",
        "mlp_t": False,
        "no_ACT_continue": True,
    }


@pytest.mark.parametrize(
    ("command", "experiment"),
    [(ARC1, "arc1"), (SUDOKU_ATT, "sudoku_att"), (SUDOKU_MLP, "sudoku_mlp"), (MAZE, "maze")],
)
def test_experiments_are_the_published_commands(command: str, experiment: str) -> None:
    # A name, more figures, more checkpoints, the same steps in smaller passes.
    ours = {"run_name", "evaluators", "checkpoint_interval", "micro_batch_size"}
    assert pretrain(command).model_dump(exclude=ours) == pretrain(f"experiment={experiment}").model_dump(exclude=ours)


def test_published_commands_work_as_written() -> None:
    quick = pretrain(QUICK_TEST)
    assert (quick.epochs, quick.eval_interval, quick.evaluators) == (100, 100, [])
    assert quick.data_paths == ["data/sudoku-extreme-1k-aug-1000"]
    levels = pretrain(TWO_LEVELS).arch.hyperparameters
    assert (levels["H_layers"], levels["L_layers"]) == (2, 2)
    mlp = pretrain(SUDOKU_MLP)
    assert (mlp.run_name, mlp.ema, mlp.weight_decay) == ("att", True, 1.0)
    assert (mlp.arch.hyperparameters["mlp_t"], mlp.arch.hyperparameters["pos_encodings"]) == (True, "none")


def test_the_command_line_beats_the_experiment() -> None:
    config = pretrain("experiment=sudoku_mlp data=maze_hard lr=3e-4 optim=muon evaluator=none +seed=3")
    assert config.data_paths == ["data/maze-30x30-hard-1k"]
    assert (config.lr, config.seed, config.optim.name, config.evaluators) == (3e-4, 3, "muon", [])
    assert config.weight_decay == 1.0


def test_the_embedding_is_as_wide_as_the_network() -> None:
    assert pretrain("arch.hidden_size=64").arch.hyperparameters["puzzle_emb_ndim"] == 64


def test_a_number_may_be_a_name() -> None:
    assert pretrain("run_name=7").run_dir == Path("runs/7")
    assert pretrain("checkpoint_path=somewhere/else").run_dir == Path("somewhere/else")


def test_run_label_follows_what_is_computed() -> None:
    label = pretrain().run_label
    assert label.startswith("trm-arc1concept-aug-1000-")
    assert label == pretrain("log_interval=1 logger=wandb device=cpu").run_label
    assert label != pretrain("lr=2e-4").run_label
    assert label != pretrain("arch.L_cycles=4").run_label


@pytest.mark.parametrize(("world_size", "rows"), [(1, 768), (4, 192), (8, 96), (3, 256)])
def test_local_batch_size(world_size: int, rows: int) -> None:
    assert pretrain().local_batch_size(world_size) == rows


def test_local_batch_size_refuses_uneven_shares() -> None:
    with pytest.raises(InputError, match=r"global_batch_size=768 .* 5 processes"):
        pretrain().local_batch_size(5)
    assert pretrain("micro_batch_size=192").local_batch_size(8) == 96
    with pytest.raises(InputError, match="micro_batch_size=192 does not divide the 256 rows"):
        pretrain("micro_batch_size=192").local_batch_size(3)


def test_defaults_of_heads() -> None:
    """Beside each its source, or the reason in the file itself."""
    config = diffusion()
    assert config.diffusion.hyperparameters == {
        "num_layers": 2,  # those of TRM's level
        "num_heads": None,
        "expansion": None,
        "norm": "post",
        "token_mixing": "auto",
        "conditioning": "own",
        "prediction": "x0",
        "sphere": True,
        "forward_dtype": "auto",
        "checkpointing": False,
    }
    ddpm = {"schedule": "linear", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "shift": 1.0}
    assert config.noise.model_dump() == ddpm | {"timesteps": "stratified"}
    optimiser = {"lr": 3e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.0, "ema_rate": 0.999}
    assert {key: getattr(config, key) for key in optimiser} == optimiser
    assert (config.global_batch_size, config.max_steps, config.harvest.replay) == (256, 5000, 4.0)
    assert (config.harvest.act_step_weights, config.harvest.act_step_floor) == ("copy_error", 0.05)


@pytest.mark.parametrize(
    ("choice", "differs"),
    [
        ("d916_v", {"prediction": "v"}),
        ("d916_eps", {"prediction": "eps"}),
        ("d916_regression", {"prediction": "regression"}),
        ("d916_x0", {}),
    ],
)
def test_ablations_differ_in_what_they_are_named_for(choice: str, differs: dict[str, str]) -> None:
    default, ours = diffusion().diffusion, diffusion(f"diffusion={choice}").diffusion
    assert ours.hyperparameters == default.hyperparameters | differs
    assert (ours.name, ours.rows, ours.loss) == (default.name, default.rows, default.loss)


def test_ablations_of_whole_cycles() -> None:
    default = diffusion("diffusion=diffusion_9160").diffusion
    assert (default.hyperparameters["num_layers"], default.hyperparameters["attention"]) == (6, "alternating")
    assert diffusion("diffusion=d9160_alternating").diffusion == default
    full = diffusion("diffusion=d9160_full").diffusion
    assert full.hyperparameters == default.hyperparameters | {"attention": "full"}
    jump = diffusion("diffusion=d9160_jump").diffusion
    assert (jump.rows, jump.hyperparameters) == ("jump", default.hyperparameters)
    regression = diffusion("diffusion=d9160_jump_regression").diffusion
    assert (regression.rows, regression.hyperparameters["prediction"]) == ("jump", "regression")
    for seed in ("d916_seed_eps", "d9160_seed_eps"):
        assert "prediction" not in diffusion(f"diffusion={seed}").diffusion.hyperparameters  # the head's own: eps


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ("diffusion=diffusion_9160", True),
        ("diffusion=d9160_jump", True),
        ("diffusion=diffusion_9160 diffusion.own_estimates=false", False),
        ("diffusion=diffusion_9160 diffusion.prediction=v", False),
        ("diffusion=d9160_jump_regression", False),
        ("diffusion=d9160_seed_eps", False),
        ("diffusion=diffusion_916", False),
        ("diffusion=diffusion_916 diffusion.own_estimates=true", True),
    ],
)
def test_who_adds_noise_to_its_own_estimates(choices: str, expected: bool) -> None:
    assert diffusion(choices).diffusion.noises_own_estimates is expected


def test_heads_of_earlier_versions_keep_their_configuration() -> None:
    config = diffusion()
    recorded = config.model_dump(mode="json")
    recorded["harvest"] |= {"perturbation": 0.3}
    assert recorded_config({"config": recorded}) == config
    with pytest.raises(InputError, match=r"harvest\.moved=0\.3: unknown key"):
        recorded_config({"config": recorded | {"harvest": recorded["harvest"] | {"moved": 0.3}}})


def test_label_of_a_head_names_it_and_its_teacher() -> None:
    label = diffusion().run_label
    assert label.startswith("diffusion_916-layer-teacher-")
    assert label == diffusion("log_interval=1 eval_interval=100 device=cpu sampler.steps=[2]").run_label
    assert label != diffusion("harvest.replay=2").run_label
    assert diffusion("checkpoint=runs/b/checkpoints/step_5 diffusion=d9160_jump").run_label.startswith(
        "diffusion_9160-jump-b-"
    )


# Mistakes

BAD_OVERRIDES = [
    # a key that does not exist, and the one that was meant
    ("leraning_rate=1", "leraning_rate=1", "--help"),
    ("lr_warmup_step=10", "lr_warmup_step=10", "lr_warmup_steps"),
    ("epoch=10", "epoch=10", "epochs"),
    ("ach=hrm", "ach=hrm", "arch"),
    ("arhc.H_cycles=3", "arhc.H_cycles=3", "arch.H_cycles"),
    ("arch.hiden_size=64", "arch.hiden_size=64", "arch.hidden_size"),
    ("arch.h_cycles=2", "arch.h_cycles=2", "arch.H_cycles"),
    ("hidden_size=64", "hidden_size=64", "arch.hidden_size"),
    ("arch.loss.losstype=x", "arch.loss.losstype=x", "arch.loss.loss_type"),
    ("+typo_rate=1", "typo_rate=1", "--help"),
    ("logger.wandbb=true", "logger.wandbb=true", "logger.wandb"),
    ("optim.gradclip=1.0", "optim.gradclip=1.0", "optim.grad_clip"),
    ("experimnt=arc1", "experimnt=arc1", "experiment"),
    ("evaluators=[{name: arc@ARC, pass_ks: [1]}]", "evaluators[0].pass_ks=[1]", "pass_Ks"),
    ("arch=transformers_baseline arch.L_layers=2", "arch.L_layers=2", "arch.H_layers"),
    # a choice that does not exist
    ("arch=trmm", "arch=trmm", "trm"),
    ("optim=adam", "optim=adam", "adamw"),
    ("experiment=sudoku", "experiment=sudoku", "sudoku_mlp"),
    ("data=maze", "data=maze", "maze_hard"),
    ("arch=[trm,hrm]", "arch=[trm,hrm]", "transformers_baseline"),
    ("arch=null", "arch", "required"),
    ("device=gpu", "device=gpu", "'cuda'"),
    ("act_eval=erly", "act_eval=erly", "'early'"),
    ("optim.name=sgd", "optim.name=sgd", "'adamw'"),
    ("arch.pos_encodings=sin", "arch.pos_encodings=sin", "'rope'"),
    ("arch.forward_dtype=bf16", "arch.forward_dtype=bf16", "'bfloat16'"),
    ("arch.loss.loss_type=softmax", "arch.loss.loss_type=softmax", "'softmax_cross_entropy'"),
    ("evaluators=[{name: arcc@ARC}]", "evaluators[0].name=arcc@ARC", "'arc@ARC'"),
    ("eval_save_outputs=[pred]", "eval_save_outputs[0]=pred", "'preds'"),
    ("arch.name=nowhere@Model", "arch.name=nowhere@Model", "no module"),
    ("arch.name=recursive_reasoning.trm@TRM", "arch.name=recursive_reasoning.trm@TRM", "no class"),
    ("arch.name=losses@ACTLossHead", "arch.name=losses@ACTLossHead", "no architecture"),
    # a value of the wrong type or out of range
    ("lr=fast", "lr=fast", "a number"),
    ("lr=0", "lr=0", "more than 0"),
    ("lr=nan", "lr=.nan", "finite"),
    ("epochs=1e5", "epochs=100000.0", "an integer"),
    ("epochs=true", "epochs=true", "an integer"),
    ("ema=1", "ema=1", "true or false"),
    ("ema_rate=1.5", "ema_rate=1.5", "less than 1"),
    ("lr_min_ratio=2", "lr_min_ratio=2", "at most 1"),
    ("beta2=1", "beta2=1", "less than 1"),
    ("global_batch_size=0", "global_batch_size=0", "at least 1"),
    ("seed=-1", "seed=-1", "at least 0"),
    ("data_paths=data/a", "data_paths=data/a", "[data/a]"),
    ("data_paths=[]", "data_paths=[]", "at least 1 entry"),
    ("run_name=", "run_name=", "some text"),
    ("arch.H_cycles=2.5", "arch.H_cycles=2.5", "an integer"),
    ("arch.L_cycles=0", "arch.L_cycles=0", "more than 0"),
    ("arch.halt_exploration_prob=2", "arch.halt_exploration_prob=2", "at most 1"),
    ("arch.loss=stablemax", "arch.loss=stablemax", "group of keys"),
    ("evaluators=[{name: arc@ARC, pass_Ks: []}]", "evaluators[0].pass_Ks=[]", "at least 1 entry"),
    ("~lr", "lr", "required"),
    # keys that do not go together
    ("epochs=100 eval_interval=30", "epochs=100", "epochs=90 or epochs=120"),
    ("epochs=100", "epochs=100", "eval_interval=100"),
    ("min_eval_interval=10", "min_eval_interval=10", "below 10"),
    ("micro_batch_size=100", "micro_batch_size=100", "global_batch_size=700"),
    ("ema_puzzle_emb=true", "ema_puzzle_emb=true", "ema=true"),
    ("freeze_weights=true", "freeze_weights=true", "load_checkpoint"),
    ("resume=runs/a load_checkpoint=runs/b", "resume=runs/a", "load_checkpoint=runs/b"),
    ("optim.muon_lr=0.1", "optim.muon_lr=0.1", "optim=muon"),
    ("optim.name=muon", "optim.muon_lr", "optim=muon"),
    ("evaluators=[{name: arc@ARC},{name: arc@ARC}]", "arc@ARC", "2 times"),
    ("arch.hidden_size=100", "arch.hidden_size=100", "arch.num_heads=8"),
    ("arch.hidden_size=24", "hidden_size=24", "num_heads=8"),
    ("arch=trm_hier6 arch.L_cycles=7", "arch.L_cycles=7", "at most 6"),
    ("arch.seq_len=81", "arch.seq_len=81", "data set"),
    # what is no override at all
    ("lr", "lr", "key=value"),
    ("lr=[", "lr=[", "key=value"),
    ("=3", "=3", "key=value"),
    ("lr=1e-4,1e-3", "lr=1e-4,1e-3", "one value"),
    ("--epochs=3", "--epochs=3", "key=value"),
    ("hydra.run.dir=x", "hydra.run.dir=x", "--help"),
    ("arch.puzzle_emb_ndim=${nothing}", "arch.puzzle_emb_ndim", "nothing"),
]


@pytest.mark.parametrize(("overrides", "named", "remedy"), BAD_OVERRIDES)
def test_mistakes_get_one_line(overrides: str, named: str, remedy: str) -> None:
    separate = [overrides] if "{" in overrides else overrides.split()
    with pytest.raises(InputError) as caught:
        load_config("cfg_pretrain", separate)
    message = str(caught.value)
    assert named in message
    assert remedy in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("overrides", "named", "remedy"),
    [
        ("", "checkpoint", "required"),
        ("checkpoint=a halt_max_step=3", "halt_max_step=3", "halt_max_steps"),
        ("checkpoint=a optim=adamw", "optim=adamw", "arch, data, evaluator"),
        ("checkpoint=a arch=trm", "arch", "data_paths=[...]"),
        ("checkpoint=a data_paths=[]", "data_paths=[]", "null"),
        ("checkpoint=a use_ema=maybe", "use_ema=maybe", "true or false"),
        (
            "checkpoint=a arch=hrm data=arc1 arch.puzzle_emb_dim=4",
            "arch.puzzle_emb_dim=4",
            "arch.puzzle_emb_ndim",
        ),
    ],
)
def test_mistakes_in_evaluation_get_one_line(overrides: str, named: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("cfg_evaluate", overrides.split())
    message = str(caught.value)
    assert named in message
    assert remedy in message
    assert "\n" not in message


def test_broken_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "cfg_pretrain.yaml").write_text("defaults:\n  - experiment: null\n", encoding="utf-8")
    (tmp_path / "experiment" / "mine.yaml").write_text("lr: [1\nseed: 0\n", encoding="utf-8")
    monkeypatch.setattr("training.config.CONFIG_DIR", tmp_path)
    with pytest.raises(InputError, match=r"^experiment=mine: ") as caught:
        compose_mapping("cfg_pretrain", ["experiment=mine"])
    assert "\n" not in str(caught.value)


def test_several_mistakes_share_the_line() -> None:
    with pytest.raises(InputError) as caught:
        pretrain("lr=fast seed=-1 ema=1 beta1=2 epoch=3")
    message = str(caught.value)
    assert message.startswith("epoch=3: unknown key")
    assert "and 2 more" in message


def test_nearest_prefers_the_whole_name() -> None:
    names = valid_names(PretrainConfig)
    assert nearest("optim.nme", names) == "optim.name"
    assert nearest("arch.nme", names) == "arch.name"
    assert nearest("zzz", names) is None


# The command line


def test_help_lists_groups_keys_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config("cfg_pretrain", ["experiment=smoke", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "arch=hrm|transformers_baseline|trm" in text
    assert "arch.hidden_size=32" in text
    assert "data_paths=[data/sudoku-4x4]" in text
    assert "learning rate of the weights" in text
    for key in PretrainConfig.model_fields:
        assert f"  {key}" in text


def test_help_needs_no_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config("cfg_evaluate", ["--help"])
    assert "checkpoint=???" in capsys.readouterr().out


def test_help_of_heads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config("cfg_diffusion_train", ["diffusion=d9160_jump", "--help"])
    text = capsys.readouterr().out
    assert "usage: python diffusion_train.py" in text
    assert "diffusion.rows=jump" in text and "noise=cosine|edm|linear|sigmoid" in text
    assert "checkpoint=???" in text


def test_cfg_prints_what_validates_again(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config("cfg_pretrain", ["arch=hrm", "--cfg"])
    assert caught.value.code == 0
    assert validate_config(PretrainConfig, yaml.safe_load(capsys.readouterr().out)) == pretrain("arch=hrm")


def refuse(arguments: list[str]) -> None:
    raise InputError(f"{arguments[0]}: first line\n second line")


def test_wrong_input_is_exit_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_cli(refuse, ["lr=x"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: lr=x: first line second line\n")


def test_other_ranks_wait_for_rank_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.run_cli(refuse, ["lr=x"]) == 2
    assert len(waited) == 1
    assert waited[0] > 0
    assert capsys.readouterr().err.startswith("error (rank 3): ")


def test_other_endings() -> None:
    def interrupt(_: list[str]) -> None:
        raise KeyboardInterrupt

    def defect(_: list[str]) -> None:
        raise ValueError("a defect keeps its traceback")

    assert cli.run_cli(lambda _: None, []) == 0
    assert cli.run_cli(interrupt, []) == 130
    with pytest.raises(ValueError, match="traceback"):
        cli.run_cli(defect, [])
