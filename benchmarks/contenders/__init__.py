"""The servers that `benchmarks/serving.py` compares, each written as its own documentation writes it.

All of them answer the same JPEG faces with the same weights in the same arithmetic (`model.py`), with two processes of
one torch thread each. What a body looks like is each one's own business: raw bytes where that is usual, a form where
the framework's tutorial has a form.
"""
