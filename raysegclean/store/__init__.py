"""Where bytes live: archives, labels, the index, the ledger and the lock.

What belongs in this room: everything that reads or writes a file or a bucket, and nothing that
knows Ray, networks or methods. `objects` is the only module that decides how an object becomes
durable (`files` and `buckets` do it); all others speak in stores, arrays and cases. Voxels are
read with tensorstore and written a whole shard at a time, so that an object is there completely
or not at all.
"""

__all__: list[str] = []
