"""Metrics on cases worked by hand, on degenerate ones, and against brute force."""

import numpy as np
import pytest

from unifygeo_ros.core.errors import InputError
from unifygeo_training import metrics


def unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


GALLERY = unit([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]])
QUERY = unit([[1, 0.05]])  # similarities fall in the order 1, 0, 2, 3 … angles: 2.9° to row 0, 3.5° to row 1


def test_rank_counts_strictly_greater_similarities():
    assert [int(metrics.retrieval_ranks(QUERY, GALLERY, np.array([i]))[0]) for i in range(4)] == [1, 2, 3, 4]


def test_masked_rows_do_not_count_and_may_be_repeated_or_missing():
    masked = np.array([[0, 0, -1]])
    assert metrics.retrieval_ranks(QUERY, GALLERY, np.array([1]), masked).tolist() == [1]
    assert metrics.retrieval_ranks(QUERY, GALLERY, np.array([3]), masked).tolist() == [3]
    # A positive that is also listed as its own semi-positive keeps its rank.
    assert metrics.retrieval_ranks(QUERY, GALLERY, np.array([1]), np.array([[1, 1, 1]])).tolist() == [2]


def test_ranks_equal_brute_force_over_several_blocks(monkeypatch):
    monkeypatch.setattr(metrics, "GALLERY_BLOCK", 7)
    random = np.random.default_rng(1)
    gallery, queries = unit(random.normal(size=(50, 8))), unit(random.normal(size=(20, 8)))
    positives = random.integers(0, 50, 20)
    masked = random.integers(-1, 50, (20, 3))
    similarity = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    expected = []
    for i in range(20):
        rivals = set(range(50)) - {positives[i], *masked[i]}
        expected.append(1 + sum(similarity[i, j] > similarity[i, positives[i]] for j in rivals))
    np.testing.assert_array_equal(metrics.retrieval_ranks(queries, gallery, positives, masked), expected)
    similarities, rows = metrics.nearest(queries, gallery, 5)
    np.testing.assert_array_equal(rows, np.argsort(-similarity, axis=1)[:, :5])
    np.testing.assert_allclose(similarities, np.take_along_axis(similarity, rows, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("descriptors", "message"),
    [
        ([[1.0, 0.0], [np.nan, 0.0]], "query descriptor 1 is not finite"),
        ([[1.0, 0.0], [2.0, 0.0]], "length 2.0"),
        ([[1.0, 0.0], [0.5, 0.0]], "length 0.5"),
        ([[1.0, 0.0], [1.0, 0.0]], "collapsed"),
        (np.zeros((0, 2)), "shape"),
    ],
)
def test_descriptors_that_must_not_score_are_refused(descriptors, message):
    descriptors = np.asarray(descriptors, np.float32)
    with pytest.raises(InputError, match=message):
        metrics.retrieval_ranks(descriptors, GALLERY, np.zeros(len(descriptors), np.int64))
    if message.startswith("query"):
        with pytest.raises(InputError, match="gallery"):
            metrics.retrieval_ranks(QUERY, descriptors, np.array([0]))


def test_descriptors_that_differ_a_little_have_not_collapsed():
    metrics.check_descriptors(unit([[1, 0], [1, 1e-4]]), "query")
    with pytest.raises(InputError, match="all 2 query descriptors are the same"):
        metrics.check_descriptors(unit([[1, 0], [1, 1e-8]]), "query")


def test_curve_runs_from_1_to_50_metres():
    np.testing.assert_array_equal(metrics.CURVE_M, np.linspace(1.0, 50.0, 50))


def test_retrieval_scores_by_hand():
    ranks, masked = np.array([1, 2, 6, 30]), np.array([1, 1, 6, 30])
    scores = metrics.retrieval_scores(ranks, masked, gallery_size=3000)  # one percent: 30
    assert scores == metrics.RetrievalScores(25.0, 50.0, 75.0, 100.0, hit_rate=50.0)
    assert metrics.retrieval_scores(ranks, masked, gallery_size=12).recall_percent == 25.0
    # The cut-off is rounded down and counts itself: 29 of 2999, 5 of 599, 6 of 600.
    found = [metrics.retrieval_scores(ranks, masked, gallery_size=m).recall_percent for m in (2999, 599, 600)]
    assert found == [75.0, 50.0, 75.0]


def test_rank_counts_up_to_and_with_each_cut_off():
    ranks = np.array([1, 2, 5, 6, 10, 11, 12, 13])
    scores = metrics.retrieval_scores(ranks, np.array([1, 1, 2, 2, 2, 2, 2, 2]), gallery_size=1199)
    assert scores == metrics.RetrievalScores(12.5, 37.5, 62.5, 75.0, hit_rate=25.0)  # 1; 1 to 5; to 10; to 11


def test_reranked_scores_by_hand():
    order = np.array([[7, 1, 2], [3, 4, 5], [8, 9, 0], [6, 6, 6]])
    positives = np.array([7, 5, 9, 1])
    semi = np.array([[1, 2], [3, 4], [-1, -1], [6, -1]])
    # The positive wins; both before it are semi-positives; a stranger wins; the positive is not among them.
    assert metrics.reranked_scores(order, positives, semi) == metrics.RerankedScores(25.0, 50.0)


def test_only_the_named_semi_positives_are_masked_after_reranking():
    # Rows smaller and larger than the semi-positive win and are strangers; a positive named as its own semi-positive
    # stays; where all before the positive are semi-positives it is found third.
    order = np.array([[1, 5, 9], [9, 5, 1], [5, 1, 9], [4, 6, 5]])
    positives = np.array([9, 1, 5, 5])
    semi = np.array([[5, -1], [5, -1], [5, 1], [6, 4]])
    assert metrics.reranked_scores(order, positives, semi) == metrics.RerankedScores(25.0, 50.0)


def test_metric_and_cvgl_scores_by_hand():
    errors = np.array([0.5, 2.0, 4.0, 100.0])
    scores = metrics.metric_scores(errors)
    assert (scores.mean_m, scores.median_m) == (26.625, 3.0)
    assert scores.recall == {1.0: 25.0, 3.0: 50.0, 5.0: 75.0, 10.0: 75.0, 20.0: 75.0}
    both = metrics.cvgl_scores(errors, np.array([1, 9, 3, 4]), np.array([1, 2, 3, 4]))
    assert both.geographic == {1.0: 25.0, 5.0: 75.0, 10.0: 75.0}
    assert both.strict == {1.0: 25.0, 5.0: 50.0, 10.0: 50.0}


def test_errors_that_are_not_finite_and_empty_splits_are_refused():
    with pytest.raises(InputError, match="1 of 2 errors"):
        metrics.metric_scores(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="no queries"):
        metrics.retrieval_scores(np.array([], np.int64), np.array([], np.int64), 10)


def test_reranked_scores_of_two_right_answers_of_three():
    order, semi = np.array([[7, 1], [7, 2], [3, 4]]), np.full((3, 1), -1)
    scores = metrics.reranked_scores(order, np.array([7, 7, 9]), semi)
    assert (scores.recall_1, scores.hit_rate) == pytest.approx((200 / 3, 200 / 3))


def test_error_at_the_threshold_counts_in_both_protocols():
    scores = metrics.cvgl_scores(np.array([1.0, 5.0, 10.0]), np.arange(3), np.arange(3))
    assert scores.geographic == scores.strict == pytest.approx({1.0: 100 / 3, 5.0: 200 / 3, 10.0: 100.0})


def test_tile_that_equals_the_positive_does_not_outrank_it():
    gallery = unit([[1, 0], [1, 0], [0, 1]])
    assert metrics.retrieval_ranks(unit([[1, 0.5]]), gallery, np.array([1])).tolist() == [1]
