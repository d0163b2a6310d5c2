"""docs/views.ipynb runs, and each view in it is a picture."""

import pytest

from tests.conftest import ROOT

REMEDY = "pip install -e '.[notebook]' makes this test run"
nbclient = pytest.importorskip("nbclient", reason=REMEDY)
nbformat = pytest.importorskip("nbformat", reason=REMEDY)
kernelspec = pytest.importorskip("ipykernel.kernelspec", reason=REMEDY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_pictures(tmp_path, monkeypatch):
    # The kernel is this interpreter, whatever kernels the user has.
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    kernelspec.install(prefix=str(tmp_path), kernel_name="python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    notebook = nbformat.read(ROOT / "docs" / "views.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs]
    pictures = [output["data"] for output in shown if "text/html" in output.get("data", {})]
    assert len(pictures) == sum(_ends_in_a_view(cell.source) for cell in cells) == 4
    for picture in pictures:
        assert picture["text/html"].startswith("<pre")
        assert "<script" not in picture["text/html"]
        assert "날씨" in picture["text/plain"] or "%" in picture["text/plain"]
    assert not [output for output in shown if output.get("name") == "stderr"]
    assert shown[0]["text"].strip()


def _ends_in_a_view(source):
    return source.splitlines()[-1].startswith(("m.", "view"))
