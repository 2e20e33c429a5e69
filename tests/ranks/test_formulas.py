import pytest

from lrd_deploy.ranks.formulas import svd_rank, tucker2_ranks


@pytest.mark.parametrize(("c", "s", "rank"), [(64, 64, 16), (64, 256, 25), (2048, 512, 204), (2048, 1000, 335)])
def test_svd_ranks_are_those_of_the_paper(c, s, rank):
    """arXiv 2407.20266, table 1."""
    assert svd_rank(c, s, alpha=2) == rank


@pytest.mark.parametrize(("width", "rank"), [(64, 38), (512, 309)])
def test_tucker2_ranks_are_those_of_the_paper(width, rank):
    """arXiv 2407.20266, table 1."""
    assert tucker2_ranks(width, width, 9, alpha=2) == (rank, rank)


def test_a_matrix_too_thin_for_the_ratio_gets_rank_zero():
    assert svd_rank(1, 1, alpha=2) == 0
