"""What `compare` says to take, on small tables."""

import pandas as pd
import pytest

from analysis import margins
from compression.studies import comparison_words as words
from compression.studies.compare import bandwidths
from compression.studies.presets import ENGINES, families

FULL = 40_000  # bytes of the untouched cache, of 100 tokens


def row(label: str, stored: int, kl: float, per_model: int = 0) -> dict[str, object]:
    saved = (FULL - stored) / 100
    return {
        "label": label,
        "family": label.split()[0],
        "texts": 2,
        "original_bytes": FULL,
        "stored_bytes": stored,
        "per_model_bytes": per_model,
        "bytes_per_token": stored / 100,
        "bits_per_value": 16 * stored / FULL,
        "ratio": FULL / stored,
        "kl_mean_nats": kl,
        "kl_mean_nats_se": kl / 10,
        "delta_perplexity_percent": 100 * kl,
        "pays_from_tokens": per_model / saved if saved else float("nan"),
        "restore_s": 0.25,
    }


TABLE = pd.DataFrame(
    [
        row("none", FULL, 0.0),
        row("coded 1.0e-04", 2_000, 0.009, per_model=2**20),
        row("int8", 21_000, 0.0001),
        row("kivi-4", 12_000, 0.004),
        row("kivi-2", 8_000, 0.2),
    ]
)


def test_what_to_take_is_said_with_bytes_cost_and_what_is_stored_once():
    take, today = words.taken(TABLE, TABLE.iloc[1], {})
    assert take == (
        "Take coded 1.0e-04, the smallest measured that costs 0.01 nats or less: 20 bytes per "
        "token (20.00 x smaller, 0.80 bits per value), costs KL 0.0090 ± 0.0009 nats per token, "
        "perplexity +0.90 %; needs 1.0 MiB once for the model (with them 0.04 x here; they pay "
        "from 2,759 tokens) and 0.25 s to restore 100 tokens."
    )
    assert today.startswith("No engine has it today; of their settings measured here take kivi-4 (")
    assert "120 bytes per token (3.33 x smaller), costs KL 0.0040 ± 0.0004" in today


def test_a_setting_of_an_engine_is_taken_as_that():
    take, today = words.taken(TABLE, TABLE.iloc[3], {"max_bits": 5.0})
    assert take.startswith("Take kivi-4, within `max_bits` 5: 120 bytes")
    assert take.endswith("perplexity +0.40 %; 0.25 s to restore 100 tokens.")
    assert today == f"In engines today: {ENGINES['kivi-4']}."


def test_engines_that_do_not_fit_are_not_recommended():
    _, today = words.taken(TABLE, TABLE.iloc[1], {"max_bits": 1.0})
    assert today == "No engine has it today, and none of their settings measured here fits as well."


def test_where_nothing_that_saves_bytes_is_cheap_none_is_to_be_taken():
    costly = TABLE[TABLE["label"].isin(["none", "kivi-2"])]
    (line,) = words.taken(costly, None, {})
    assert line.startswith("Take none: no setting measured that saves bytes costs 0.01 nats or")
    assert "least costs kivi-2, KL 0.2000 ± 0.0200 nats per token at 5.00 x" in line
    assert words.taken(costly, None, {"max_kl": 0.1}) == []
    idle = TABLE[TABLE["label"] == "none"]
    assert words.taken(idle, None, {}) == ["Take none: no setting measured saves bytes."]


def test_what_rounds_to_nought_has_no_minus():
    """Half-precision noise: a setting may cost a little less than nothing."""
    table = TABLE.assign(kl_mean_nats=-1e-6, kl_mean_nats_se=0.0, delta_perplexity_percent=-1e-4)
    table = table.assign(frontier=True)
    lines = [*words.taken(table, table.iloc[1], {}), words.frontier(table)]
    assert "KL 0.0000 ± 0.0000 nats per token, perplexity +0.00 %" in lines[0]
    assert not any("-0.0" in line for line in lines)
    row = table.iloc[1]
    assert margins.spread(row, "kl_mean_nats", ".4f") == "0.0000 ± 0.0000"
    assert margins.span([-1e-6, 1e-6], ".4f") == "0.0000"


def test_at_the_bandwidths_that_are_told_both_ways_take_as_long():
    prefill_s = 2.0
    table = bandwidths(TABLE, prefill_s).set_index("label")
    for label, row in table.iterrows():
        restore_s = 0 if label == "none" else row["restore_s"]
        loaded = row["stored_bytes"] / row["beats_prefill_from"] + restore_s
        assert loaded == pytest.approx(prefill_s)
        if label == "none":
            assert pd.isna(row["beats_plain_below"])
            continue
        small = row["stored_bytes"] / row["beats_plain_below"] + row["restore_s"]
        assert small == pytest.approx(row["original_bytes"] / row["beats_plain_below"])
    slow = bandwidths(TABLE, 0.2)["beats_prefill_from"]  # restoring takes longer
    assert slow.iloc[1:].isna().all() and slow.iloc[0] == FULL / 0.2


def test_it_is_said_from_which_bandwidth_on_loading_beats_prefilling():
    large = TABLE.assign(**{n: 1000 * TABLE[n] for n in ("stored_bytes", "original_bytes")})
    large["bytes_per_token"] *= 1000
    table = bandwidths(large, 2.0)
    begins = (
        "Reading 100 tokens anew takes 2.00 s here. Loaded from disk or network they are there "
        "sooner in 16 bits from 20.00 MB/s on"
    )
    assert words.loading(table, None, 2.0) == f"{begins}."
    assert words.loading(table, table.iloc[1], 2.0) == (
        f"{begins}, as coded 1.0e-04 from 1.14 MB/s on, and before 16 bits below 152.00 MB/s."
    )
    slow = bandwidths(large, 0.2)
    assert words.loading(slow, slow.iloc[1], 0.2).endswith(
        "as coded 1.0e-04 never (restoring takes 0.25 s), and before 16 bits below 152.00 MB/s."
    )


def test_engines_keep_their_settings_apart():
    lines = words.engines(TABLE)
    assert len(lines) == 3  # 8 bits, 4 bits, 2 bits
    for line, label in zip(lines, ("int8", "kivi-4", "kivi-2"), strict=True):
        assert ENGINES[label] in line and f"as {label} here" in line


@pytest.mark.parametrize("family", families())
def test_labels_begin_with_the_family_that_the_flag_takes(family):
    assert all(label.startswith(family) for label in families()[family])


def test_engines_are_told_of_settings_that_are_measured():
    assert ENGINES.keys() <= {label for each in families().values() for label in each}
