"""What `compress` and `tucker` say of small tables."""

import pandas as pd

from compression.studies.compress import CompressPlan
from compression.studies.tucker import _better_ranks


def way(method: str, kl: float, ratio: float, settings: str = "", error: float = 0.001):
    return {
        "method": method,
        "settings": settings,
        "keep": 0.5,
        "unrotated_keys": False,
        "texts": 3,
        "kl_mean_nats": kl,
        "kl_mean_nats_se": error,
        "bits_per_value": 16 / ratio,
        "ratio": ratio,
        "per_model_bytes": 0,
    }


def said(*ways):
    return CompressPlan([], [0.5], 100, pd.DataFrame())._lines(pd.DataFrame(ways))


NATURAL = way("merged_dims", 0.5, 1.2, "similarity=0.9")


def test_ways_of_unequal_bytes_are_told_with_them():
    lines = said(NATURAL, way("pca", 0.2, 1.5), way("dropped_dims", 0.3, 1.9))
    assert lines[0] == (
        "50% of the dimensions: pca costs least, KL 0.2000 ± 0.0010 nats at 1.50 x; the others: "
        "dropped_dims 0.300 at 1.90 x."
    )
    assert lines[-1] == "No way that saves bytes costs 0.01 nats of KL or less."


def test_a_way_that_is_not_surely_the_cheapest_is_said_to_share_that():
    lines = said(NATURAL, way("pca", 0.2, 1.5, error=0.1), way("dropped_dims", 0.25, 1.9))
    assert "(within the errors, 1 other too)" in lines[0]


def test_what_saves_nothing_is_not_the_smallest_within_a_loss():
    assert said(NATURAL, way("pca", 0.001, 0.9))[-1].startswith("No way that saves bytes")
    assert "Smallest within 0.01 nats: pca" in said(NATURAL, way("pca", 0.001, 1.1))[-1]


def ranks(**rows: tuple[float, float]) -> pd.DataFrame:
    """name -> (KL, bits per value)"""
    return pd.DataFrame(
        [
            {
                "token_rank": i,
                "embedding_rank": i,
                "texts": 3,
                "kl_mean_nats": kl,
                "kl_mean_nats_se": 0.01,
                "bits_per_value": bits,
            }
            for i, (kl, bits) in enumerate(rows.values())
        ]
    )


def test_ranks_are_called_better_only_where_intervals_part_and_bytes_are_alike():
    own = ranks(own=(0.5, 4.0)).iloc[0]
    assert _better_ranks(ranks(a=(0.3, 4.0)), own).startswith("Better at about these bytes: token")
    for other in (ranks(a=(0.3, 5.0)), ranks(a=(0.485, 4.0)), ranks(a=(0.6, 3.0))):
        assert _better_ranks(other, own) == "No other ranks tried cost less at about these bytes."
    alone = own.copy()
    alone["texts"] = 1
    assert _better_ranks(ranks(a=(0.3, 4.0)), alone).startswith("From one text it is not known")
