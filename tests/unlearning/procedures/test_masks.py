import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearning.procedures.masks import largest_of_all, smallest, smallest_of_all


@given(
    values=st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=30),
    share=st.floats(min_value=0.0, max_value=1.0),
)
def test_smallest_is_what_sorting_would_choose(values, share):
    """The naive twin: a stable sort."""
    n_chosen = round(share * len(values))
    naive = sorted(range(len(values)), key=values.__getitem__)[:n_chosen]
    assert smallest(torch.tensor(values), share).nonzero().squeeze(1).tolist() == sorted(naive)


def test_shape_is_kept():
    assert smallest(torch.tensor([[3.0, -1.0], [0.0, 4.0]]), 0.5).tolist() == [[False, True], [True, False]]


def test_over_all_tensors_together():
    values = {"small": torch.tensor([0.1, 0.2]), "large": torch.tensor([[5.0], [6.0]])}
    least, most = smallest_of_all(values, 0.5), largest_of_all(values, 0.25)
    assert least["small"].all()
    assert not least["large"].any()
    assert most["large"].tolist() == [[False], [True]]
    assert not most["small"].any()
