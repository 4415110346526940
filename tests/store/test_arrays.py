import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.store.arrays import strings, to_arrow, to_numpy


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float32", "float64", "bool"])
@given(values=st.lists(st.integers(0, 1), max_size=40), step=st.integers(1, 3))
def test_the_same_as_pyarrow(dtype, values, step):
    x = np.array(values, dtype)[::step]  # not always contiguous
    assert to_arrow(x).equals(pa.array(x))
    if dtype != "bool":
        parts = pa.chunked_array([pa.array(x[:3]), pa.array(x[3:])])
        assert to_numpy(parts).dtype == x.dtype and (to_numpy(parts) == x).all()


@given(st.lists(st.text(max_size=5), max_size=6))
def test_texts(values):
    values = [v.encode("utf-8", "ignore").decode() for v in values]
    assert strings(values).equals(pa.array(values, pa.string()))


def test_without_pandas():
    code = (
        "import sys, numpy as np, pyarrow as pa; from npd_ascend.store.arrays import *; "
        "to_numpy(pa.chunked_array([to_arrow(np.arange(3))])); strings(['a']); print('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
