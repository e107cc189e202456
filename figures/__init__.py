"""The figures of jaxattn: attention on one sentence, step by step, drawn from a trained model.

`python -m figures` writes all of them; `python -m figures --only NAME` writes one.

  model.py  a tiny language model whose forward pass is `jaxattn.steps.multi_head`
  data.py   the arrays of each figure (no matplotlib)
  draw.py   arrays onto an `Axes` (no files)
  page.py   a figure laid out in inches
  story.py  composes the walk-through on one page
  make.py   composes the other figures, and writes all of them
"""
