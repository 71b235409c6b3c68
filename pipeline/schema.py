"""The Arrow schema of every table that passes between stages or is stored."""

import pyarrow as pa

SCHEMA_VERSION = 1
"""Version of the store's layout; a store of a higher one is refused, never guessed at."""

CORPUS = pa.schema([("video_id", pa.string()), ("uri", pa.string()), ("source_hint", pa.string())])
"""Videos to encode. `source_hint`: canonical JSON of what storage knows of the object's state, `{}` if nothing."""

_SOURCE = [
    ("timestamps_s", pa.list_(pa.float32())),
    ("decoder", pa.string()),
    ("source_sha256", pa.string()),
    ("source_bytes", pa.int64()),
    ("substituted_frames", pa.int32()),
    ("displaced_s", pa.float32()),
]
_FAILURE = [("error_class", pa.string()), ("error", pa.string())]

DECODED = pa.schema([*CORPUS, ("frames", pa.large_binary()), *_SOURCE, *_FAILURE])
"""Clips. `frames`: uint8 F*S*S*3, null where `error_class` is not; `substituted_frames`: how many of the F are not, or not
provably, the frame that was asked for; `displaced_s`: how far the policy `keyframe` moved a frame at most, in seconds."""

TOKENS = [
    ("features", pa.large_binary()),
    ("shape", pa.list_(pa.int32())),
    ("dtype", pa.string()),
    ("frame", pa.binary()),
    ("anchor", pa.binary()),
    ("kind", pa.binary()),
    ("size", pa.binary()),
    ("position", pa.binary()),
    ("grid", pa.list_(pa.int32())),
]
"""Tokens of one clip, little-endian bytes in C order: features [S, D]; frame int16, anchor int32, kind uint8, size
float32, each [S]; position float32 [S, 3]; grid holds F, gh, gw."""

OPTIONAL = [
    ("scale", pa.binary()),
    ("rank", pa.binary()),
    ("parent", pa.binary()),
    ("link", pa.binary()),
    ("weight", pa.binary()),
    ("gain", pa.binary()),
    ("owner", pa.binary()),
    ("clip_space", pa.large_binary()),
    ("clip_scale", pa.binary()),
]
"""Columns of the entries that have them; a shard in which none has leaves them out. scale float32 [S]: factor of each row
of int8 features. rank and parent int16, link uint8, weight and gain float32, each [S], and owner int16 [F * gh * gw]: what
cutting to a smaller budget needs, see `reducers.base.Order`. clip_space int8 [S, P] with clip_scale float32 [S]: tokens in
the joint image-text space, for methods that read the question."""

ENCODED = pa.schema([*CORPUS, *TOKENS, *OPTIONAL, *_SOURCE, *_FAILURE])
"""What the encode stage returns and the commit stage takes."""

ENTRY = pa.schema(
    [("video_id", pa.string()), *TOKENS, ("timestamps_s", pa.list_(pa.float32())), ("source_sha256", pa.string()),
     ("payload_sha256", pa.string()), *OPTIONAL]
)  # fmt: skip
"""One row of a shard."""

INDEX = pa.schema(
    [
        *CORPUS,
        ("status", pa.string()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("shard", pa.string()),
        ("row_group", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("tokens", pa.int32()),
        ("payload_bytes", pa.int64()),
        ("payload_sha256", pa.string()),
        ("source_sha256", pa.string()),
        ("source_bytes", pa.int64()),
        ("decoder", pa.string()),
        ("substituted_frames", pa.int32()),
        ("generation", pa.int32()),
        ("stored_id", pa.string()),
    ]
)
"""One row of an index fragment. `status` is committed or failed; `offset` and `length` span the row group in the shard;
`generation` counts how often the video was taken up: the highest is true. `stored_id`: the id that the entry itself carries,
where a video of the same content was encoded under another; else null, and fragments in which all are null leave it out."""

MANIFEST = pa.schema(
    [
        ("video_id", pa.string()),
        ("status", pa.string()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("tokens", pa.int32()),
        ("bytes", pa.int64()),
        ("substituted_frames", pa.int32()),
        ("displaced_s", pa.float32()),
    ]
)
"""What the commit stage returns: committed, failed, or duplicate when another run was first."""
