"""What a layer is, and where a network has them: in its parameter tree (`find`), or in its forward pass (`trace`).

`trace` makes a jaxpr. `jaxpr` interprets it on `values`, which say where an array comes from; `axes` and `joined` follow
them through reshapes, joins and products; `findings` records what is found.
"""
