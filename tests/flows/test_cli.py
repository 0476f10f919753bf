"""What people see when something is wrong: one clear line, an exit status, no traceback."""

import json
import re
import socket

import pytest


@pytest.fixture(scope="module")
def mill(make_mill):
    return make_mill("cli")


def refused(mill, *arguments, status, **environment):
    done = mill.call(*arguments, **environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("run", "nowhere"), ", quickstart, "),
        (("run", "quickstrat"), "did you mean 'quickstart'?"),
        (("run", "missing.yaml"), "missing.yaml cannot be read: found no such file or folder; the nearest"),
        (("inspect", "--decision", "quarantined"), "near_duplicate"),
        (("inspect", "--quarantined", "--rule", "code"), "--rule beside it"),
        (("run", "quickstart", "--set", "data.quality.profile=goph"), "did you mean gopher?"),
        (("run", "quickstart", "--set", "data.ray_address=ray://me:secret@host:1"), "leave it out"),
        (("run", "quickstart", "--set", "model.num_layer=3"), "did you mean num_layers?"),
        (("run", "quickstart", "--set", "train.global_batch_tokens=1000"), "whole number of sequences"),
        (("run", "quickstart", "--json", "no/such/folder/x.json"), "existing folder"),
    ],
)
def test_wrong_input_is_refused_before_any_work(mill, tmp_path, arguments, hint):
    home = tmp_path / "home"
    assert hint in refused(mill, *arguments, status=2, GRISTMILL_HOME=str(home))
    assert not home.exists()


def test_too_many_processes_are_refused_before_the_data_is_read(mill, tmp_path):
    home = tmp_path / "home"
    wish = ("--set", "train.parallel.dp_shard=1024", "--set", "train.global_batch_tokens=262144")
    error = refused(mill, "run", str(mill.recipe), *wish, status=1, GRISTMILL_HOME=str(home))
    assert "more processes than this machine can run" in error
    assert "found 2048" in error
    assert not list(home.glob("store/*"))
    assert not list(home.glob("runs/*"))


def test_a_source_that_matches_nothing_is_named(mill):
    pattern = str(mill.corpus.parent / "*.txt")
    source = json.dumps([{"name": "demo", "kind": "files", "path": pattern}])
    error = refused(mill, "run", str(mill.recipe), "--set", f"data.sources={source}", status=1)
    assert pattern in error
    assert "from the current folder" not in error
    error = refused(mill, "inspect", str(mill.recipe), "--set", "data.sources.0.path=here/*.txt", status=1)
    assert "looked for from the current folder" in error


def test_an_empty_corpus_tells_which_rule_dropped_it(mill):
    error = refused(
        mill, "prepare", str(mill.recipe), "--set", "data.quality.code.min_chars=100000", status=1
    )
    assert "dropped by code.min_chars" in error


def test_generating_before_training_says_what_to_do_and_where_it_looked(mill):
    error = refused(mill, "generate", str(mill.recipe), status=1)
    assert "gristmill train" in error
    assert f"of it in {mill.home}" in error
    assert "GRISTMILL_HOME" in error


@pytest.mark.parametrize("command", ["generate", "export"])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "{folder}/modal",
            "there is no model at .*nearest folder that is there is {folder}, which holds model",
        ),
        ("./modal", "there is no model at .*the nearest folder that is there is"),
        ("quickstat", "no recipe 'quickstat'; did you mean 'quickstart'.: expected one of .*or of a model"),
        ("{folder}/corpus.txt", "there is no model at .*found a file"),
    ],
)
def test_a_model_that_is_not_there_is_told_with_what_is_near(mill, tmp_path, command, model, said):
    (tmp_path / "model").mkdir()
    (tmp_path / "corpus.txt").write_text("x")
    rest = ["out"] if command == "export" else []
    error = refused(mill, command, model.format(folder=tmp_path), *rest, status=2)
    assert re.search(said.format(folder=tmp_path), error), error


def test_a_model_by_its_option_is_told_of_too(mill):
    assert "there is no model at nowhere" in refused(mill, "generate", "--model", "nowhere", status=2)


@pytest.mark.parametrize(("home", "status"), [("/etc/hostname", 2), ("/proc/mill", 1)])
def test_a_home_that_cannot_be_is_named(mill, home, status):
    error = refused(mill, "run", str(mill.recipe), status=status, GRISTMILL_HOME=home)
    assert f"GRISTMILL_HOME is {home}" in error
    assert "should not happen" not in error


def test_a_port_in_use_is_named(mill):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = refused(mill, "up", "--prefect-port", port, status=1)
    assert port in error
    assert "--prefect-port" in error


def test_down_without_up_is_no_error(mill):
    done = mill.call("down")
    assert done.returncode == 0
    assert "nothing was running" in done.stdout


def test_doctor_reports_every_check(mill, tmp_path):
    target = tmp_path / "doctor.json"
    done = mill.call("doctor", "--json", str(target))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(target.read_text())}
    assert {"python", "packages", "torch", "disk", "loopback", "services"} <= set(checks)
    assert all(check["state"] == "ok" or check["remedy"] for check in checks.values())


def test_doctor_looks_at_the_sources_of_a_recipe(mill, tmp_path):
    recipe = tmp_path / "wrong.yaml"
    wrong = mill.recipe.read_text().replace("id_field: id", "text_field: body")
    recipe.write_text(wrong)
    target = tmp_path / "survey.json"
    sound = mill.call("doctor", "--data", str(mill.recipe), "--json", str(target))
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert json.loads(target.read_text())[0]["records"] > 100
    done = mill.call("doctor", "--data", str(recipe))
    assert done.returncode == 1
    assert "no field 'body'" in done.stdout
    assert "Set text_field of source 'demo' to one of: id, text." in done.stdout.replace("\n", " ").replace(
        "  ", ""
    )


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "prepare",
        "train",
        "evaluate",
        "generate",
        "explain",
        "size",
        "recipes",
        "export",
        "import",
        "sync",
        "up",
        "down",
        "doctor",
    ],
)
def test_every_command_shows_an_example(command):
    from typer.testing import CliRunner

    from flows.cli import app

    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: gristmill {command}" in shown.output
