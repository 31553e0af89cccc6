"""Where bytes live: archives, labels, the index, the run folder, its ledger and lock.

Objects in, objects out, on files and buckets alike; the only room that imports tensorstore,
obstore, zarr or nibabel. Nothing here interprets a label.

- `backend`: what a place for objects must be able to do
- `files`: objects in a folder
- `buckets`: objects in S3, GCS, Azure
- `patience`: asking a bucket again that stutters
- `objects`: one way to reach both
- `arrays`: reading voxels
- `shards`: writing whole shards
- `ome`: OME-Zarr metadata
- `fit`: whether a label fits its image
- `archive`: an archive of cases
- `parquet`: tables as bytes
- `presence`: finding what is gone
- `scan`: one reading of a case
- `index`: the table of cases
- `table`: patients, sites and annotators from CSV
- `beside`: what lies beside the data and is not taken
- `each`: something for every case; one bad case stops no other
- `nifti`: NIfTI in memory
- `class_names`: what the classes of a label are called
- `name_tables`: the same, as CSV, JSON and extensions of a NIfTI header say it
- `ingest`: from NIfTI to an archive
- `export`: and back
- `run`: the run folder
- `ledger`: what is committed
- `lock`: one driver per run
- `holder`: who holds a lock, and whether it lives
"""

DOOR = (
    "archive",
    "arrays",
    "class_names",
    "each",
    "export",
    "fit",
    "index",
    "ingest",
    "ledger",
    "lock",
    "nifti",
    "objects",
    "parquet",
    "presence",
    "run",
    "shards",
)
"""Modules that other rooms may import."""
