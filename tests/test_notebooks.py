import json
import re
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_is_its_script(path):
    script = jupytext.read(path.with_suffix(".py"))
    cells = [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
    assert cells == [(cell.cell_type, cell.source) for cell in script.cells]
    assert len(cells) > 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_outputs_name_no_folder_of_the_machine_that_made_them(path):
    outputs = [cell.get("outputs") for cell in json.loads(path.read_text())["cells"]]
    assert any(outputs)
    assert not re.findall(r"/(?:home|root|work|tmp|Users)/", json.dumps(outputs))
