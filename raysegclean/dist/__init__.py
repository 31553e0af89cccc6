"""The room of everything that imports Ray.

cluster: getting on one. stream, train, train_loop, exchange, progress: networks trained on patches
that are cut anywhere. search: values that are found by training again. propose, settle, passes,
proposals, worker, attempts: work on shards. What is computed lives in core, nets and methods; here
it is only brought to machines, watched and taken up again where it stopped.
"""

__all__: list[str] = []
