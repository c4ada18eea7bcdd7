"""The charts of the page, as Vega-Lite specifications made with altair. They hold no data: the page
gives each its rows, and so they are the same for every folder (`kept.py`). Colours are signals, so
that a chart follows the theme without being made anew."""

from typing import Any, TypeAlias

import altair as alt

Drawn: TypeAlias = Any  # a chart of altair, whose methods give other kinds of chart than they say

KIND_COLOURS = {"key": "#3b78bd", "value": "#d9822b", "both": "#8a94a3"}
COLOURS = {"ink": "#1d2733", "soft": "#5d6b7a", "faint": "#e3e7ec", "accent": "#0f7173"}
NAMED: Any = (("right", "left", 9), ("left", "right", -9))  # side of the point, align, dx
LABELLED: Any = {"condition": {"test": "datum.label != ''", "value": 1}, "value": 0}  # ticks
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def all_charts() -> dict[str, dict[str, Any]]:
    """name -> specification, checked by altair against the schema of Vega-Lite."""
    charts = {
        "frontier": _frontier(),
        "tail": _tail(),
        "ledger": _ledger(),
        "in_time": _in_time(),
        "token": _token(),
    }
    return {name: _themed(chart).to_dict() for name, chart in charts.items()}


def _frontier() -> Drawn:
    """Stored bytes against cost: the frontier in the accent, what does not fit the limits faded,
    diamonds what an engine has."""
    x = _log(alt.X("bytes_per_token:Q", title="Stored bytes per token (log)"))
    y = _log(alt.Y("kl_shown:Q", title="Cost: KL in nats per token (log)"))
    rows = alt.Chart(alt.NamedData("rows")).encode(
        x=x.scale(padding=24), y=y.scale(padding=18), opacity=_when("datum.fits", 1, 0.13)
    )
    line = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter("datum.frontier")
        .mark_line(strokeWidth=1.5, strokeDash=[2, 3], opacity=0.7, color=_signal("accent"))
        .encode(x=x, y=y)
    )
    bars = rows.mark_rule(strokeWidth=1, color=_signal("soft")).encode(
        y="kl_low:Q", y2="kl_high:Q", opacity=_when("datum.fits", 0.6, 0.06)
    )
    points = rows.mark_point(filled=True, size=80, strokeWidth=1, cursor="pointer").encode(
        shape=_when("datum.engine != ''", "diamond", "circle"),
        color=_when("datum.frontier", _signal("accent"), _signal("soft")),
        tooltip=[
            alt.Tooltip("label:N", title="setting"),
            alt.Tooltip("bytes_per_token:Q", title="bytes per token", format=",.0f"),
            alt.Tooltip("ratio:Q", title="times smaller", format=".2f"),
            alt.Tooltip("kl_said:N", title="KL, nats per token"),
            alt.Tooltip("perplexity_said:N", title="perplexity"),
            alt.Tooltip("per_model_said:N", title="once for the model"),
            alt.Tooltip("tasks_said:N", title="tasks"),
            alt.Tooltip("engine_said:N", title="in engines today"),
        ],
    )
    names = [  # those on the right stand left of their points, so as to stay in the chart
        rows.transform_filter(f"datum.named == '{side}'")
        .mark_text(align=align, dx=dx, dy=-6, fontSize=11, color=_signal("ink"))
        .encode(text="label:N")
        for side, align, dx in NAMED
    ]
    limits = [
        alt.Chart(alt.NamedData(f"limit_{axis}"))
        .mark_rule(strokeDash=[6, 4], strokeWidth=1.5, color=_signal("accent"))
        .encode(**{axis: f"{axis}:Q"}, opacity=_when("datum.on", 1, 0))
        for axis in ("x", "y")
    ]
    return alt.layer(*limits, line, bars, points, *names).properties(height=400)


def _tail() -> Drawn:
    """Which share of the tokens costs at least so much: a line for each setting."""
    lines = (
        alt.Chart(alt.NamedData("rows"))
        .mark_line(interpolate="monotone")
        .encode(
            x=alt.X("share:Q", title="Share of tokens that cost at least this")
            .scale(type="log", reverse=True, nice=False)
            .axis(format="~%", values=[0.5, 0.1, 0.01, 0.001, 0.0001]),
            y=alt.Y("kl:Q", title="KL in nats (log)")
            .scale(type="log", nice=False)
            .axis(tickCount=5, format="~g", gridOpacity=LABELLED),
            detail="label:N",
            color=_when("datum.label == chosen", _signal("accent"), _signal("soft")),
            opacity=_when("datum.label == chosen", 1, 0.3),
            strokeWidth=_when("datum.label == chosen", 2.5, 1),
            tooltip=[
                alt.Tooltip("label:N", title="setting"),
                alt.Tooltip("share:Q", title="share of tokens", format=".2~%"),
                alt.Tooltip("kl:Q", title="cost at least, nats", format=".3~g"),
            ],
        )
    )
    return alt.layer(lines).add_params(alt.param(name="chosen", value="")).properties(height=280)


def _ledger() -> Drawn:
    """Bytes by group of layers, keys and values in the colours that they have in all pictures."""
    return (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter("datum.on")
        .mark_bar(stroke="white", strokeWidth=0.6, strokeOpacity=0.7)
        .encode(
            x=alt.X("sum(bytes):Q", title="Bytes", stack="zero").axis(format="~s", tickCount=5),
            y=alt.Y("group:N", title="Layers", sort=alt.EncodingSortField("order", op="min")),
            color=alt.Color("kind:N", title=None)
            .scale(domain=list(KIND_COLOURS), range=list(KIND_COLOURS.values()))
            .legend(orient="top"),
            detail="part:N",
            order=alt.Order("order_of_part:Q"),
            tooltip=[
                alt.Tooltip("group:N", title="layers"),
                alt.Tooltip("kind:N", title="kind"),
                alt.Tooltip("part:N", title="part"),
                alt.Tooltip("sum(bytes):Q", title="bytes", format=","),
            ],
        )
        .properties(height=200)
    )


def _in_time() -> Drawn:
    """Layers by positions, each bin as wide as its tokens; a line where generation begins."""
    cells = (
        alt.Chart(alt.NamedData("rows"))
        .mark_rect()
        .encode(
            x=alt.X("position:Q", title="Position of the token").scale(nice=False, zero=False),
            x2="until:Q",
            y=alt.Y("layer:O", title="Layer").axis(labelOverlap=True),
            color=alt.Color("shown:Q", title=None)
            .scale(scheme="viridis", zero=False)
            .legend(orient="top", gradientLength=220),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("position:Q", title="from position", format=","),
                alt.Tooltip("tokens:Q", title="tokens", format=","),
                alt.Tooltip("stage:N", title="stage"),
                alt.Tooltip("norm:Q", title="norm", format=".3~g"),
                alt.Tooltip("cosine_to_mean:Q", title="cosine to the mean", format=".2f"),
            ],
        )
    )
    start = (
        alt.Chart(alt.NamedData("generated"))
        .mark_rule(strokeWidth=2, strokeDash=[5, 3], color="white")
        .encode(x="position:Q")
    )
    return alt.layer(cells, start)


def _token() -> Drawn:
    """The attention that one token receives in each layer and KV head."""
    return (
        alt.Chart(alt.NamedData("rows"))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="Layer").axis(labelOverlap=True, labelAngle=0),
            y=alt.Y("head:O", title="KV head").axis(labelOverlap=True),
            color=alt.Color("received:Q", title="Attention received")
            .scale(scheme="viridis", type="sqrt", domainMin=0)
            .legend(orient="top", format="~%", gradientLength=180),
            tooltip=[
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("head:O", title="KV head"),
                alt.Tooltip("received:Q", title="attention received", format=".2~%"),
            ],
        )
        .properties(height=150)
    )


def _themed(chart: Drawn) -> Drawn:
    """Sized by the page, in its font and colours."""
    ink, soft, faint = (_signal(name) for name in ("ink", "soft", "faint"))
    axis = alt.AxisConfig(
        labelColor=soft,
        titleColor=ink,
        gridColor=faint,
        domainColor=faint,
        tickColor=faint,
        labelFontSize=11,
        titleFontSize=12,
        titleFontWeight="normal",
        titlePadding=10,
    )
    legend = alt.LegendConfig(labelColor=soft, titleColor=ink, titleFontWeight="normal")
    chart = chart.properties(width="container", background="transparent").add_params(
        *(alt.param(name=name, value=colour) for name, colour in COLOURS.items())
    )
    return chart.configure(
        axis=axis, legend=legend, font=FONT, view=alt.ViewConfig(stroke=None)
    ).properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))


def _log(channel: Any) -> Any:
    return channel.scale(type="log", nice=False).axis(tickCount=6, gridOpacity=LABELLED)


def _signal(name: str) -> alt.ExprRef:
    return alt.ExprRef(expr=name)


def _when(test: str, then: Any, otherwise: Any) -> Any:
    """One of two values for a mark, by what its row says."""
    return alt.when(test).then(alt.value(then)).otherwise(alt.value(otherwise))
