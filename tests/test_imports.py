"""Imports point one way, and `import fewstep` costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep

ROOT = Path(fewstep.__file__).parent

# each layer may import those before it; names in one layer do not import each other
LAYERS = [
    ["errors", "allocator", "formatting", "noise", "ranges", "web"],
    ["compiler", "overrides", "paths", "plugins", "precision"],
    ["utf8_paths", "checksums", "files"],
    ["images", "locks", "temporary_folder"],
    ["tensor_file", "schema", "tables", "models"],
    ["download"],
    ["condition"],
    ["text"],
    ["sample_spec"],
    ["process"],
    ["parametrization"],
    ["coefficients"],
    ["backbones", "data", "store", "metrics"],
    ["guidance"],
    ["autoencoders", "denoiser"],
    ["times", "levels", "autoguidance", "likelihood"],
    ["spacing"],
    ["sampling"],
    ["circuits"],
    ["generator"],
    ["finite", "sampler_choices"],
    ["description"],
    ["pretrained"],
    ["stored_weights"],
    ["weights_file"],
    ["run_folder"],
    ["runs", "autoencoder_files"],
    ["latents"],
    ["losses", "loss_weights", "muon", "ema", "distributed", "threads"],
    ["couplings"],
    ["drawing", "value_range", "painting", "abilities", "image_files", "trajectory"],
    ["export", "progress_grids"],
    ["methods"],
    ["batching", "streams", "optimizers"],
    ["trainer"],
    ["averaging"],
    ["recipe"],
    ["recording", "trackers", "resuming"],
    ["scores", "requests"],
    ["evaluation", "likelihood_score"],
    ["reconstruction"],
    ["student", "store_recipes", "autoencoder_recipes", "conditions", "latent_recipes"],
    ["assembly"],
    ["runner", "planning", "loading"],
    ["comparison"],
    ["report"],
    ["explain"],
    ["studio"],
    ["cli"],
    ["__main__"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
TENSORS_ONLY = {
    "backbones": {"errors", "condition", "plugins", "ranges"},
    "data": {"errors", "files", "formatting", "download", "paths", "plugins"},
    "store": {"errors", "files", "images", "paths"},
    "metrics": {
        "errors",
        "formatting",
        "files",
        "images",
        "download",
        "utf8_paths",
        "paths",
        "plugins",
        "precision",
        "tensor_file",
        "condition",
        "text",
    },
}


def imported(path):
    """(part of fewstep, imported by this file) for every import, local ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fewstep":
            yield from (alias.name for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fewstep."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("fewstep."))


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert part in RANK, f"{part} has no place in the order of imports"
    for other in imported(path):
        if other == part:
            continue
        assert RANK[other] < RANK[part], f"{part} imports {other}"
        if part in TENSORS_ONLY:
            assert other in TENSORS_ONLY[part], f"{part} deals in tensors; it imports {other}"


def test_the_public_names_are_what_they_say():
    for name in fewstep.__all__:
        assert getattr(fewstep, name) is not None
    assert set(dir(fewstep)) == set(fewstep.__all__)
    with pytest.raises(AttributeError):
        _ = fewstep.nothing


@pytest.mark.parametrize("module", ["fewstep", "fewstep.cli"])
def test_importing_brings_nothing_heavy(module):
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'numpy', 'diffusers', 'sklearn', "
        "'streamlit', 'matplotlib', 'pydantic', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_brings_no_diffusers_sklearn_or_streamlit():
    """Nor does a loaded network bring PyTorch's compiler, which takes three seconds."""
    code = (
        "import sys, fewstep; [getattr(fewstep, n) for n in fewstep.__all__]; "
        "fewstep.load('fewstep:digits'); "
        "heavy = ('diffusers', 'sklearn', 'streamlit', 'sympy', 'torch._dynamo'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "most"), [("load", 42), ("Generator", 30)])
def test_the_front_doors_are_light(name, most):
    """What is loaded needs no trainer, no store and no metrics."""
    code = (
        f"import sys, fewstep; fewstep.{name}; "
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] == 'fewstep'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert len(modules) <= most, modules
