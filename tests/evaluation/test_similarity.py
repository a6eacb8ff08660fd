"""The similarity of features of one vector and of parts, against plain loops."""

import numpy as np
import pytest
import torch

from fastreid_star.evaluation import similarity as module
from fastreid_star.evaluation.cross_modal import cross_modal_results
from fastreid_star.evaluation.similarity import check_features, normalize, similarity
from fastreid_star.structures import Modality, Tracklet


def test_features_of_one_vector_are_compared_by_cosine():
    query, gallery = torch.randn(3, 5) * 7, torch.randn(4, 5)
    found = similarity(normalize(query), normalize(gallery))
    for q in range(3):
        for g in range(4):
            cosine = torch.dot(query[q], gallery[g]) / query[q].norm() / gallery[g].norm()
            assert float(found[q, g]) == pytest.approx(float(cosine), abs=1e-6)


def test_features_of_parts_are_compared_by_their_mean_distance(monkeypatch):
    query, gallery = torch.randn(30, 3, 5), torch.randn(40, 3, 5)
    gallery[7] = query[2]
    assert torch.equal(normalize(query), query)
    monkeypatch.setattr(module, "BLOCK_SIZE", 7)
    found = similarity(query, gallery)
    for q in range(30):
        for g in range(40):
            parts = [float((query[q, p] - gallery[g, p]).norm()) for p in range(3)]
            assert -float(found[q, g]) == pytest.approx(sum(parts) / 3, abs=1e-5)
    assert found[2].argmax() == 7


def test_an_evaluation_of_features_of_parts():
    """Distances by hand: one part decides, and lengths count, as they do not for the cosine.

    infrared: pid 1 at (0, 0), pid 2 at (4, 0).  visible: pid 1 at (1, 2), pid 2 at (2, 0).
    I2V: (0, 0) is 1.5 from (1, 2) and 1 from (2, 0): AP 1/2. (4, 0) is 2.5 and 1 away: AP 1.
    V2I: (1, 2) is 1.5 and 2.5 away: AP 1. (2, 0) is 1 from both: the first, pid 1, wins: AP 1/2.
    """
    features = torch.tensor([[[0.0], [0.0]], [[4.0], [0.0]], [[1.0], [2.0]], [[2.0], [0.0]]])
    tracklets = [
        Tracklet(pid, camid, modality, "", ("1.jpg",))
        for pid, camid, modality in (
            (1, 1, Modality.INFRARED),
            (2, 2, Modality.INFRARED),
            (1, 3, Modality.VISIBLE),
            (2, 4, Modality.VISIBLE),
        )
    ]
    results = cross_modal_results(features, tracklets, min_frames=1, dataset_name="Toy")
    np.testing.assert_allclose(results.i2v.similarity, [[-1.5, -1], [-2.5, -1]])
    assert results.i2v.per_query.ap.tolist() == [0.5, 1]
    assert results.v2i.per_query.ap.tolist() == [1, 0.5]


def test_broken_features_of_parts_are_found():
    features = torch.zeros(4, 2, 3)
    check_features(features, "query")
    features[2, 1, 0] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 4 tracklets .* index 2"):
        check_features(features, "query")
    with pytest.raises(ValueError, match="must both be"):
        similarity(features, features[:, 0])
