"""From a text to a model: the corpus, the plan, and the loop that yields what happens."""
