"""Tables as Parquet in memory, for stores that know whole objects only.

`pyarrow.parquet.read_table` would import pandas (0.8 s of CPU time) and its data sets.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["from_parquet", "to_parquet"]


def to_parquet(table: pa.Table, *, checksums: bool = False) -> bytes:
    """Return a table as one Parquet file, with a checksum per page if wanted."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=checksums)
    return sink.getvalue()


def from_parquet(data: bytes, *, checksums: bool = False) -> pa.Table:
    """Read what `to_parquet` wrote; OSError or ArrowInvalid when it is damaged."""
    return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=checksums).read()
