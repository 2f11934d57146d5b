"""How the built-in demo model is made: its world, its tokenizer, its training, its measurement.

Nothing here is part of the installed package; the package ships the result only
(``isonomy/backends/local/demo``). Run the steps from the folder ``backends``::

    python -m demo_model.train      # the checkpoint, from nothing (needs the extra ``torch``)
    python -m demo_model.evaluate   # the share of held-out dialogues answered as intended
"""
