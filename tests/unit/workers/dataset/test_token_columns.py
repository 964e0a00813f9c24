"""Token ids as columns and back."""

import numpy as np
import pyarrow as pa
import pytest

from tandem_workers.dataset.columns import as_array, as_lists
from tandem_workers.dataset.token_columns import cell_bytes

IDS = np.arange(12, dtype=np.uint16).reshape(3, 4)


def test_ids_go_through_a_column_in_any_chunks_and_kind_of_list():
    column = as_lists(IDS)
    assert column.type == pa.list_(pa.uint16(), 4)
    both = pa.chunked_array([column, column])
    for found in (both, both.cast(pa.list_(pa.uint16())), both[2:5]):
        array = as_array(found)
        assert array.dtype == np.uint16 and array.shape == (len(found), 4)
    assert np.array_equal(as_array(both[2:5]), [IDS[2], IDS[0], IDS[1]])


@pytest.mark.parametrize("lists", [[[1], [2, 3]], [[1], [2, 3, 4]], [[1], None]])
def test_lists_of_several_lengths_are_refused(lists):
    with pytest.raises(ValueError, match="expected lists of one length, got"):
        as_array(pa.array(lists))


def test_no_lists_are_no_rows():
    assert as_array(as_lists(IDS)[:0]).shape == (0, 4) and as_array(pa.array([], pa.list_(pa.uint16()))).shape == (0, 0)


@pytest.mark.parametrize(("grid", "size"), [(4, 2), (5, 4), (16, 32), (1, 1)])
def test_a_byte_holds_eight_cells(grid, size):
    assert cell_bytes(grid) == size == len(np.packbits(np.zeros(grid * grid, bool)))
