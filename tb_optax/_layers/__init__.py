"""What a layer is, and where a network has them: in its parameter tree (`find`), or in its forward pass (`trace`).

`trace` makes a jaxpr, `jaxpr` interprets it on the `values` that say where an array comes from, by `axes` and `joined`, and
`findings` takes down what is found.
"""
