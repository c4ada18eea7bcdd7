"""Which room of the house may import from which, and which libraries it does not know; the tests
are in test_architecture.py, and the layout in the README.

A room is a package, or a file with rules of its own. What it may import of ours stands in rooms
above it, so that no arrow points backwards.
"""

OURS = {"config", "main", "data", "analysis", "compression", "visualization", "benchmarks", "tests"}
HEAVY = {"torch", "transformers", "datasets", "pandas", "numpy", "matplotlib", "seaborn", "scipy"}
PICTURES = {"matplotlib", "seaborn"}
MODELS = {"transformers", "datasets"}
WRITING = {"data.locks", "data.signals", "data.writing"}
SAVING = {"data.own_files", "data.saving"}
TEXTS = {"data.texts", "data.corpora", "data.chosen_texts"}
LIGHT_DATA = {"data.memory", "data.sources", "data.vocabulary", *TEXTS, *WRITING}
CONTRACT = {
    "compression.base",
    "compression.parts",
    "compression.shapes",
    "compression.stored",
}
SEALED = {"config", "compression.sealed", *CONTRACT}
PARTS = {"data.cache", "data.rotary"}
RUNNING = {
    f"data.{name}"
    for name in (
        "memory",
        "loaded_model",
        "extraction",
        "scoring",
        "resume",
        "own_cache",
        "vocabulary",
        "watchers",
    )
} | TEXTS
THREADS = "data.threads"  # settled by any room before it brings in torch
# Room -> (what it may import of ours beside itself, which libraries it does not know).
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "config": (set(), HEAVY),
    "data.vocabulary": (set(), HEAVY),
    "data.threads": (set(), HEAVY - {"torch"}),  # where torch is there already, it is settled too
    "data.locks": (set(), HEAVY),
    "data.clock": (set(), HEAVY - {"torch"}),
    "data.signals": (set(), HEAVY),
    "data.writing": ({"data.locks"}, HEAVY),
    "data.own_files": ({"config", *WRITING}, HEAVY),
    "data.memory": ({"config"}, HEAVY - {"torch"}),
    "data.hub": ({"config"}, HEAVY),
    "data.text_files": ({"config", "data.hub"}, HEAVY),
    "data.corpus_texts": (set(), HEAVY),
    "data.texts": (set(), HEAVY),
    "data.corpora": ({"config", "data.hub", "data.texts"}, HEAVY - {"datasets"}),
    "data.chosen_texts": ({"config", "data.corpora", "data.text_files", "data.texts"}, HEAVY),
    "data.tasks": (set(), HEAVY),
    "data.model_files": ({"config"}, HEAVY),
    "data.downloads": ({"config", "data.hub", "data.model_files"}, HEAVY),
    "data.token_ids": (set(), HEAVY),
    "data.gguf_models": ({"config", *WRITING}, PICTURES | {"pandas"}),
    "data.default_model": ({"config", "data.gguf_models", *WRITING}, PICTURES | {"pandas"}),
    "data.sources": ({"config", "data.default_model"}, HEAVY),
    "data.rotary": (set(), HEAVY - {"torch"}),
    "data.cache": ({"config", "data.rotary"}, HEAVY - {"torch"}),
    "data.headers": (set(), HEAVY),
    "data.tensor_headers": ({"data.headers"}, HEAVY - {"torch"}),
    "data.tensor_files": (
        {"data.headers", "data.tensor_headers", "data.writing"},
        HEAVY - {"torch"},
    ),
    "data.saved_layers": ({"data.cache"}, HEAVY - {"torch"}),
    "data.plain_files": (
        {"data.saved_layers", "data.tensor_files", "data.tensor_headers", *PARTS},
        HEAVY - {"torch"},
    ),
    "data.plain_reading": (
        {
            "config",
            "data.own_files",
            "data.headers",
            "data.plain_files",
            "data.saved_layers",
            "data.tensor_files",
            *PARTS,
        },
        HEAVY - {"torch"},
    ),
    "data.layouts": ({"config", "data.headers", *PARTS}, HEAVY - {"torch"}),
    "data.layout_files": (
        {
            "config",
            "data.headers",
            "data.layouts",
            "data.plain_files",
            "data.saved_layers",
            "data.tensor_files",
            *PARTS,
        },
        HEAVY - {"torch"},
    ),
    "data.saved_cache": (
        {
            "config",
            "data.layout_files",
            "data.plain_files",
            "data.plain_reading",
            "data.saved_layers",
        },
        HEAVY - {"torch"},
    ),
    "data.inventory": ({"data.cache"}, HEAVY - {"torch"}),
    "data.placement": (set(), HEAVY - {"torch"}),
    "data.refusals": (
        {"config", "data.default_model", "data.memory", "data.model_files", "data.sources"},
        HEAVY,
    ),
    "data.identities": ({"data.placement"}, HEAVY - {"torch", "transformers"}),
    "data.loaded_model": (
        {"config", "data.identities", "data.placement", "data.refusals", "data.token_ids"},
        HEAVY - {"torch", "transformers"},
    ),
    "data": ({"config", "data"}, PICTURES | {"pandas"}),
    "analysis.sinks": (set(), HEAVY - {"pandas"}),
    "analysis.entry_findings": (set(), HEAVY - {"pandas", "numpy"}),
    "analysis": (
        {"config", "analysis.sinks", "analysis.entry_findings", "data.cache", "data.inventory"},
        MODELS | PICTURES,
    ),
    "compression.stored": (set(), HEAVY - {"torch"}),
    "compression.parts": (set(), HEAVY),
    "compression.deflated": (set(), HEAVY - {"torch", "numpy"}),
    "compression.shapes": (PARTS, HEAVY - {"torch"}),
    "compression.packed": (
        {"compression.deflated", "compression.stored", "data.headers"},
        HEAVY - {"torch"},
    ),
    "compression.outlines": (
        {
            "compression.packed",
            "compression.shapes",
            "compression.stored",
            "data.headers",
            "data.rotary",
        },
        HEAVY - {"torch", "numpy"},
    ),
    "compression.sealed": ({"compression.stored", "data.writing"}, HEAVY - {"torch"}),
    "compression.file_parts": (
        {
            "compression.outlines",
            "compression.packed",
            "compression.sealed",
            "compression.shapes",
            "compression.stored",
        },
        HEAVY - {"torch"},
    ),
    "compression.base": (
        {"config", "compression.file_parts", *CONTRACT, *PARTS},
        HEAVY - {"torch"},
    ),
    "compression.costs": ({"config", "compression.base", "data.clock", *PARTS}, MODELS | PICTURES),
    "compression.scored_tokens": (set(), MODELS | PICTURES),
    "compression.methods": (
        {"config", *CONTRACT, "analysis.tokens", "compression.deflated", *PARTS},
        MODELS | PICTURES,
    ),
    "compression.coded": (
        {
            *SEALED,
            "compression.deflated",
            "compression.methods.layer_groups",
            "compression.methods.place_by_place",
            "compression.methods.packing",
            "data.corpus_texts",
            "data.headers",
            "data.loaded_model",
            "data.own_cache",
            "data.corpora",
            "data.sensitivity",
            "data.texts",
            *PARTS,
        },
        MODELS | PICTURES | {"pandas"},
    ),
    "compression.kvtc_calibration": (
        {
            "config",
            "compression.base",
            "compression.coded",
            "compression.methods",
            "compression.sealed",
            "data.cache",
            "data.extraction",
            "data.loaded_model",
        },
        MODELS | PICTURES | {"pandas"},
    ),
    "compression.serving": (
        {
            "config",
            "compression.base",
            "compression.coded",
            "compression.shapes",
            "data.cache",
            "data.inventory",
        },
        HEAVY - {"torch", "transformers"},
    ),
    "compression.registry": (
        {
            "config",
            "compression.base",
            "data.headers",
            "compression.methods",
            "compression.coded.chunked",
            "compression.coded.fixed",
            "compression.coded.method",
        },
        HEAVY,
    ),
    "compression.files": (
        {*SEALED, "data.headers", "compression.file_parts", "compression.registry", "data.cache"},
        HEAVY - {"torch"},
    ),
    "compression.ledger": (
        {"compression.base", "compression.parts"},
        MODELS | PICTURES,
    ),
    "compression.token_bits": ({"compression.shapes"}, MODELS | PICTURES),
    "compression.evaluate": (
        {
            "config",
            "compression.base",
            "compression.costs",
            "compression.ledger",
            "compression.scored_tokens",
            "compression.token_bits",
            "data.cache",
            "data.inventory",
            *RUNNING,
        },
        MODELS | PICTURES,
    ),
    "compression.studies": (
        {
            "config",
            "analysis",
            "compression.base",
            "compression.shapes",
            "compression.costs",
            "compression.evaluate",
            "compression.methods",
            "compression.registry",
            "compression.kvtc_calibration",
            "data.headers",
            "compression.ledger",
            "compression.scored_tokens",
            "data.clock",
            "compression.token_bits",
            "compression.sealed",
            "compression.stored",
            "compression.coded",
            *RUNNING,
            "data.cache",
            "data.models",
            "data.sources",
            "data.inventory",
            "data.saved_cache",
            "data.scored_texts",
            "data.tasks",
            "data.signals",
            "data.writing",
            *SAVING,
        },
        MODELS | PICTURES,
    ),
    "compression.prompt_file": ({"config", "data.own_files"}, HEAVY),
    "compression.turns": (
        {
            "config",
            "compression.base",
            "compression.files",
            "compression.prompt_file",
            "compression.coded.kept_calibrations",
            "compression.serving",
            "data.cache",
            "data.headers",
            "data.reading",
            *RUNNING,
            *SAVING,
        },
        HEAVY - {"torch"},
    ),
    "compression.prompts": (
        {
            "config",
            "compression.base",
            "compression.files",
            "compression.prompt_file",
            "data.headers",
            "compression.registry",
            "compression.stored",
            "compression.coded.kept_calibrations",
            "compression.studies.presets",
            *RUNNING,
            *SAVING,
            "data.cache",
        },
        HEAVY,
    ),
    "compression": (set(), HEAVY),
    "visualization.lettering": (set(), HEAVY),
    "visualization.picture_files": ({"config"}, {"torch", *MODELS}),
    "visualization.style": (
        {"config", "visualization.lettering", "visualization.picture_files"},
        {"torch", *MODELS},
    ),
    "visualization.catalogue": (set(), {"torch", "numpy", *MODELS}),
    "visualization.drawing": (
        {"config", "visualization.catalogue", "visualization.picture_files"},
        {"torch", "numpy", *MODELS},
    ),
    "visualization.output": (
        {"config", "visualization.drawing", "visualization.style", *WRITING},
        {"torch", "numpy", *MODELS},
    ),
    "visualization.table_choices": ({"config"}, {"torch", *MODELS, *PICTURES}),
    "visualization.main_tables": (
        {"visualization.table_choices"},
        {"torch", *MODELS, *PICTURES},
    ),
    "visualization.terminal": ({"config", *LIGHT_DATA}, HEAVY),
    "visualization.report": (
        {"config", "data.writing", "visualization.terminal"},
        {"torch", *MODELS, *PICTURES},
    ),
    "visualization.terminal.inputs": (
        {
            "data.chosen_texts",
            "data.models",
            "data.loaded_model",
            "data.texts",
            "visualization.terminal",
        },
        HEAVY,
    ),
    "visualization.terminal.storing": (
        {
            "compression.prompts",
            "compression.turns",
            "data.chosen_texts",
            "data.loaded_model",
            "visualization.terminal",
        },
        HEAVY,
    ),
    "visualization.terminal.light": ({"visualization.report", "visualization.terminal"}, HEAVY),
    "visualization.delivery": (
        {
            "visualization.catalogue",
            "visualization.drawing",
            "visualization.main_tables",
            "visualization.output",
            "visualization.report",
            "visualization.terminal",
            *LIGHT_DATA,
        },
        {"torch", "numpy", *MODELS},
    ),
    "visualization": (
        {
            "config",
            "analysis.sinks",
            "analysis.entry_findings",
            "visualization.style",
            "visualization.lettering",
        },
        {"torch", *MODELS},
    ),
    "main": (OURS - {"main", "benchmarks", "tests"}, HEAVY),
}
