"""The figures of jaxattn: attention on one sentence, step by step, drawn from a trained model, the
map of one head over a text too long for a matrix of weights, induction heads forming, and a model
that knows a text by heart.

`python -m figures` writes all of them; `python -m figures --only NAME` writes one.

  model.py      a tiny language model whose forward pass is `jaxattn.steps.multi_head`
  data.py       the arrays of the figures that are drawn from models (no matplotlib)
  recall.py     a head written by hand, and what it looks at in a text (no matplotlib)
  induction.py  a transformer whose training forms induction heads: `python -m figures.induction`
  reading.py    a model that knows the licence by heart: `python -m figures.reading`
  survey.py     what every head of a checkpoint does with a text: `python -m figures.survey`
  draw.py       what `jaxattn.plot` has not: arrays onto an `Axes` (no files)
  page.py       a figure laid out in inches
  story.py      composes the walk-through on one page
  long.py       composes the map of a long text
  emergence.py  composes the figure of that training
  by_heart.py   composes the figure of that model
  every_head.py composes the figure of all heads of a checkpoint
  make.py       composes the other figures, and writes all of them
"""
