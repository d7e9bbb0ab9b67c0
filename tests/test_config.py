"""Every mistake in a config is one sentence that names the key, before any device starts."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from dinov3seg_jax.config import Config, default_config, to_config_dict
from dinov3seg_jax.config_files import apply_override, from_dict, load_config, split_overrides
from dinov3seg_jax.errors import UserError

CONFIGS = sorted(path for path in Path("configs").glob("*.py") if path.stem != "finetune")  # which takes a model


def sentence(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def plain(tmp_path):
    """A config file of nothing but defaults."""
    path = tmp_path / "plain.py"
    path.write_text("from dinov3seg_jax.config import default_config as get_config\n")
    return str(path)


def test_the_defaults_are_valid(plain):
    assert from_dict(default_config().to_dict()) == Config() == load_config(plain)


def test_a_config_survives_the_way_through_plain_values():
    config = dataclasses.replace(Config(), seed=5, workdir="elsewhere")
    assert from_dict(to_config_dict(config).to_dict()) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_loads(path):
    config = load_config(str(path))
    assert Path(config.workdir).parts[:2] == ("runs", path.stem)


def test_a_file_of_several_configs_takes_a_word():
    full, other = (load_config(f"configs/ablation.py:{word}") for word in ("full", "no_late"))
    assert other.model == dataclasses.replace(full.model, late=dataclasses.replace(full.model.late, enabled=False))
    assert full.model.late.enabled
    assert "there is no variant 'bold'; there are full, no_early, " in sentence(load_config, "configs/ablation.py:bold")
    assert "cannot be read" in sentence(load_config, "configs/ade.py:full")


def test_a_recipe_that_begins_with_a_model_takes_its_word_from_either_place(tmp_path):
    recipe = tmp_path / "begun.py"
    recipe.write_text(
        "from dinov3seg_jax.config import default_config\n"
        "def get_config(init_from=''):\n"
        "    config = default_config()\n"
        "    config.init_from, config.workdir = init_from, f'runs/{init_from}'\n"
        "    return config\n"
    )
    for name, overrides in ((f"{recipe}:one", []), (recipe, ["init_from=one"]), (f"{recipe}:one", ["init_from=one"])):
        config = load_config(str(name), overrides)
        assert (config.init_from, config.workdir) == ("one", "runs/one")
    message = sentence(load_config, f"{recipe}:one", ["init_from=two"])
    assert "--config.init_from=two name two models to begin with" in message


def test_there_are_configs():
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "there is no option 'train.stepz' (did you mean 'steps'?)."),
        ("optimiser.steps=3", "there is no option 'optimiser.steps'"),
        ("train.steps.more=3", "'steps' is not a section"),
        ("train.steps", "is not of the form section.option=value"),
        ("train.steps=many", "'train.steps' is 'many', but"),
        ("train.steps=2.5", "'train.steps' is 2.5, but"),
        ("train.steps=True", "'train.steps' is True, but"),
        ("train.steps=0", "'train.steps' is 0, but input should be greater than 0"),
        ("train.warmup_steps=-1", "'train.warmup_steps' is -1, but"),
        ("train.learning_rate=fast", "'train.learning_rate' is 'fast', but"),
        ("train.finetune=some", "'train.finetune' is 'some', but input should be 'attention'"),
        ("data.flip=1", "'data.flip' is 1, but"),
        ("data.short_side=(96,)", "data.short_side"),
        ("data.short_side=96", "'data.short_side' is 96, but"),
        ("model.early.window_ratio=1.5", "'model.early.window_ratio' is 1.5, but"),
        ("inference.templates=[]", "'inference.templates' is (), but"),
        ("inference.tile_scale=1e9", "'inference.tile_scale' is 1000000000.0, but"),
        ("workdir=3", "'workdir' is 3, but"),
        ("train=3", "'train' is 3, but"),
        ("=3", "there is no option ''"),
        ("steps=3", "there is no option 'steps' (did you mean 'train.steps'?)"),
        ("trian.steps=3", "there is no option 'trian.steps' (did you mean 'train.steps'?)"),
        ("crop_size=3", "there is no option 'crop_size' (did you mean 'data.crop_size'?)"),
        ("root=/data", "there is no option 'root' (did you mean one of data.eval.root, data.train.root?)"),
        ("seeed=3", "there is no option 'seeed' (did you mean 'seed'?)"),
        ("seed={[]: 1}", "'seed' is '{[]: 1}', but"),
        (f"seed={'[' * 10**4}", "[[[, but input should be a valid integer"),
        ("workdir=", "'workdir' is '', but string should have at least 1 character"),
        ("train.learning_rate=-1", "'train.learning_rate' is -1, but input should be greater than 0"),
        ("train.learning_rate=1e400", "'train.learning_rate' is inf, but input should be a finite number"),
        ("train.weight_decay=-0.1", "'train.weight_decay' is -0.1, but input should be greater than or equal to 0"),
        ("train.clip_norm=0", "'train.clip_norm' is 0, but input should be greater than 0"),
        ("train.ema_decay=1.0", "'train.ema_decay' is 1.0, but input should be less than 1"),
        ("train.beta2=1.0", "'train.beta2' is 1.0, but input should be less than 1"),
    ],
)
def test_a_bad_override_is_one_sentence(plain, override, message):
    assert message in sentence(load_config, plain, [override])


def test_good_overrides_apply_in_order(plain):
    config = load_config(
        plain,
        ["train.steps=3", "train.steps=4", "data.short_side=(96,160)", "model.spe=none", "train.learning_rate=1e-3"],
    )
    assert (config.train.steps, config.data.short_side, config.model.spe) == (4, (96, 160), "none")
    assert config.train.learning_rate == 1e-3


@pytest.mark.parametrize("value", ["1", "1e-3", "0.5"])
def test_numbers_may_be_written_as_integers(plain, value):
    assert load_config(plain, [f"train.learning_rate={value}"]).train.learning_rate == float(value)


def test_a_template_with_an_equals_sign_is_a_value():
    values = {"inference": {"templates": ("a",)}}
    apply_override(values, "inference.templates=('a = {}',)")
    assert values["inference"]["templates"] == ("a = {}",)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("unheard",), "unknown option 'unheard'"),
        (("train", "batchsize"), "unknown option 'train.batchsize' (did you mean 'batch_size'?)"),
        (("model", "late", "layer"), "unknown option 'model.late.layer' (did you mean 'layers'?)"),
    ],
)
def test_an_unknown_key_is_named(key, message):
    values = default_config().to_dict()
    *sections, option = key
    inner = values
    for section in sections:
        inner = inner[section]
    inner[option] = 1
    assert f"file.py: {message}" in sentence(from_dict, values, "file.py")


@pytest.mark.parametrize("name", ["ade", "ade.py", "configs/ade", "configs/ade.py"])
def test_a_recipe_has_one_name_in_a_checkout_and_far_from_it(tmp_path, monkeypatch, name):
    expected = load_config("configs/ade.py")
    assert load_config(name) == expected
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == expected


def test_a_file_of_ones_own_goes_before_a_recipe_that_comes_along(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    own = "from dinov3seg_jax.config import default_config as get_config\n"
    (tmp_path / "configs" / "ade.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    assert load_config("ade") == load_config("configs/ade.py") == Config()


def test_a_word_of_a_recipe_by_its_short_name():
    assert load_config("pod:vit7b") == load_config("configs/pod.py:vit7b")


def test_a_mistyped_recipe_has_a_hint():
    assert "(did you mean 'quickstart'?)" in sentence(load_config, "quikstart")


def test_a_folder_and_a_name_of_two_lines(tmp_path):
    assert f"config '{tmp_path}' is a folder; name a file" in sentence(load_config, str(tmp_path))
    assert "config 'a b' does not exist" in sentence(load_config, "a\nb")


def test_a_recipe_that_is_no_python_file(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {steps: 3}")
    assert "a.yaml' is not a Python file; name one that ends in .py" in sentence(load_config, str(tmp_path / "a.yaml"))


def test_a_word_for_a_recipe_that_takes_none():
    assert "takes other arguments; leave ':big' out." in sentence(load_config, "quickstart:big")


def test_a_missing_file_is_named_with_those_that_exist():
    message = sentence(load_config, "configs/absent.py")
    assert message.startswith("config 'configs/absent.py' does not exist; name a file, or one of ablation, ade, ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "has no function get_config(); write one"),
        ("def get_config():\n    return None\n", "returns a NoneType; return what "),
        ("def get_config():\n    return {'seed': 3}\n", "returns a dict; return what "),
        ("def get_config(which):\n    return None\n", "takes other arguments; name one of its recipes, as in "),
        ("x = 1\n\ndef get_config():\n    return x['a']\n", "is not subscriptable (line 4); correct that file"),
        ("import sys\nsys.exit('bye')\n", "SystemExit: bye (line 2); correct that file"),
        ("import absent_module_of_a_user\n", "absent_module_of_a_user"),
        (
            "from dinov3seg_jax.config import default_config\n"
            "def get_config():\n    config = default_config()\n    config.train.stepz = 3\n    return config\n",
            "stepz",
        ),
        (
            "from dinov3seg_jax.config import default_config\n"
            "def get_config():\n    config = default_config()\n    config.train.steps = 'x'\n    return config\n",
            "steps",
        ),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    told = sentence(load_config, str(path))
    assert "bad.py" in told
    assert message in told


def test_split_overrides_takes_one_word_or_two():
    words = ["--config", "a.py", "--config.train.steps=3", "--config.workdir", "runs/x", "--dry_run"]
    assert split_overrides(words) == (["train.steps=3", "workdir=runs/x"], ["--config", "a.py", "--dry_run"])


def test_an_override_without_a_value_does_not_vanish(plain):
    overrides, _ = split_overrides(["--config.train.steps"])
    assert "'train.steps' is ''" in sentence(load_config, plain, overrides)


def test_a_config_is_checked_before_jax_is_imported():
    program = (
        "import sys\nfrom dinov3seg_jax.config_files import load_config\n"
        "for path in sys.argv[1:]: load_config(path)\n"
        "print([name for name in ('jax', 'flax', 'orbax', 'grain') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, *map(str, CONFIGS)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
