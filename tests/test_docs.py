"""What the documents show is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


def test_the_documented_method_trains_by_its_dotted_path(tmp_path, monkeypatch):
    """A method outside the package, in one file, with no other file touched."""
    from fewstep.cli import main

    package = tmp_path / "mymethods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "jitter.py").write_text(blocks("docs/adding-a-method.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    small = ["student.backbone.channels=[8]", "student.backbone.attention=[]"]
    small += ["student.backbone.groups=4", "fit.steps=2", "fit.batch=8"]
    teacher, pairs, out = (str(tmp_path / name) for name in ("teacher", "pairs", "student"))
    assert main(["train", "digits-flow", *small, "--out", teacher]) == 0
    assert main(["record", teacher, "--out", pairs, "-n", "16", "--steps", "2"]) == 0
    recipe = tmp_path / "jitter.toml"
    recipe.write_text(
        f"""
        data = {{ name = "digits" }}
        teacher = {{ load = "{teacher}" }}
        pairs = {{ load = "{pairs}" }}
        method = {{ name = "mymethods.jitter", jitter = 0.2 }}
        fit = {{ steps = 2, batch = 8 }}
        """
    )
    assert main(["distill", str(recipe), "--out", out]) == 0
    assert "jitter = 0.2" in (Path(out) / "recipe.toml").read_text()


def test_the_tree_in_the_readme_is_the_tree():
    tree = next(block for block in blocks("README.md", "text") if "src/fewstep/" in block)
    told = set(re.findall(r"[\w.]+", tree))
    source = ROOT / "src" / "fewstep"
    there = {path.name for path in source.iterdir() if not path.name.startswith("__")}
    assert there <= told, there - told
    shown = re.findall(r"^    (\w[\w.]*)/? ", tree, re.M)
    assert all((source / name).exists() for name in shown), shown


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run_and_are_short(path, tmp_path):
    assert len(path.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


def test_python_in_the_readme_runs(tmp_path):
    code = "\n".join(blocks("README.md", "python"))
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


def test_house_limits():
    """Files of at most 350 lines."""
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
