"""Every method by name. To add one: its file and a line here; the contract tests run over it."""

from compression import dimensions, merging, pruning
from compression.base import Compressor, Uncompressed
from compression.tucker import Tucker

METHODS: dict[str, type[Compressor]] = {
    method.name: method
    for method in (
        Uncompressed,
        Tucker,
        dimensions.MergedDims,
        dimensions.DroppedDims,
        dimensions.EmbeddingFactor,
        dimensions.PCA,
        dimensions.CalibratedPCA,
        pruning.EvictedParts,
        pruning.EvictedTokens,
        pruning.ZeroedEntries,
        merging.MergedHeads,
        merging.MergedTokens,
    )
}
