"""The words that settings take, known before what they name is brought in."""

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto",)
OFFLOADS = ("none", "memory", "disk")
FOCUSES = ("all", "layers", "heads", "tokens", "embeddings", "cache", "spectrum")
PICTURE_FORMATS = ("png", "pdf", "svg")
PRUNE_METHODS = ("layer", "head", "dimension", "threshold", "token")
EVICTIONS = (
    "key_norm",
    "attention",
    "recent",
    "random",
    "importance",
    "heavy_hitter",
    "snapkv",
    "key_diff",
)
FAMILIES = (  # of methods that `compare` sets beside each other
    "none",
    "coded",
    "coded_fixed",
    "coded_chunks",
    "kvtc",
    "fp8",
    "int8",
    "kivi",
    "rotated",
    "svd",
    "cross_layer_svd",
    "tucker",
    "tucker_quantised",
    "recent",
    "key_norm",
    "random",
    "heavy_hitter",
    "snapkv",
    "key_diff",
    "composed",
)
