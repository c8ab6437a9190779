import numpy as np
import pytest

from examples import digits


@pytest.mark.slow
def test_the_one_page_program_learns_and_tells_of_its_layers(capsys):
    assert digits.main(epochs=6) > 0.9
    epochs, table = capsys.readouterr().out.split("\n\n")
    assert len(epochs.splitlines()) == 6
    scales = np.array([float(line.split()[-1]) for line in table.splitlines()[1:]])
    assert len(scales) == 6 and scales.min() == 0.5 and scales.max() == 1.5
    assert digits.main(tempbalance=False, epochs=1) > 0.3
    assert "scale" not in capsys.readouterr().out
