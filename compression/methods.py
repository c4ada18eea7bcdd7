"""Every method by name. To add one: its file and a line here; the contract tests run over it."""

from compression import (
    coded,
    composed,
    dimensions,
    evictions,
    low_rank,
    merging,
    pruning,
    quantisers,
    rotation_quantiser,
)
from compression.base import Compressor, Uncompressed
from compression.tucker import Tucker

METHODS: dict[str, type[Compressor]] = {
    method.name: method
    for method in (
        Uncompressed,
        coded.Coded,
        coded.CodedFixed,
        quantisers.FloatQuantiser,
        quantisers.IntegerQuantiser,
        quantisers.KIVI,
        rotation_quantiser.RotationQuantiser,
        Tucker,
        low_rank.SVD,
        low_rank.CrossLayerSVD,
        low_rank.QuantisedTucker,
        dimensions.MergedDims,
        dimensions.DroppedDims,
        dimensions.EmbeddingFactor,
        dimensions.PCA,
        dimensions.CalibratedPCA,
        pruning.EvictedParts,
        pruning.EvictedTokens,
        pruning.ZeroedEntries,
        evictions.HeavyHitters,
        evictions.SnapKV,
        evictions.KeyDiff,
        merging.MergedHeads,
        merging.MergedTokens,
        composed.Composed,
    )
}
