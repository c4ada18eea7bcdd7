"""How fast chunks of a cache are coded, beside zstd, DEFLATE and casts to fp8, and from which
bandwidth on that pays.

    python -m benchmarks.codec [--models smollm2-135m] [--context_tokens 2048] [--chunk_tokens 256]
        [--threads 1,2] [--repeat 3] [--step 7e-5]

Rates are GB of the 16-bit cache a second. zstd and DEFLATE code the same integers as the entropy
coder, as bytes where they fit into one and 16 bits where not; what stands in front of them, the
transform, is not in their times. fp8 is cast from 16 bits and back. p50 and p95 are of chunks. A
chunk pays where decoding it takes less time than moving the bytes that it saves: below the
bandwidth that is printed, with decoding alone and with encoding too. The last line of a model sets
the chunks beside `coded_fixed` and `coded` of the whole text.

Other work on the machine spoils the numbers: its load is printed.
"""

import argparse
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import pyarrow
import torch

import config
from compression.coded.chunk_integers import quantised
from compression.coded.chunked import CHUNK_TOKENS, between
from compression.coded.chunks import SINKS, ChunkCodec
from compression.coded.kept_calibrations import calibration_of, chunk_codec
from compression.coded.method import MIDDLE
from compression.registry import make
from config import UsageError
from data import extraction, models
from data.cache import BYTES_PER_ENTRY, KINDS, KVCache, LayerKV
from data.corpora import reference_samples
from data.texts import Sample

T = TypeVar("T")
FP8 = torch.float8_e4m3fn
Pieces = list[tuple[int, int, list[LayerKV]]]  # first position, tokens, layers


@dataclass(frozen=True)
class Measured:
    """Of one way to code: bytes of all chunks, and the seconds of each, over all rounds."""

    name: str
    nbytes: int
    encode_s: list[float]
    decode_s: list[float]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def over(
    pieces: Sequence[tuple[Any, ...]],
    repeat: int,
    name: str,
    encode: Callable[..., T],
    decode: Callable[[T], object],
    size: Callable[[T], int],
) -> Measured:
    """Each chunk encoded and decoded `repeat` times, after once that does not count."""
    encode_s, decode_s, nbytes = [], [], 0
    for piece in pieces:
        for n in range(repeat + 1):
            coded, seconds = timed(partial(encode, *piece))
            _, back = timed(partial(decode, coded))
            if n:
                encode_s.append(seconds)
                decode_s.append(back)
        nbytes += size(coded)
    return Measured(name, nbytes, encode_s, decode_s)


def pieces_of(cache: KVCache, chunk_tokens: int) -> Pieces:
    """Whole chunks alone."""
    starts = range(0, cache.n_tokens - chunk_tokens + 1, chunk_tokens)
    return [(s, chunk_tokens, between(cache.layers, s, s + chunk_tokens)) for s in starts]


def integers(codec: ChunkCodec, piece: tuple[int, int, list[LayerKV]]) -> bytes:
    """What the entropy coder is given of a chunk, as plain numbers."""
    start, n_tokens, layers = piece
    q = quantised(
        codec.transform, layers, SINKS if start == 0 else 0, n_tokens, codec.step
    ).integers
    small = q.size == 0 or np.abs(q).max() < 128
    return q.astype(np.int8 if small else np.int16).tobytes()


def measured(codec: ChunkCodec, pieces: Pieces, repeat: int) -> list[Measured]:
    """Our chunks, and what they stand beside."""
    ours = over(
        pieces,
        repeat,
        f"chunks, step {codec.step:g}",
        lambda start, n, layers: codec.encode_layers(layers, start, n),
        codec.decode_layers,
        len,
    )
    rows = [ours]
    raw = [(integers(codec, piece),) for piece in pieces]
    for name, codes in (("zstd", pyarrow.Codec("zstd")), ("DEFLATE", None)):

        def packed(x: bytes, codes: pyarrow.Codec | None = codes) -> tuple[int, bytes]:
            return len(x), codes.compress(x, asbytes=True) if codes else zlib.compress(x)

        def unpacked(x: tuple[int, bytes], codes: pyarrow.Codec | None = codes) -> object:
            return codes.decompress(x[1], x[0]) if codes else zlib.decompress(x[1])

        rows.append(
            over(raw, repeat, f"{name} of its integers", packed, unpacked, lambda x: len(x[1]))
        )
    rows.append(
        over(
            pieces,
            repeat,
            "cast to fp8",
            lambda start, n, layers: [x.tensor(kind).to(FP8) for x in layers for kind in KINDS],
            lambda casts: [x.to(torch.float16) for x in casts],
            lambda casts: sum(x.numel() for x in casts),
        )
    )
    return rows


def told(row: Measured, plain: int, n_chunks: int, prefill_s: float) -> str:
    """A line of the table; plain: bytes of all chunks in 16 bits."""
    rounds = len(row.encode_s) // n_chunks
    encode, decode = sum(row.encode_s) / rounds, sum(row.decode_s) / rounds
    saved = plain - row.nbytes
    cells = [f"{row.name:28} {plain / row.nbytes:6.2f} x"]
    for seconds, each in ((encode, row.encode_s), (decode, row.decode_s)):
        p50, p95 = np.percentile(each, [50, 95]) * 1000
        cells.append(
            f"{plain / seconds / 1e9:7.3f} GB/s {seconds / prefill_s:6.3f} {p50:7.1f} {p95:7.1f} ms"
        )
    cells.append(f"{_bits(saved / decode)} {_bits(saved / (encode + decode))}")
    return " | ".join(cells)


def _bits(bytes_per_s: float) -> str:
    return f"{8 * bytes_per_s / 1e9:7.2f} Gbit/s" if bytes_per_s > 0 else f"{'never':>14}"


def whole(codec: ChunkCodec, cache: KVCache, chunks_s: float, repeat: int) -> str:
    """The chunks' decoding beside that of the whole text at once."""
    said = []
    for name in ("coded", "coded_fixed"):
        method = make(name, {"step": codec.step}, codec.calibration)
        small = method.compress(cache)
        seconds = statistics.median(timed(small.restore)[1] for _ in range(repeat))
        said.append(f"{name} of the whole text {seconds:.3f} s")
    return f"decoding: all chunks one by one {chunks_s:.3f} s, {', '.join(said)}"


def report(name: str, sample: Sample, given: argparse.Namespace) -> None:
    loaded = models.load(name)
    calibration_of(loaded)  # before anything is timed
    codec = chunk_codec(loaded, given.step)
    ids = extraction.tokenise(loaded, sample, given.context_tokens)
    for threads in given.threads:
        torch.set_num_threads(threads)
        rounds = [timed(partial(extraction.prefill, loaded, ids)) for _ in range(given.repeat)]
        prefill_s = statistics.median(seconds for _, seconds in rounds)
        cache = extraction.prefill(loaded, ids, probe=True, recent_only=True).cache.in_16_bits()
        pieces = pieces_of(cache, given.chunk_tokens)
        if not pieces:
            raise UsageError(
                f"The text has {cache.n_tokens} tokens, and `chunk_tokens` is {given.chunk_tokens}",
                "give a longer text or smaller chunks",
            )
        plain = sum(BYTES_PER_ENTRY * x.n_entries for *_, layers in pieces for x in layers)
        print(
            f"\n{loaded.name} on {threads} threads: {cache.n_tokens} tokens of {sample.name}, "
            f"{plain:,} bytes in {len(pieces)} chunks of {given.chunk_tokens}, prefill "
            f"{prefill_s:.2f} s, load {load()}"
        )
        sides = [f"{way} GB/s, share of prefill, p50, p95" for way in ("encode", "decode")]
        print(" | ".join([f"{'':28} {'ratio':>8}", *sides, "pays below: read, write and read"]))
        rows = measured(codec, pieces, given.repeat)
        for row in rows:
            print(told(row, plain, len(pieces), prefill_s))
        print(whole(codec, cache, sum(rows[0].decode_s) / given.repeat, given.repeat))


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
        return lambda text: [kind(each) for each in text.split(",")]

    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--models", type=several(str), default=[config.DEFAULT_MODEL])
    p.add_argument("--context_tokens", type=int, default=2048)
    p.add_argument("--chunk_tokens", type=int, default=CHUNK_TOKENS)
    p.add_argument("--threads", type=several(int), default=[1, 2])
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--step", type=float, default=MIDDLE)
    return p.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = flags(arguments)
    try:
        for name in given.models:
            report(name, reference_samples()[0], given)
    except (UsageError, OSError) as error:
        print(f"benchmarks.codec: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
